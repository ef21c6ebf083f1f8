"""A model with tensors of other widths, in which everything else that holds a width follows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, fx, nn

from surgeon.tracing import copied, modules
from surgeon.trial.attributes import follow, followers
from surgeon.trial.targets import Settings, apply_settings

_REGISTRIES = frozenset({dict, OrderedDict})


def with_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], settings: Settings, *, share: bool = False
) -> nn.Module:
    """A deep copy of `model` in which the named parameters and buffers are replaced and width attributes follow.

    `settings` are numbers to set besides: widths that no tensor tells.

    Ties, ``requires_grad``, mode, hooks and the model's own class survive. With `share`, tensors that aren't
    replaced are shared with `model` instead of copied.
    """
    small = copied(model, tensors, share=share)
    _follow_all(model, small)
    apply_settings(small, settings)
    return small


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor], settings: Settings) -> None:
    """:func:`with_tensors` in place: `model` itself becomes the cut model."""
    shadow = with_tensors(model, tensors, settings, share=True)  # everything that can fail happens on a copy
    pairs = [(old, new) for old, new in zip(_registered(model), _registered(shadow), strict=True) if old is not new]
    saved = [(module, dict(vars(module))) for module in modules(model)]
    try:
        _take_over(model, shadow, {id(old): new for old, new in pairs})
        apply_settings(model, settings)
    except BaseException:  # interrupted: half of a cut is no model
        back = {id(new): old for old, new in pairs}
        for module, attributes in saved:
            for value in attributes.values():
                _substituted(value, back)  # what lists and dicts hold
            module.__dict__.update(attributes)
        raise


def _take_over(model: nn.Module, shadow: nn.Module, new: Mapping[int, Tensor]) -> None:
    for own, other in zip(modules(model), modules(shadow), strict=True):
        for name, value in vars(own).items():
            if value is None or (type(value) in _REGISTRIES and not value):
                continue
            width = vars(other).get(name) if _is_width(value) and not name.startswith("_") else value
            own.__dict__[name] = _substituted(width, new)


def _registered(model: nn.Module) -> list[Tensor]:
    return [t for m in modules(model) for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]


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


def _is_width(value: object) -> bool:
    """A number or a sequence of numbers; other containers hold the model's own layers, not the shadow's."""
    return isinstance(value, int) or (isinstance(value, tuple | list) and all(isinstance(v, int) for v in value))


def _follow_all(dense: nn.Module, small: nn.Module) -> None:
    parts = modules(small)
    following = {kind: followers(kind) for kind in {type(part) for part in parts}}
    for before, after in zip(modules(dense), parts, strict=True):
        for update in following[type(after)]:
            follow(update, before, after)
        if isinstance(after, fx.GraphModule):  # each has a class of its own, whose name copies forget
            type(after).__name__ = type(before).__name__
