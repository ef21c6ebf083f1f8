"""Where a program holds numbers: attributes of modules, and literals of graph modules."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

_ASSIGNED = re.compile(r"\s*(\w+)(?: :[^=]+)? = ")
_SLICE = ("start", "stop", "step")
#: How many nodes around a failing one are searched for numbers.
_MOST_NODES = 12
_ON_SIZES = frozenset(
    {torch._assert, operator.getitem, operator.eq, operator.ne, operator.is_, operator.not_, operator.floordiv}
)


@dataclass(frozen=True)
class Attribute:
    """An attribute of the module at `path` (``""`` is the root), or `key` of a dict or configuration object in it."""

    path: str
    name: str
    key: str | None = None

    def __str__(self) -> str:
        return ".".join(filter(None, (self.path, self.name, self.key)))

    def set(self, model: nn.Module, value: Any) -> None:
        """Give it another value."""
        holder, name = model.get_submodule(self.path), self.name
        if self.key is None:
            setattr(holder, name, value)
        elif isinstance(getattr(holder, name), dict):
            getattr(holder, name)[self.key] = value
        else:
            object.__setattr__(getattr(holder, name), self.key, value)
        _restate(holder)


def _restate(module: nn.Module) -> None:
    """Let a module that says itself what its state is build from it what else it holds, as copies of it do.

    Its hooks and its mode stay; one that holds tensors or other modules would make new ones, so it is left alone.
    """
    if type(module).__setstate__ is nn.Module.__setstate__ or module._parameters or module._buffers or module._modules:
        return
    kept = {key: vars(module)[key] for key in vars(nn.Module()) if key in vars(module)}
    own: Any = module
    own.__setstate__(getattr(own, "__getstate__", lambda: vars(own))())  # Python 3.10 has none of its own
    vars(module).update(kept)


@dataclass(frozen=True)
class Literal:
    """A number among the arguments of a node of the graph module at `path`; `position` leads to it.

    A width that is counted from the end (``x[:, -8:]``) stands there with a minus: `sign` is -1.
    """

    path: str
    node: str
    position: tuple[Any, ...]
    sign: int = 1

    def __str__(self) -> str:
        return f"{self.path}.{self.node}" if self.path else self.node

    def set(self, model: nn.Module, value: Any) -> None:
        """Write another number into the graph; it counts once the module is recompiled."""
        module = model.get_submodule(self.path)
        assert isinstance(module, fx.GraphModule)
        node = next(n for n in module.graph.nodes if n.name == self.node)
        where, *rest = self.position
        setattr(node, where, _replaced(getattr(node, where), rest, value if self.sign > 0 else -value))


Target = Attribute | Literal
#: Numbers to set on the small model.
Settings = Mapping[Target, Any]


def apply_settings(model: nn.Module, settings: Settings) -> None:
    """Set them on the small model."""
    for target, value in settings.items():
        target.set(model, value)
    for path in {target.path for target in settings if isinstance(target, Literal)}:
        cast(fx.GraphModule, model.get_submodule(path)).recompile()


def _replaced(holder: Any, position: list[Any], value: Any) -> Any:
    if not position:
        return value
    key, *rest = position
    if isinstance(holder, Mapping):
        return {**holder, key: _replaced(holder[key], rest, value)}
    if isinstance(holder, slice):
        parts = {name: getattr(holder, name) for name in _SLICE}
        return slice(*(parts | {key: _replaced(parts[key], rest, value)}).values())
    items = [_replaced(item, rest, value) if index == key else item for index, item in enumerate(holder)]
    return type(holder)(items)


def held_numbers(model: nn.Module, path: str, line: int | None) -> Iterator[tuple[Target, Any]]:
    """Whole numbers, and sequences of them, that the module at `path` holds; of a graph module those of `line`."""
    module = model.get_submodule(path)
    if isinstance(module, fx.GraphModule):
        yield from _literals(module, path, line)
    if type(module).__module__.startswith("torch.nn") and (module._parameters or module._buffers):
        return  # torch's own layers have their followers
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    yield from ((Attribute(path, name), value) for name, value in own.items() if _is_number(value))
    for name, value in own.items():
        for key, number in _entries(value).items():
            if _is_number(number):
                yield Attribute(path, name, key), number


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, tuple | list) and any(type(v) is int for v in value))


def _entries(value: Any) -> dict[str, Any]:
    """What a dict or a plain configuration object holds by name."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, Tensor | nn.Module | type) or callable(value):
        return {}
    return {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}


def _literals(module: fx.GraphModule, path: str, line: int | None) -> Iterator[tuple[Target, Any]]:
    """The numbers of the call at `line`, then those of what it works on and is checked by, the nearest first."""
    lines = module.code.splitlines()
    found = _ASSIGNED.match(lines[line - 1]) if line is not None and 0 < line <= len(lines) else None
    for node in _around(next((n for n in module.graph.nodes if found and n.name == found[1]), None)):
        for position, value in (*_numbers(node.args, ("args",)), *_numbers(node.kwargs, ("kwargs",))):
            sign = -1 if isinstance(value, int) and value < 0 else 1
            yield Literal(path, node.name, position, sign), -value if sign < 0 else value


def _around(node: fx.Node | None) -> list[fx.Node]:
    """A node of a graph module, the checks right before it, what else reads its operands, and what makes these."""
    if node is None:
        return []
    before = node.prev
    found = {node: None}
    while before.op != "root" and _is_about_sizes(before):
        found[before] = None
        before = before.prev
    found |= dict.fromkeys(user for source in node.all_input_nodes for user in source.users if user.op != "output")
    queue = list(found)
    while queue and len(found) < _MOST_NODES:
        calls = [n for n in queue.pop(0).all_input_nodes if n.op.startswith("call_f") or n.op == "call_method"]
        queue += [n for n in calls if n not in found]
        found |= dict.fromkeys(calls)
    return list(found)[:_MOST_NODES]


def _is_about_sizes(node: fx.Node) -> bool:
    """Whether a node works on sizes alone, so that nothing of it is recorded."""
    if node.target is getattr or node.target == "size":
        return True
    operands = node.all_input_nodes
    return node.target in _ON_SIZES and bool(operands) and all(_is_about_sizes(n) for n in operands)


def _numbers(value: Any, position: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The numbers in an argument with the ways that lead to them; lists of several come first as a whole."""
    if type(value) is int:
        yield position, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, (*position, key))
    elif isinstance(value, slice):
        for name in _SLICE:
            yield from _numbers(getattr(value, name), (*position, name))
    elif isinstance(value, tuple | list):
        if len(value) > 1 and all(type(item) is int for item in value):
            yield position, value
        for index, item in enumerate(value):
            yield from _numbers(item, (*position, index))
