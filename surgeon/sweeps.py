"""``sensitivity``: how far each group, and the whole network, can be cut before accuracy goes, without any training.

Layers that share channels are cut together, as they would be in earnest. What can't be cut is listed with its reason: a
layer that shows no loss because nothing was done to it would look robust, and isn't known to be.
"""

from __future__ import annotations

import copy
import csv
import fnmatch
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.channels import ChannelGraph, Pin, channel_graph
from surgeon.channels.bundles import Bundle
from surgeon.channels.structure import layer_of
from surgeon.cost import Cost
from surgeon.criteria import Scores, score
from surgeon.criteria.table import ForwardLoss
from surgeon.errors import BudgetError, NothingToCutError, SelectionError
from surgeon.exclusive import alone
from surgeon.planning import Plan, make_plan
from surgeon.rewriting import rewrite
from surgeon.rules import reasons
from surgeon.tracing import Inputs, check_model, outside_inference_mode, trace
from surgeon.tuning import Validation, evaluate
from surgeon.tuning.objectives import Objective

__all__ = ["RATIOS", "WHOLE", "Curve", "Point", "Sensitivity", "sensitivity"]

#: Shares that are tried where none are given.
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Name of the curve of everything together.
WHOLE = "whole network"

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Point:
    """One cut of a sweep.

    Attributes
    ----------
    ratio:
        The share that was asked for.
    removed:
        How many channels (or weights) went; the width's steps may not allow the exact share.
    threshold:
        The greatest score (or absolute weight) among them; None where nothing so small can go.
    loss, accuracy:
        On the judging data; None where nothing could go.
    macs:
        Share of the MACs that is left (masks leave all).
    """

    ratio: float
    removed: int
    threshold: float | None
    loss: float | None
    accuracy: float | None
    macs: float


@dataclass(frozen=True)
class Curve:
    """A sweep of one group of layers, or why there is none.

    Attributes
    ----------
    name:
        Of the group; of a layer for weights; or :data:`WHOLE`.
    layers:
        Whose filters, neurons or weights these are; coupled ones together.
    size:
        How many there are.
    points:
        One per ratio; none where nothing may be cut.
    reason, source:
        Why nothing may be cut, and the source line that it is about.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    points: tuple[Point, ...]
    reason: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What :func:`sensitivity` gives back.

    Attributes
    ----------
    what:
        ``"filters"`` or ``"weights"``.
    criterion:
        What ranked them.
    dense:
        Loss and accuracy of the whole model.
    curves:
        The whole network first, then the groups in the order of the forward, then what can't be cut.
    """

    what: str
    criterion: str
    dense: Validation
    curves: tuple[Curve, ...]

    def tolerated(self, curve: Curve, drop: float) -> float | None:
        """The greatest ratio up to which accuracy falls by no more than `drop` (a share); None where none is that mild.

        Where there is no accuracy, the loss may grow by that share.
        """
        best: float | None = None
        for point in sorted(curve.points, key=lambda p: p.ratio):
            if point.loss is None:
                continue
            if not self._is_mild(point, drop):
                break
            best = point.ratio
        return best

    def _is_mild(self, point: Point, drop: float) -> bool:
        if point.accuracy is None or self.dense.accuracy is None:
            return point.loss is not None and point.loss <= self.dense.loss * (1 + drop)
        return point.accuracy >= self.dense.accuracy - drop

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def to_csv(self) -> str:
        """One row per point, and one per group that can't be cut."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = ["ratio", "removed", "threshold", "loss", "accuracy", "macs"]
        writer.writerow(["name", "layers", "size", *names, "reason", "source"])
        for curve in self.curves:
            head, tail = [curve.name, " ".join(curve.layers), curve.size], [curve.reason or "", curve.source or ""]
            rows = [[getattr(point, name) for name in names] for point in curve.points] or [[""] * len(names)]
            writer.writerows([*head, *row, *tail] for row in rows)
        return text.getvalue()


@outside_inference_mode
@alone
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    loader: Iterable[Any],
    *,
    what: str = "filters",
    ratios: Sequence[float] = RATIOS,
    criterion: str = "magnitude",
    dataloader: Iterable[Any] | None = None,
    layers: Iterable[str] = ("*",),
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sensitivity:
    """Cut each group by each ratio, alone and all together, and measure what is lost; `model` is left as it is.

    Parameters
    ----------
    model, example_inputs:
        As in :func:`surgeon.prune`.
    loader:
        What judges: batches ``(inputs, targets)``, good for many passes.
    what:
        ``"filters"``: channels, coupled ones together, are really cut out. ``"weights"``: single weights of
        convolutions and linear layers are set to zero, the smallest first.
    ratios:
        Shares to remove, above 0 and below 1.
    criterion, dataloader:
        What ranks filters, and on which batches; default: those of `loader`. Weights go by their size.
    layers:
        Names or globs; only groups with a layer among them are swept (and the whole network, always).
    loss_fn, forward_loss:
        As in :func:`surgeon.tune`.
    progress:
        Called as ``progress("sweep", cuts done, cuts in all)``.

    Raises
    ------
    SelectionError
        If `what` is unknown, a ratio is out of range, or `layers` match nothing.
    NothingToCutError
        If no channel of the model may go.
    ScoreError, TuningError
        As :func:`surgeon.score` and :func:`surgeon.tune`.
    """
    module = check_model(model)
    _check(what, ratios)
    judge = _Judge(loader, Objective(loss_fn, forward_loss), progress or (lambda *_: None))
    dense = judge(module)
    chosen = sorted({float(ratio) for ratio in ratios})
    if what == "weights":
        curves = _sweep_weights(copy.deepcopy(module), chosen, tuple(layers), judge)
        return Sensitivity(what, "magnitude", dense, tuple(curves))
    graph = _tried(channel_graph(trace(module, Inputs.of(example_inputs))), seed)
    scores = score(
        graph, criterion, loader if dataloader is None else dataloader, loss_fn, forward_loss=forward_loss, seed=seed
    )
    sweep = _FilterSweep(module, graph, scores, chosen, judge, seed)
    return Sensitivity(what, scores.criterion, dense, tuple(sweep.curves(tuple(layers))))


def _check(what: str, ratios: Sequence[float]) -> None:
    if what not in ("filters", "weights"):
        raise SelectionError(f"what={what!r}: expected 'filters' or 'weights'")
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise SelectionError(f"ratios={list(ratios)}: expected at least one, each above 0 and below 1, such as 0.5")


def _matching(names: Sequence[str], layers: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in layers)


def _check_any(found: Sequence[Any], layers: Sequence[str]) -> None:
    if not found:
        raise SelectionError(f"layers={list(layers)}: no layer that can be swept has such a name")


@dataclass
class _Judge:
    """Measures models on the judging data, and counts them."""

    loader: Iterable[Any]
    objective: Objective
    progress: Callable[[str, int, int], None]
    done: int = 0
    total: int = 0

    def __call__(self, model: nn.Module) -> Validation:
        return evaluate(model, self.loader, self.objective)

    def step(self, count: int = 1) -> None:
        """So many more cuts are done with."""
        self.done += count
        self.progress("sweep", self.done, self.total)


# ---------------------------------------------------------------- filters


def _tried(graph: ChannelGraph, seed: int) -> ChannelGraph:
    """The graph with what the forward's own constants hold pinned: known once some plan was tried with it."""
    try:
        plan = make_plan(graph, score(graph, "random", seed=seed), ratio=0.5, scope="local")
    except BudgetError:  # every width goes in larger steps
        return graph
    return graph if plan.fitted is None else plan.fitted.graph


@dataclass
class _FilterSweep:
    """Cuts bundles of groups out of a model."""

    model: nn.Module
    graph: ChannelGraph
    scores: Scores
    ratios: Sequence[float]
    judge: _Judge
    seed: int

    def curves(self, layers: Sequence[str]) -> Iterator[Curve]:
        bundles = [b for b in self.graph.bundles if _matching(_layers_of(b), layers)]
        _check_any(bundles, layers)
        self.judge.total = (len(bundles) + 1) * len(self.ratios)
        everything = [group for bundle in self.graph.bundles for group in bundle.groups]
        size = sum(group.size for group in everything)
        yield self._curve(WHOLE, tuple(dict.fromkeys(p for g in everything for p in g.producers)), size, self.graph)
        for bundle in bundles:
            name = " + ".join(group.name for group in bundle.groups)
            size = sum(group.size for group in bundle.groups)
            yield self._curve(name, _layers_of(bundle), size, self._alone(bundle))
        yield from (_held(pin) for pin in self.graph.pinned if _matching([pin.layer], layers))

    def _alone(self, bundle: Bundle) -> ChannelGraph:
        """The graph in which nothing else may go."""
        others = [g for b in self.graph.bundles if b is not bundle for g in b.groups]
        result = self.graph
        for group in others:
            result = result.pin(group.numbers, reasons.IGNORED)
        return result

    def _curve(self, name: str, layers: tuple[str, ...], size: int, graph: ChannelGraph) -> Curve:
        try:
            points = tuple(self._point(graph, ratio, name) for ratio in self.ratios)
        except NothingToCutError as problem:
            self.judge.step(len(self.ratios))
            return Curve(name, layers, size, (), _why(problem, layers))
        return Curve(name, layers, size, points)

    def _point(self, graph: ChannelGraph, ratio: float, name: str) -> Point:
        try:
            scope = "global" if name == WHOLE else "local"
            plan = make_plan(graph, self.scores, ratio=ratio, scope=scope, seed=self.seed)
        except BudgetError:  # its width goes in larger steps
            self.judge.step()
            return Point(ratio, 0, None, None, None, 1.0)
        seen = self.judge(rewrite(self.model, plan))
        self.judge.step()
        return self._measured(plan, ratio, seen)

    def _measured(self, plan: Plan, ratio: float, seen: Validation) -> Point:
        kept, cost = plan.kept(self.graph), Cost(self.graph)
        gone = self.scores.raw[~kept]
        macs = cost.macs(kept) / cost.macs(cost.everything())
        return Point(ratio, len(gone), float(gone.max()), seen.loss, seen.accuracy, macs)


def _layers_of(bundle: Bundle) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for group in bundle.groups for layer in group.producers))


def _held(pin: Pin) -> Curve:
    return Curve(pin.layer, (pin.layer,), pin.channels, (), pin.reason, pin.source)


def _why(problem: NothingToCutError, layers: Sequence[str]) -> str:
    """What the planner says about these layers."""
    lines = [line.strip() for line in str(problem).splitlines()]
    found = [line.partition(": ")[2] for line in lines if line.partition(":")[0] in layers]
    return next((reason for reason in found if reason != reasons.IGNORED), lines[0])


# ---------------------------------------------------------------- weights


def _sweep_weights(model: nn.Module, ratios: Sequence[float], layers: Sequence[str], judge: _Judge) -> Iterator[Curve]:
    """Curves of the masks; `model` is a copy, each of whose weights is as before after its curve."""
    weights = _weights(model)
    single = {name: {name: weight} for name, weight in weights.items() if _matching([name], layers)}
    _check_any(list(single), layers)
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
        if parameter.ndim > 1 and id(parameter) not in masked and _matching([layer], layers):
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
    model: nn.Module, name: str, weights: Mapping[str, Tensor], ratios: Sequence[float], judge: _Judge
) -> Curve:
    before = {layer: weight.detach().clone() for layer, weight in weights.items()}
    flat = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    order, sizes = flat.argsort(stable=True), [weight.numel() for weight in weights.values()]
    points = []
    for ratio in ratios:
        count = int(len(flat) * ratio + 1e-9)  # as in planning: a hair off in binary
        gone = torch.zeros_like(flat, dtype=torch.bool)
        gone[order[:count]] = True
        for mask, weight in zip(torch.split(gone, sizes), weights.values(), strict=True):
            weight.masked_fill_(mask.view_as(weight), 0)
        seen = judge(model)
        points.append(_masked(ratio, count, flat, order, seen))
        for layer, weight in weights.items():
            weight.copy_(before[layer])
        judge.step()
    return Curve(name, tuple(weights), len(flat), tuple(points))


def _masked(ratio: float, count: int, flat: Tensor, order: Tensor, seen: Validation) -> Point:
    if not count:
        return Point(ratio, 0, None, None, None, 1.0)
    return Point(ratio, count, float(flat[order[count - 1]]), seen.loss, seen.accuracy, 1.0)
