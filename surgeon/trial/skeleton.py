"""A copy of a model with other tensors in the places of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

from torch import Tensor, nn

from surgeon.trial.arrivals import Attributes, set_attributes
from surgeon.trial.attributes import follow


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first qualified name; tied tensors appear once."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def with_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], found: Attributes, *, share: bool = False
) -> nn.Module:
    """A deep copy of `model` in which the named parameters and buffers are replaced and width attributes follow.

    `found` are attributes to set besides: widths that no tensor tells.

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
    small = copy.deepcopy(model, memo)
    _follow_all(model, small)
    set_attributes(small, found)
    return small


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor], found: Attributes) -> None:
    """:func:`with_tensors` in place: `model` itself becomes the cut model."""
    shadow = with_tensors(model, tensors, found, share=True)  # everything that can fail happens on a copy
    for own, new in zip(model.modules(), shadow.modules(), strict=True):
        own._parameters.update(new._parameters)
        own._buffers.update(new._buffers)
        for name, value in new.__dict__.items():
            if isinstance(value, int | tuple | list) and not name.startswith("_"):
                own.__dict__[name] = value


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


def _follow_all(dense: nn.Module, small: nn.Module) -> None:
    for before, after in zip(dense.modules(), small.modules(), strict=True):
        follow(before, after)
