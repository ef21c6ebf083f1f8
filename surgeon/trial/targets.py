"""Where a program holds numbers: attributes of modules, and literals of graph modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

_ASSIGNED = re.compile(r"\s*(\w+)(?: :[^=]+)? = ")


@dataclass(frozen=True)
class Attribute:
    """An attribute of the module at `path` (``""`` is the root)."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name

    def set(self, model: nn.Module, value: Any) -> None:
        """Give it another value."""
        setattr(model.get_submodule(self.path), self.name, value)


@dataclass(frozen=True)
class Literal:
    """A number among the arguments of a node of the graph module at `path`; `position` leads to it."""

    path: str
    node: str
    position: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.path}.{self.node}" if self.path else self.node

    def set(self, model: nn.Module, value: Any) -> None:
        """Write another number into the graph."""
        module = model.get_submodule(self.path)
        assert isinstance(module, fx.GraphModule)
        node = next(n for n in module.graph.nodes if n.name == self.node)
        where, *rest = self.position
        setattr(node, where, _replaced(getattr(node, where), rest, value))
        module.recompile()


Target = Attribute | Literal
#: Numbers to set on the small model.
Settings = Mapping[Target, Any]


def apply_settings(model: nn.Module, settings: Settings) -> None:
    """Set them on the small model."""
    for target, value in settings.items():
        target.set(model, value)


def _replaced(holder: Any, position: list[Any], value: Any) -> Any:
    if not position:
        return value
    key, *rest = position
    if isinstance(holder, Mapping):
        return {**holder, key: _replaced(holder[key], rest, value)}
    items = [_replaced(item, rest, value) if index == key else item for index, item in enumerate(holder)]
    return type(holder)(items)


def held_numbers(model: nn.Module, path: str, line: int | None) -> Iterator[tuple[Target, Any]]:
    """Whole numbers, and sequences of them, that the module at `path` holds; of a graph module those of `line`."""
    module = model.get_submodule(path)
    if isinstance(module, fx.GraphModule):
        yield from _literals(module, path, line)
    if type(module).__module__.startswith("torch.nn"):
        return  # torch's own layers have their followers
    for name, value in vars(module).items():
        if not name.startswith("_") and (type(value) is int or _is_numbers(value)):
            yield Attribute(path, name), value


def _is_numbers(value: Any) -> bool:
    return isinstance(value, tuple | list) and any(type(v) is int for v in value)


def _literals(module: fx.GraphModule, path: str, line: int | None) -> Iterator[tuple[Target, int]]:
    lines = module.code.splitlines()
    found = _ASSIGNED.match(lines[line - 1]) if line is not None and 0 < line <= len(lines) else None
    for node in module.graph.nodes:
        if found is not None and node.name == found[1]:
            for position, value in (*_numbers(node.args, ("args",)), *_numbers(node.kwargs, ("kwargs",))):
                yield Literal(path, node.name, position), value


def _numbers(value: Any, position: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    if type(value) is int:
        yield position, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, (*position, key))
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _numbers(item, (*position, index))
