"""Single weights, masked: of each layer, of each kind of layers, and of all together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from surgeon.finegrained.layers import KINDS, Weight
from surgeon.finegrained.masks import lift
from surgeon.finegrained.sparsity import find_maskable, mask_least
from surgeon.sweeps.judging import Judge, matching
from surgeon.sweeps.results import WHOLE, Curve, Point

__all__ = ["sweep_weights"]

_KIND_NAMES = dict(zip(KINDS, ("all convolutions", "all linear layers"), strict=True))


def sweep_weights(model: nn.Module, ratios: Sequence[float], layers: Sequence[str], judge: Judge) -> Iterator[Curve]:
    """Curves of the masks; `model` is a copy, each of whose weights is as before after its curve."""
    weights, left = find_maskable(model)
    single = {weight.name: [weight] for weight in weights if matching([weight.name], layers)}
    kinds = {name: [weight for weight in weights if weight.kind == kind] for kind, name in _KIND_NAMES.items()}
    sets = {WHOLE: weights, **{kind: found for kind, found in kinds.items() if 0 < len(found) < len(weights)}, **single}
    judge.total = len(sets) * len(ratios)
    yield from (_curve(model, name, found, ratios, judge) for name, found in sets.items())
    for one in left:
        if matching([one.name], layers):
            yield Curve(one.name, (one.name,), one.weights, (), one.reason)


def _curve(model: nn.Module, name: str, weights: Sequence[Weight], ratios: Sequence[float], judge: Judge) -> Curve:
    before = [weight.mask for weight in weights]

    def measure(ratio: float) -> Point:
        for weight, mask in zip(weights, before, strict=True):
            lift(model, weight, mask)
        return _point(model, weights, ratio, judge)

    points = [judge.point(name, ratio, lambda ratio=ratio: measure(ratio)) for ratio in ratios]  # type: ignore[misc]
    for weight, mask in zip(weights, before, strict=True):
        lift(model, weight, mask)
    return Curve(name, tuple(weight.name for weight in weights), sum(weight.count for weight in weights), tuple(points))


def _point(model: nn.Module, weights: Sequence[Weight], ratio: float, judge: Judge) -> Point:
    rows = mask_least(model, weights, ratio)
    removed = sum(row.weights - row.after for row in rows)
    limits = [row.threshold for row in rows if row.threshold is not None]
    if not removed or not limits:
        return Point(ratio, 0, None, None, None, 1.0)
    seen = judge(model)
    return Point(ratio, removed, max(limits), seen.loss, seen.accuracy, 1.0)
