"""Masks on single weights, as ``torch.nn.utils.prune`` keeps them, seen by every kind of forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from surgeon.finegrained.layers import Place, Weight

__all__ = ["forget", "lift", "mask_weight", "refresh", "unmask"]


class Mask(prune.BasePruningMethod):
    """A given mask. Unlike torch's own, a masked weight is +0.0 whatever it was: not -0.0, and not NaN for inf."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, mask: Tensor) -> None:
        self._mask: Tensor | None = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # noqa: ARG002  # torch's signature
        """The mask itself, bool: a quarter of what a float mask takes. It is then held by the module alone."""
        mask, self._mask = self._mask, None
        assert mask is not None
        return mask

    def apply_mask(self, module: nn.Module) -> Tensor:
        """The masked weight; no gradient reaches a weight that is gone."""
        kept = getattr(module, f"{self._tensor_name}_mask")
        weight = getattr(module, f"{self._tensor_name}_orig")
        return torch.where(kept.bool(), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def mask_weight(model: nn.Module, weight: Weight, kept: Tensor) -> None:
    """Mask a weight at all its places, instead of a mask that is there.

    Parameters
    ----------
    model:
        The model that is called: a hook on it brings masked weights up to date before its forward, for layers whose
        weight is read without calling them (attention, fused kernels).
    kept:
        Of the weight's shape, true where it stays.
    """
    with torch.no_grad():
        for place in weight.places:
            _attach(place, kept)
    if _refresh not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_refresh)


def lift(model: nn.Module, weight: Weight, before: Tensor | None) -> None:
    """Put an earlier mask in place of the one that is there (None: all weights come back, as they were)."""
    if weight.mask is not None:
        mask_weight(model, weight, torch.ones_like(weight.mask) if before is None else before)


def _attach(place: Place, kept: Tensor) -> None:
    if place.mask is None:
        Mask.apply(place.module, place.name, kept)  # type: ignore[no-untyped-call]
    else:
        place.module._buffers[f"{place.name}_mask"] = kept
        refresh(place.module)


def unmask(weight: Weight) -> None:
    """Put the masked weight in place of weight and mask; the trained parameter stays the same object."""
    if weight.mask is None:
        return
    value = weight.value()
    for place in weight.places:
        if place.mask is not None:
            prune.remove(place.module, place.name)  # type: ignore[no-untyped-call]
    parameter = weight.places[0].parameter
    assert parameter is not None
    with torch.no_grad():
        parameter.copy_(value)


def forget(model: nn.Module) -> None:
    """Take the hook off that :func:`mask_weight` put on the model, if nothing in it is masked any more."""
    if any(_masks(module) for module in model.modules()):
        return
    for number, hook in list(model._forward_pre_hooks.items()):
        if hook is _refresh:
            del model._forward_pre_hooks[number]


def _masks(module: nn.Module) -> list[prune.BasePruningMethod]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]


def refresh(model: nn.Module) -> None:
    """Compute every masked weight anew from what is trained."""
    for module in model.modules():
        for mask in _masks(module):
            mask(module, ())


def _refresh(model: nn.Module, _inputs: Any) -> None:
    refresh(model)
