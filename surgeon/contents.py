"""Contents: the tensors in what a forward takes or returns, at any depth of containers and plain objects."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Contents", "reachable", "tensors_in"]

#: How much is looked into, and how deep, before a value counts as one that can't be.
_MOST_OBJECTS, _MOST_LEVELS = 20_000, 60
_ATOMS = frozenset({type(None), bool, int, float, str})
#: Makes a value anew from its leaves; the second operand holds the objects that are made already.
_Build = Callable[[Sequence[Any], dict[int, Any]], Any]


class Contents:
    """A value taken apart.

    Containers that pytree knows, dataclasses, and objects whose state is in ``__dict__`` or ``__slots__`` (also of
    subclasses of dict and list) are followed.

    Attributes
    ----------
    leaves:
        Its tensors, and whatever isn't followed or holds none, in an order that follows from the structure alone.
    closed:
        What can't be followed and isn't plain data: iterators, generators, closures, sets, modules.
    """

    def __init__(self, value: Any) -> None:
        self.leaves: list[Any] = []
        self.closed: list[Any] = []
        self._seen: dict[int, Any] = {}
        self._level = 0
        self._build = self._taken(value)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def rebuilt(self, leaves: Sequence[Any]) -> Any:
        """The same structure around other leaves; objects that hold no tensor are shared."""
        return self._build(leaves, {})

    def let_go(self) -> None:
        """Keep the structure alone, and what is no tensor."""
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        self.closed, self._seen = [], {}

    def _taken(self, value: Any) -> _Build:
        if isinstance(value, Tensor) or type(value) in _ATOMS:
            return self._leaf(value)
        parts, structure = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
        if not structure.is_leaf():
            builds = [self._taken(part) for part in parts]
            return lambda leaves, made: pytree.tree_unflatten([build(leaves, made) for build in builds], structure)
        key = id(value)
        if not gc.is_tracked(value):  # it refers to nothing
            return self._leaf(value)
        if key in self._seen:
            return lambda _, made: made.get(key, value)
        self._seen[key] = value
        return self._object(value)

    def _leaf(self, value: Any) -> _Build:
        index = len(self.leaves)
        self.leaves.append(value)
        return lambda leaves, _: leaves[index]

    def _object(self, value: Any) -> _Build:
        kind, first = type(value), len(self.leaves)
        if not _is_open(kind) or len(self._seen) > _MOST_OBJECTS or self._level > _MOST_LEVELS:
            self.closed.append(value)
            return self._leaf(value)
        self._level += 1
        attributes = {name: self._taken(part) for name, part in _attributes(value)}
        items = [(key, self._taken(part)) for key, part in _items(value)]
        self._level -= 1
        if not any(isinstance(leaf, Tensor) for leaf in self.leaves[first:]):
            del self.leaves[first:]
            return self._leaf(value)
        key = id(value)

        def build(leaves: Sequence[Any], made: dict[int, Any]) -> Any:
            made[key] = new = _empty(kind)  # before its parts, which may refer to it
            for name, part in attributes.items():
                object.__setattr__(new, name, part(leaves, made))  # also where the class is frozen
            for place, part in items:
                _put(new, place, part(leaves, made))
            return new

        return build


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in `value`, in a fixed order."""
    return Contents(value).tensors


#: Classes in C whose state is known to be all in attributes and items.
_LAID_OUT_BY: tuple[Any, ...] = (dict, list, types.SimpleNamespace, object)


def _is_open(kind: type) -> bool:
    """Whether all state of such an object is in its attributes and items."""
    if issubclass(kind, type | nn.Module | types.ModuleType):
        return False
    try:
        _empty(kind)
    except TypeError:  # its memory is laid out by a class in C
        return False
    return True


def _empty(kind: type) -> Any:
    return next(base for base in _LAID_OUT_BY if issubclass(kind, base)).__new__(kind)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes in ``__dict__`` and in ``__slots__``, by the names that they are stored under."""
    yield from getattr(value, "__dict__", {}).items()
    for base in type(value).__mro__:
        if "__slots__" in vars(base):
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType) and hasattr(value, name):
                    yield name, getattr(value, name)


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(dict.items(value))
    return list(enumerate(list.__iter__(value))) if isinstance(value, list) else []


def _put(container: Any, place: Any, item: Any) -> None:
    if isinstance(container, dict):
        dict.__setitem__(container, place, item)
    else:
        list.append(container, item)


def reachable(value: Any) -> list[Tensor]:
    """Every tensor that `value` may lead to, as the garbage collector sees it; in no order that anyone should rely on.

    Modules are gone through, so that their parameters count; classes, modules of Python and what a function finds
    among its module's names do not.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting and len(seen) < _MOST_OBJECTS:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.CodeType):
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found.append(item)
        else:
            waiting += _referents(item)
    return found


def _referents(value: Any) -> list[Any]:
    outside: tuple[Any, ...] = ()
    if isinstance(value, types.FunctionType):
        outside = (value.__globals__, value.__globals__.get("__builtins__"))
    elif isinstance(value, types.FrameType):
        outside = (value.f_back, value.f_globals, value.f_builtins)
    return [part for part in gc.get_referents(value) if not any(part is other for other in outside)]
