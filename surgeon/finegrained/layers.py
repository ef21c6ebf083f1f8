"""Which weights single weights are taken from: each tensor once, with every place that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from surgeon.errors import ScoreError
from surgeon.finegrained.codebooks import Codebook
from surgeon.planning.selection import select_layers

__all__ = ["KINDS", "LeftWhole", "Place", "Weight", "check_finite", "find_weights"]

#: The kinds that may have thresholds or numbers of values apart.
KINDS = ("conv", "linear")
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_IN_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
#: What may hold a weight of a layer as well (tied embeddings): calls of it see a mask or a codebook.
_MAY_SHARE = (_ConvNd, nn.Linear, nn.MultiheadAttention, nn.Embedding)


@dataclass(frozen=True)
class Place:
    """An attribute that holds a weight: ``getattr(module, name)``, in a layer called `layer`."""

    module: nn.Module
    layer: str
    name: str

    @property
    def mask(self) -> Tensor | None:
        """The mask of ``torch.nn.utils.prune`` on it."""
        return self.module._buffers.get(f"{self.name}_mask") if f"{self.name}_orig" in self.held else None

    @property
    def is_computed(self) -> bool:
        """Whether a parametrization makes it."""
        return parametrize.is_parametrized(self.module, self.name)

    @property
    def codebook(self) -> Codebook | None:
        """What it is looked up in."""
        if not self.is_computed:
            return None
        first = next(self.module.get_submodule(f"parametrizations.{self.name}").children(), None)
        return first if isinstance(first, Codebook) else None

    @property
    def held(self) -> Mapping[str, nn.Parameter | None]:
        """The module's own parameters."""
        return self.module._parameters

    @property
    def parameter(self) -> Tensor | None:
        """The tensor that an optimizer trains for it; None where it is computed of several."""
        if self.is_computed:
            found = getattr(self.module.get_submodule(f"parametrizations.{self.name}"), "original", None)
            return found if isinstance(found, Tensor) else None
        return self.held.get(f"{self.name}_orig", self.held.get(self.name))


@dataclass(frozen=True)
class Weight:
    """One weight tensor.

    Attributes
    ----------
    name:
        Of the first layer that holds it; with the attribute behind it where that isn't ``weight``.
    kind:
        ``"conv"`` or ``"linear"``.
    places:
        Everything that holds it; more than one where it is tied.
    """

    name: str
    kind: str
    places: tuple[Place, ...]

    @property
    def mask(self) -> Tensor | None:
        """Of the same shape, true where a weight is there; None without one."""
        found = next((place.mask for place in self.places if place.mask is not None), None)
        return None if found is None else found.bool()

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        found: Tensor = getattr(self.places[0].module, self.places[0].name)
        return found.numel()

    @torch.no_grad()
    def value(self) -> Tensor:
        """What the forward computes with now, masked weights being +0.0. Never written to."""
        place = self.places[0]
        if place.is_computed:
            computed: Tensor = getattr(place.module, place.name)
            return computed.detach()
        assert place.parameter is not None
        weight, mask = place.parameter.detach(), self.mask
        return weight if mask is None else torch.where(mask, weight, torch.zeros_like(weight))


@dataclass(frozen=True)
class LeftWhole:
    """A weight that was not touched, why, and how many numbers it holds."""

    name: str
    reason: str
    weights: int


def _kind_of(module: nn.Module) -> str | None:
    """``"conv"``, ``"linear"``, or None for all else."""
    if isinstance(module, _ConvNd):
        return "conv"
    return "linear" if isinstance(module, nn.Linear | nn.MultiheadAttention) else None


def find_weights(model: nn.Module, ignored_layers: Iterable[Any] = ()) -> tuple[list[Weight], list[LeftWhole]]:
    """The weights of convolutions and linear layers (those of attention too), and those that must stay, with reasons.

    Parameters
    ----------
    ignored_layers:
        Modules, names or globs; everything inside them stays.

    Raises
    ------
    SelectionError
        If a name or glob matches nothing.
    """
    ignored = select_layers(model, ignored_layers)
    found: list[Weight] = []
    left: list[LeftWhole] = []
    for weight in _tied(model):
        reason = _reason(weight, ignored)
        if reason is None:
            found.append(weight)
        else:
            left.append(LeftWhole(weight.name, reason, weight.count))
    return found, left


def _tied(model: nn.Module) -> Iterator[Weight]:
    """All matrices and kernels, each once."""
    places: dict[int, list[Place]] = {}
    for place in _places(model):
        places.setdefault(id(place.parameter) if place.parameter is not None else id(place), []).append(place)
    for held in places.values():
        lead = next((place for place in held if _kind(place)), held[0])
        layer = lead.layer or type(lead.module).__name__
        yield Weight(layer if lead.name == "weight" else f"{layer}.{lead.name}", _kind(lead) or "", tuple(held))


def _kind(place: Place) -> str | None:
    names = _IN_ATTENTION if isinstance(place.module, nn.MultiheadAttention) else ("weight",)
    return _kind_of(place.module) if place.name in names else None


def _places(model: nn.Module) -> Iterator[Place]:
    for layer, module in model.named_modules():
        if "parametrizations" in layer.split("."):  # where torch keeps what makes a tensor
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim >= 2:
                plain = name.removesuffix("_orig") if f"{name.removesuffix('_orig')}_mask" in module._buffers else name
                yield Place(module, layer, plain)
        if parametrize.is_parametrized(module):
            names = module.get_submodule("parametrizations")._modules
            yield from (Place(module, layer, name) for name in names if getattr(module, name).ndim >= 2)


def _reason(weight: Weight, ignored: set[str]) -> str | None:
    """Why a weight has to stay as it is."""
    lead = next((place for place in weight.places if _kind(place)), weight.places[0])
    odd = next((place for place in weight.places if not isinstance(place.module, _MAY_SHARE)), None)
    tensor = lead.parameter
    if not weight.kind and _kind_of(lead.module):
        return "not the layer's own weight (weight norm, or a parameter of yours)"
    if not weight.kind:
        return f"belongs to {type(lead.module).__name__}, which is neither a convolution nor linear"
    if any(place.layer in ignored for place in weight.places):
        return "ignored"
    if odd is not None:
        return f"tied to {odd.layer}.{odd.name} of a {type(odd.module).__name__}"
    if tensor is None or (lead.is_computed and lead.codebook is None):
        return "computed from other tensors (a parametrization that isn't surgeon's)"
    if tensor.dtype not in _TYPES:
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, expected real numbers of 16 bits or more"
    return None


def check_finite(weights: Iterable[Weight]) -> None:
    """What is not finite can't be ranked.

    Raises
    ------
    ScoreError
        If a weight is NaN or infinite; its layer is named.
    """
    for weight in weights:
        if not bool(torch.isfinite(weight.value()).all()):
            raise ScoreError(f"{weight.name} holds NaN or infinite weights; load weights that are finite")
