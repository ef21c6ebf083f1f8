"""What a forward and its hooks may write to outside of tensors, put back as it was."""

from __future__ import annotations

import dis
import functools
import gc
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

#: How many values are looked at, those nearest to the modules first.
_MOST = 20_000
_LIBRARIES = {"torch", *sys.stdlib_module_names} - {"types", "__main__"}
_CONTAINERS = (list, dict, set, deque)
#: What ``functools.lru_cache`` makes of a function; and what may be called by the name of its module.
_Remembering: Any = type(functools.lru_cache(len))
_CALLED = (types.FunctionType, _Remembering)
#: What it keeps a result in, and how deep in there tensors are looked for.
_LINK, _DEPTH = "_lru_list_elem", 5
#: What nothing is kept in that a forward could leave.
_ATOMS = frozenset({type(None), bool, int, float, str, bytes, types.ModuleType, types.BuiltinFunctionType})


class Kept:
    """The state of modules, as it was when this was made.

    Kept are the modules' attributes, and what is in the containers and objects that the modules, their hooks and the
    closures of these refer to: a hook that appends to a list of the caller's leaves nothing there. Functions that
    remember tensors (``functools.lru_cache``) forget them, now and when all is put back: so each run makes the same
    calls, and none is given what another made, perhaps without numbers.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._contents: list[tuple[Any, Sequence[Any]]] = []
        self._undo: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._waiting: deque[Any] = deque()
        parts = list(modules)
        self._seen.update(map(id, parts))
        for module in parts:
            self._attributes(vars(module))
        for code in _code_of(parts):
            self._look(code)
        while self._waiting and len(self._seen) < _MOST:
            self._keep(self._waiting.popleft())

    def restore(self) -> None:
        """Put it all back."""
        for container, content in self._contents:
            _refill(container, content)
        for undo in self._undo:
            undo()

    def _attributes(self, held: dict[str, Any]) -> None:
        self._contents.append((held, list(held.items())))
        for value in held.values():
            if type(value) not in _ATOMS:
                self._look(value)

    def _look(self, value: Any) -> None:
        if id(value) in self._seen or type(value) in _ATOMS or isinstance(value, Tensor | type):
            return
        self._seen.add(id(value))
        if isinstance(value, dict) and not dict.__len__(value):  # as most registries of modules are
            self._contents.append((value, ()))
        else:
            self._waiting.append(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, _CONTAINERS):
            self._contents.append((value, _items(value)))
        elif isinstance(value, types.CellType):
            self._undo.append(functools.partial(_refill_cell, value, _content(value)))
        elif isinstance(value, types.FunctionType):
            self._globals(value)
        elif isinstance(value, _Remembering):
            _forget_tensors(value)
            self._undo.append(functools.partial(_forget_tensors, value))
        elif _is_plain(value):
            self._attributes(vars(value))
        for part in _parts(value):
            self._look(part)

    def _globals(self, function: types.FunctionType) -> None:
        """The names of its own module that a function uses: those that it sets, what containers hold, what it calls."""
        space = function.__globals__
        for name in _names(function.__code__):
            value = space.get(name)
            if isinstance(value, _CONTAINERS) or (isinstance(value, _CALLED) and _is_callers(value)):
                self._look(value)
        changed = {name: space[name] for name in _set_names(function.__code__) if name in space}
        if changed:
            self._undo.append(functools.partial(space.update, changed))


def _code_of(modules: list[nn.Module]) -> Iterator[Any]:
    """What may run when these modules are called."""
    yield from torch_module._global_forward_hooks.values()
    yield from torch_module._global_forward_pre_hooks.values()
    for module in modules:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            yield from hooks.values()
    for kind in {type(module) for module in modules}:
        yield from _methods(kind)


def _methods(kind: type[nn.Module]) -> list[Any]:
    """The methods of a class that aren't torch's."""
    homes = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
    held = [_plain_method(part) for base in homes for part in vars(base).values()]
    return [part for part in held if isinstance(part, _CALLED)]


def _plain_method(part: Any) -> Any:
    """What a static method, a class method or a property runs; anything else as it is."""
    return part.fget if isinstance(part, property) else getattr(part, "__func__", part)


def _forget_tensors(function: Any) -> None:
    """Have a function that remembers tensors forget all that it remembers; others may keep what is there but once."""
    waiting = [function]
    for _ in range(_DEPTH):
        held = [part for value in waiting for part in gc.get_referents(value)]
        if any(isinstance(part, Tensor) for part in held):
            function.cache_clear()
            return
        waiting = [part for part in held if isinstance(part, dict | tuple | list) or type(part).__name__ == _LINK]


def _is_callers(written: Any) -> bool:
    """Whether a function or a class is none of torch or of Python."""
    return str(written.__module__).partition(".")[0] not in _LIBRARIES


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """The names that this code uses, and the functions that are written within it."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))


@functools.lru_cache(maxsize=4096)
def _set_names(code: types.CodeType) -> frozenset[str]:
    """The names of its module that this code sets."""
    return frozenset(str(i.argval) for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL")


def _parts(value: Any) -> Iterable[Any]:
    """What a value leads to, as far as a call of it may write there."""
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, _CONTAINERS):
        return _items(value)
    if isinstance(value, tuple | frozenset):
        return value
    if isinstance(value, types.CellType):
        return _content(value)
    if isinstance(value, types.FunctionType):
        return [*(value.__closure__ or ()), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, _Remembering):
        return [value.__wrapped__]
    return [value.func, *value.args, *value.keywords.values()] if isinstance(value, functools.partial) else []


def _is_plain(value: Any) -> bool:
    """Whether it is an object of a class of the caller's; those of torch and of Python look after themselves."""
    return _is_callers(type(value)) and isinstance(getattr(value, "__dict__", None), dict)


def _content(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty yet
        return []


def _items(container: Any) -> list[Any]:
    """What a container holds, pairs of a dict; by the methods of the class that it is built on.

    Those of its own class may do more than that: look things up, or make them.
    """
    if isinstance(container, dict):
        return list(dict.items(container))
    base: Any = next(base for base in _CONTAINERS if isinstance(container, base))
    return list(base.__iter__(container))


def _refill(container: Any, content: Sequence[Any]) -> None:
    """Give a container its content back, in place: others may hold the same one."""
    now = _items(container)
    if len(now) == len(content) and _identities(container, now) == _identities(container, content):
        return
    base: Any = next(base for base in (OrderedDict, *_CONTAINERS) if isinstance(container, base))
    base.clear(container)
    if isinstance(container, dict):
        for key, value in content:
            base.__setitem__(container, key, value)
    elif isinstance(container, set):
        set.update(container, content)
    else:
        base.extend(container, content)


def _identities(container: Any, items: Sequence[Any]) -> list[int]:
    return [id(part) for pair in items for part in pair] if isinstance(container, dict) else list(map(id, items))


def _refill_cell(cell: types.CellType, content: list[Any]) -> None:
    if content and _content(cell) and cell.cell_contents is not content[0]:
        cell.cell_contents = content[0]
