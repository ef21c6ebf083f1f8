"""Single weights, set to zero: of each layer, of each kind of layers, and of all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from surgeon.channels.structure import layer_of
from surgeon.sweeps.judging import Judge, check_any, matching
from surgeon.sweeps.results import WHOLE, Curve, Point
from surgeon.tuning import Validation

__all__ = ["sweep_weights"]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def sweep_weights(model: nn.Module, ratios: Sequence[float], layers: Sequence[str], judge: Judge) -> Iterator[Curve]:
    """Curves of the masks; `model` is a copy, each of whose weights is as before after its curve."""
    weights = _weights(model)
    single = {name: {name: weight} for name, weight in weights.items() if matching([name], layers)}
    check_any(list(single), layers)
    modules = dict(model.named_modules())
    kinds = {
        "all convolutions": {n: w for n, w in weights.items() if not isinstance(modules[n], nn.Linear)},
        "all linear layers": {n: w for n, w in weights.items() if isinstance(modules[n], nn.Linear)},
    }
    sets = {WHOLE: weights, **{kind: found for kind, found in kinds.items() if 0 < len(found) < len(weights)}, **single}
    judge.total = len(sets) * len(ratios)
    yield from (_weight_curve(model, name, found, ratios, judge) for name, found in sets.items())
    masked = {id(weight) for weight in weights.values()}
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        if parameter.ndim > 1 and id(parameter) not in masked and matching([layer], layers):
            kind = type(modules[layer]).__name__
            why = f"{name} of a {kind}: only what is a convolution's or a linear layer's own weight is masked"
            yield Curve(layer, (layer,), parameter.numel(), (), why)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers by layer; a shared one once.

    One that is computed from others in every forward (weight norm) is none: a mask on it would change nothing.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, _LAYERS) and isinstance(weight, nn.Parameter):
            found.setdefault(id(weight), (name, weight))
    return dict(found.values())


@torch.no_grad()
def _weight_curve(
    model: nn.Module, name: str, weights: Mapping[str, Tensor], ratios: Sequence[float], judge: Judge
) -> Curve:
    before = {layer: weight.detach().clone() for layer, weight in weights.items()}
    flat = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    order, sizes = flat.argsort(stable=True), [weight.numel() for weight in weights.values()]

    def measure(ratio: float) -> Point:
        count = int(len(flat) * ratio + 1e-9)  # as in planning: a hair off in binary
        gone = torch.zeros_like(flat, dtype=torch.bool)
        gone[order[:count]] = True
        for mask, weight in zip(torch.split(gone, sizes), weights.values(), strict=True):
            weight.masked_fill_(mask.view_as(weight), 0)
        seen = judge(model)
        for layer, weight in weights.items():
            weight.copy_(before[layer])
        return _masked(ratio, count, flat, order, seen)

    points = [judge.point(name, ratio, lambda ratio=ratio: measure(ratio)) for ratio in ratios]  # type: ignore[misc]
    return Curve(name, tuple(weights), len(flat), tuple(points))


def _masked(ratio: float, count: int, flat: Tensor, order: Tensor, seen: Validation) -> Point:
    if not count:
        return Point(ratio, 0, None, None, None, 1.0)
    return Point(ratio, count, float(flat[order[count - 1]]), seen.loss, seen.accuracy, 1.0)
