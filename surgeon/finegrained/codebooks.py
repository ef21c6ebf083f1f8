"""Weights that are looked up: each is an index into its layer's codebook, and the codebook is what is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from surgeon.finegrained.layers import Weight

__all__ = ["Codebook", "share_weight", "unshare"]


class Codebook(nn.Module):
    """The parametrization ``weight = codebook[index - 1]``, or zero where the index is 0.

    The codebook ``(k,)`` is the parameter ``parametrizations.weight.original``; the gradient of a value is the sum over
    the weights that share it (Han et al. 2015, arXiv 1510.00149, section 3).

    Parameters
    ----------
    index:
        int32 of the weight's shape. Zeros are no value of the codebook: they stay zero.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, codebook: Tensor) -> Tensor:
        """The weight, in its own shape: each place takes the value that its index says, 0 the number zero."""
        values = F.pad(codebook, (1, 0))
        # index_select: three times as fast as values[index], there and back
        return values.index_select(0, self.index.flatten()).view(self.index.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The codebook that is nearest to `weight`: means of what shares a value."""
        places = self.index.flatten().long()
        count = int(places.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64, device=weight.device)
        sums.index_add_(0, places, weight.flatten().double())
        return (sums / places.bincount(minlength=count).clamp(min=1))[1:].to(weight.dtype)


@torch.no_grad()
def share_weight(weight: Weight, index: Tensor, codebook: Tensor) -> None:
    """Make a weight, at all its places, a look-up in one codebook: `index` as in :class:`Codebook`.

    The parameter stays the same object, of another shape: an optimizer that has moments of it must be made anew.
    """
    parametrization = Codebook(index)
    _own_classes(weight)
    first, *others = weight.places
    parametrize.register_parametrization(first.module, first.name, parametrization)
    parameter = first.parameter
    assert isinstance(parameter, nn.Parameter)
    parameter.copy_(codebook)
    for place in others:
        # its own copy for torch's checks of the shape; then the same parameter again
        setattr(place.module, place.name, nn.Parameter(getattr(first.module, first.name).detach().clone()))
        parametrize.register_parametrization(place.module, place.name, parametrization)
        place.module.get_submodule(f"parametrizations.{place.name}").register_parameter("original", parameter)


@torch.no_grad()
def unshare(weight: Weight) -> None:
    """Put the weight that is looked up in place of index and codebook; the parameter stays the same object."""
    if weight.places[0].codebook is None:
        return
    value, parameter = weight.value().clone(), weight.places[0].parameter
    assert parameter is not None
    _own_classes(weight)
    for place in weight.places:
        parametrize.remove_parametrizations(place.module, place.name, leave_parametrized=False)
    parameter.set_(value)  # type: ignore[call-overload]  # torch's stubs know only the form with a storage


def _own_classes(weight: Weight) -> None:
    """A class of its own for every parametrized module: torch lets deep copies share one, and changes it."""
    for place in weight.places:
        if parametrize.is_parametrized(place.module):
            old = type(place.module)
            body = {name: value for name, value in vars(old).items() if name not in ("__dict__", "__weakref__")}
            place.module.__class__ = type(old.__name__, old.__bases__, body)
