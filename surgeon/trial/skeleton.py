"""A copy of a model with other tensors in the places of its own."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, fx, nn

from surgeon.trial.attributes import follow
from surgeon.trial.targets import Settings, apply_settings


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first qualified name; tied tensors appear once."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def with_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], settings: Settings, *, share: bool = False
) -> nn.Module:
    """A deep copy of `model` in which the named parameters and buffers are replaced and width attributes follow.

    `settings` are numbers to set besides: widths that no tensor tells.

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
    for tensor in _computed(model):
        memo[id(tensor)] = tensor.detach().clone()
        keep.append(tensor)
    for registry in _empty_registries(model):
        memo[id(registry)] = OrderedDict()
    small = _copy(model, memo)
    _follow_all(model, small)
    apply_settings(small, settings)
    return small


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor], settings: Settings) -> None:
    """:func:`with_tensors` in place: `model` itself becomes the cut model."""
    shadow = with_tensors(model, tensors, settings, share=True)  # everything that can fail happens on a copy
    new = {id(old): new for old, new in zip(_registered(model), _registered(shadow), strict=True) if old is not new}
    for own, other in zip(model.modules(), shadow.modules(), strict=True):
        for name, value in vars(own).items():
            width = vars(other).get(name) if _is_width(value) and not name.startswith("_") else value
            own.__dict__[name] = _substituted(width, new)
    apply_settings(model, settings)


def _registered(model: nn.Module) -> list[Tensor]:
    return [t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]


def _substituted(value: object, new: Mapping[int, Tensor]) -> object:
    """`value` with the new tensors for the old ones; lists and dicts stay the objects that they are."""
    if isinstance(value, Tensor):
        return new.get(id(value), value)
    if isinstance(value, dict):
        for key in value:
            value[key] = _substituted(value[key], new)
    elif isinstance(value, list):
        value[:] = [_substituted(item, new) for item in value]
    elif type(value) is tuple:
        return tuple(_substituted(item, new) for item in value)
    return value


def _computed(model: nn.Module) -> list[Tensor]:
    """Tensors with a history that modules hold: results of an earlier forward, or weights made by a hook."""
    held = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in held if isinstance(value, Tensor) and not value.is_leaf]


def _empty_registries(model: nn.Module) -> list[object]:
    """The registries of hooks without hooks: a dozen in each module, which deepcopy would spend most of its time on."""
    held = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in held if type(value) is OrderedDict and not value and not vars(value)]


def _copy(model: nn.Module, memo: dict[int, object]) -> nn.Module:
    """Copy deeply; what can't be copied (locks, open files) is shared."""
    try:
        return copy.deepcopy(model, dict(memo))
    except TypeError:
        for module in model.modules():
            memo |= {id(value): value for value in vars(module).values() if not _can_copy(value)}
        return copy.deepcopy(model, memo)


def _can_copy(value: object) -> bool:
    if isinstance(value, Tensor | nn.Module | dict | list):
        return True  # copied piece by piece
    try:
        copy.deepcopy(value)
    except TypeError:
        return False
    return True


def _is_width(value: object) -> bool:
    """A number or a sequence of numbers; other containers hold the model's own layers, not the shadow's."""
    return isinstance(value, int) or (isinstance(value, tuple | list) and all(isinstance(v, int) for v in value))


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _follow_all(dense: nn.Module, small: nn.Module) -> None:
    for before, after in zip(dense.modules(), small.modules(), strict=True):
        follow(before, after)
        if isinstance(after, fx.GraphModule):  # each has a class of its own, whose name copies forget
            type(after).__name__ = type(before).__name__
