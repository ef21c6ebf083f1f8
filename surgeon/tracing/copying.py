"""A copy of a model with other tensors in the places of its own."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgeon.tracing.members import modules, named_tensors


def copied(model: nn.Module, tensors: Mapping[str, Tensor], *, share: bool = False) -> nn.Module:
    """A deep copy of `model` in which the named parameters and buffers are replaced.

    Ties, ``requires_grad``, mode, hooks and the model's own class survive. With `share`, tensors that aren't
    replaced are shared with `model` instead of copied.
    """
    memo: dict[int, object] = {}
    keep = []  # deepcopy trusts ids: the replaced tensors must outlive it
    for name, old in named_tensors(model).items():
        new = tensors.get(name)
        if new is not None:
            new = _like(old, new)
        elif share:
            new = old
        if new is not None:
            memo[id(old)] = new
            keep.append(old)
    with _Detached():
        return _copy(model, memo)


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


class _Detached(TorchFunctionMode):
    """Tensors with a history, wherever a model keeps them, are copied by their numbers: torch refuses to.

    They are results of an earlier forward, or weights made by a hook.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _copy(model: nn.Module, memo: dict[int, object]) -> nn.Module:
    """Copy deeply; what can't be copied (locks, open files) is shared."""
    try:
        return _deep_copy(model, dict(memo))
    except TypeError:
        for module in modules(model):
            memo |= {id(value): value for value in vars(module).values() if not _can_copy(value)}
        return _deep_copy(model, memo)


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy``, which would spend nearly all of its time on numbers and on a dozen empty registries of hooks.

    Modules that are copied in a way of their own still are.
    """
    parts = modules(model)
    plain = {kind: _is_plain(kind) for kind in {type(part) for part in parts}}
    parts = [module for module in parts if id(module) not in memo and plain[type(module)]]
    for module in parts:
        memo[id(module)] = type(module).__new__(type(module))
    for module in reversed(parts):  # a module is whole before it is given to the one that holds it
        held = vars(module).items()
        state = {name: value if type(value) in _ATOMS else _deep_copied(value, memo) for name, value in held}
        memo[id(module)].__setstate__(state)
    small: nn.Module = memo[id(model)] if id(model) in memo else copy.deepcopy(model, memo)
    return small


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether modules of this kind are copied as any object is: attribute by attribute."""
    own = {name for base in kind.__mro__ if base not in (nn.Module, object) for name in vars(base)}
    return own.isdisjoint(_COPIED_BY) and kind not in copyreg.dispatch_table


#: What a class may define to be copied in a way of its own.
_COPIED_BY = frozenset(
    {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__",
     "__new__", "__slots__"}
)  # fmt: skip
_ATOMS = frozenset({type(None), int, float, bool, str})


def _deep_copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of an attribute."""
    kind, made = type(value), memo.get(id(value))
    if made is not None:
        return made
    if kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value))):
        return value
    if kind is OrderedDict and not value and not vars(value):
        memo[id(value)] = made = OrderedDict()
    elif kind is dict and all(type(key) is str for key in value):
        memo[id(value)] = made = {}
        made.update({key: _deep_copied(item, memo) for key, item in value.items()})
    else:
        made = copy.deepcopy(value, memo)
    return made


def _can_copy(value: object) -> bool:
    if isinstance(value, Tensor | nn.Module | dict | list):
        return True  # copied piece by piece
    try:
        copy.deepcopy(value)
    except TypeError:
        return False
    return True
