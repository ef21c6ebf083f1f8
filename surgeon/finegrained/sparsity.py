"""Which single weights go, and the masks that keep them away."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.criteria.gradients import ForwardLoss
from surgeon.errors import BudgetError, SelectionError
from surgeon.finegrained.amounts import Amount, per_weight
from surgeon.finegrained.layers import LeftWhole, Weight, check_finite, find_weights
from surgeon.finegrained.masks import mask_weight
from surgeon.finegrained.scores import Data, score_weights
from surgeon.tracing import check_model, outside_inference_mode

__all__ = ["LayerSparsity", "Sparsity", "find_maskable", "mask_least", "sparsify"]


@dataclass(frozen=True)
class LayerSparsity:
    """One weight tensor before and after.

    Attributes
    ----------
    name, kind:
        The layer, and ``"conv"`` or ``"linear"``.
    weights:
        How many there are.
    before, after:
        How many are not zero.
    threshold:
        Weights whose score is this or less went (but the best one of a layer always stays); None where none should.
    """

    name: str
    kind: str
    weights: int
    before: int
    after: int
    threshold: float | None


@dataclass(frozen=True)
class Sparsity:
    """What :func:`sparsify` did: a row per weight tensor (tied ones have one), and what was left whole and why."""

    layers: tuple[LayerSparsity, ...]
    left_whole: tuple[LeftWhole, ...]

    @property
    def weights(self) -> int:
        """How many there are in these layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def before(self) -> int:
        """How many were not zero."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """How many are left."""
        return sum(layer.after for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero now."""
        return 1 - self.after / self.weights

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON can hold."""
        totals = {"weights": self.weights, "before": self.before, "after": self.after, "sparsity": self.sparsity}
        return totals | asdict(self)


@dataclass(frozen=True)
class _Scored:
    """A weight, its scores ``(n,)`` and which of its weights are not zero, ``(n,)`` bool; both flat."""

    weight: Weight
    scores: Tensor
    there: Tensor

    @property
    def free(self) -> Tensor:
        """Which may go: all that are there but the best one."""
        found = self.there.clone()
        found[torch.where(self.there, self.scores, -torch.inf).argmax()] = False
        return found


@outside_inference_mode
def sparsify(
    model: nn.Module,
    amount: float | Mapping[str, float] | None = None,
    *,
    threshold: float | Mapping[str, float] | None = None,
    std: float | Mapping[str, float] | None = None,
    of: str = "all",
    scope: str = "global",
    by: str = "magnitude",
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    ignored_layers: Iterable[Any] = (),
) -> Sparsity:
    """Mask the least useful single weights of convolutions and linear layers, in place (``torch.nn.utils.prune``).

    That saves size, not time: dense kernels multiply by the zeros. Masks stay through training
    (:func:`surgeon.tune` or any loop; an optimizer goes on with the same parameters), :func:`pack` writes a small file,
    and :func:`make_permanent` takes the masks off. Called again, it masks further: what is zero stays zero. In every
    layer at least the best weight stays. A tied weight is counted and masked once.

    Parameters
    ----------
    model:
        Any module, also one that :func:`surgeon.prune` has cut.
    amount, threshold, std:
        Exactly one of them. `amount`: the share of the weights that should be gone, 0 up to but not including 1.
        `threshold`: the score up to which they go. `std`: the same in standard deviations of the layer's weights that
        are there (Han et al. 2015, arXiv 1506.02626, section 3.1). A mapping has one for each kind (``"conv"``,
        ``"linear"``) or layer (name or glob); the first key that fits counts, and other layers stay.
    of:
        What `amount` is a share of: ``"all"`` weights, or ``"survivors"``, those that aren't zero yet.
    scope:
        ``"global"`` ranks all weights together (with a mapping, all under one key), ``"local"`` those of each layer.
    by:
        ``"magnitude"`` or ``"gradient"``: ``|w dL/dw|``, the mean over the batches of the data.
    dataloader, loss_fn, forward_loss:
        For ``"gradient"``, as in :func:`surgeon.tune`.
    ignored_layers:
        Modules, names or globs that stay as they are.

    Returns
    -------
    Sparsity
        Weights before and after and the threshold of each layer.

    Raises
    ------
    BudgetError
        If not exactly one of `amount`, `threshold` and `std` is given, or it is out of range.
    SelectionError
        If a choice or a layer doesn't exist, or there is no layer to mask.
    ScoreError
        If weights or the loss are not finite, or there is no data for ``"gradient"``.
    """
    module = check_model(model)
    asked = Amount.of(amount=amount, threshold=threshold, std=std)
    for name, value, known in (("of", of, ("all", "survivors")), ("scope", scope, ("global", "local"))):
        if value not in known:
            raise SelectionError(f"{name}={value!r}: there are {' and '.join(known)}")
    if asked.kind == "std" and by != "magnitude":
        raise BudgetError(f"std={std!r} is measured in weights, by={by!r} in something else: give amount or threshold")
    weights, left = find_maskable(module, ignored_layers)
    values = per_weight(weights, asked)
    scored = _scored(module, weights, by, Data(dataloader, loss_fn, forward_loss))
    limits = _thresholds(scored, values, asked.kind, of, scope)
    rows = [_mask(module, one, *limits[number]) for number, one in enumerate(scored)]
    return Sparsity(tuple(rows), tuple(left))


def find_maskable(model: nn.Module, ignored_layers: Iterable[Any] = ()) -> tuple[list[Weight], list[LeftWhole]]:
    """The weights that a mask may go on, and the others with the reason.

    Raises
    ------
    SelectionError
        If a layer of `ignored_layers` doesn't exist, or there is nothing that a mask may go on.
    ScoreError
        If weights are not finite.
    """
    found, left = find_weights(model, ignored_layers)
    check_finite(found)
    kept: list[Weight] = []
    for weight in found:
        if any(place.codebook is not None for place in weight.places):
            left.append(_left(weight, "its weights are shared: sparsify first, or make_permanent before"))
        elif not bool(weight.value().any()):  # training may still fill it, and a mask would keep it empty for ever
            left.append(_left(weight, "all its weights are zero"))
        else:
            kept.append(weight)
    if not kept:
        told = "; ".join(f"{one.name}: {one.reason}" for one in left[:3])
        raise SelectionError(f"no layer has weights to mask{f' ({told})' if told else ''}")
    return kept, left


def _left(weight: Weight, reason: str) -> LeftWhole:
    return LeftWhole(weight.name, reason, weight.count)


def mask_least(model: nn.Module, weights: Sequence[Weight], share: float) -> list[LayerSparsity]:
    """Mask the smallest of these weights of a model, ranked together, until this share of them is zero.

    At least the greatest of each tensor stays.
    """
    scored = _scored(model, weights, "magnitude", Data())
    limits = _rank(scored, range(len(scored)), share, "all")
    return [_mask(model, one, *limits[number]) for number, one in enumerate(scored)]


def _scored(model: nn.Module, weights: Sequence[Weight], by: str, data: Data) -> list[_Scored]:
    scores = score_weights(model, weights, by, data)
    return [
        _Scored(
            weight, score.flatten().float() if score.itemsize < 4 else score.flatten(), weight.value().flatten() != 0
        )
        for weight, score in zip(weights, scores, strict=True)
    ]


_Limits = dict[int, tuple[Tensor, float | None]]


def _thresholds(scored: list[_Scored], values: list[Any], kind: str, of: str, scope: str) -> _Limits:
    """Of every layer which weights stay, flat, and the threshold."""
    if kind == "amount":
        return _by_rank(scored, values, of, scope)
    limits: _Limits = {}
    for number, (one, value) in enumerate(zip(scored, values, strict=True)):
        limit = None if value is None else float(value.value)
        if limit is not None and kind == "std":
            limit *= _spread(one)
        gone = torch.zeros_like(one.there) if limit is None else (one.scores <= limit) & one.free
        limits[number] = (one.there & ~gone, limit)
    return limits


def _spread(one: _Scored) -> float:
    """Standard deviation of the weights that are there."""
    values = one.weight.value().flatten()[one.there]
    return float(values.double().std(correction=0))


def _by_rank(scored: list[_Scored], values: list[Any], of: str, scope: str) -> _Limits:
    pools: dict[Any, list[int]] = {}
    for number, value in enumerate(values):
        key = None if value is None else (value.key, number if scope == "local" else None)
        pools.setdefault(key, []).append(number)
    limits: _Limits = {number: (scored[number].there, None) for number in pools.pop(None, [])}
    for numbers in pools.values():
        share = values[numbers[0]].value
        limits |= _rank([scored[number] for number in numbers], numbers, share, of)
    return limits


def _rank(pool: Sequence[_Scored], numbers: Sequence[int], share: float, of: str) -> _Limits:
    """Take the lowest scores of a pool until so large a share of it is zero."""
    there = torch.cat([one.there for one in pool])
    free = torch.cat([one.free for one in pool])
    scores = torch.cat([one.scores.to(there.device) for one in pool])
    zero = int((~there).sum())
    wanted = round(share * len(there)) - zero if of == "all" else round(share * (len(there) - zero))
    count = min(max(wanted, 0), int(free.sum()))
    kept, limit = there.clone(), None
    if count:
        limit = scores[free].kthvalue(count).values
        below = free & (scores < limit)
        equal = (free & (scores == limit)).nonzero().flatten()[: count - int(below.sum())]
        kept &= ~below
        kept[equal] = False
    parts = torch.split(kept, [len(one.there) for one in pool])
    told = None if limit is None else float(limit)
    return {number: (part, told) for number, part in zip(numbers, parts, strict=True)}


def _mask(model: nn.Module, one: _Scored, kept: Tensor, limit: float | None) -> LayerSparsity:
    weight = one.weight
    before, after = int(one.there.sum()), int(kept.sum())
    value = weight.value()
    if after < value.numel():
        mask_weight(model, weight, kept.view(value.shape).to(value.device))
    return LayerSparsity(weight.name, weight.kind, value.numel(), before, after, limit)
