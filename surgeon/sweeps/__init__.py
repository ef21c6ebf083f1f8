"""``sensitivity``: how far each group, and the whole network, can be cut before accuracy goes, without any training.

Layers that share channels are cut together, as they would be in earnest. What can't be cut is listed with its reason: a
layer that shows no loss because nothing was done to it would look robust, and isn't known to be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.criteria import Request, find_criterion, score
from surgeon.criteria.gradients import Floats, ForwardLoss
from surgeon.errors import SelectionError
from surgeon.exclusive import one_at_a_time
from surgeon.files import locked
from surgeon.finegrained.sparsity import find_maskable
from surgeon.processes import first, together
from surgeon.sweeps.filters import FilterSweep, swept, tried
from surgeon.sweeps.judging import Judge, check_any, matching
from surgeon.sweeps.results import WHOLE, Curve, Point, Sensitivity
from surgeon.sweeps.weights import sweep_weights
from surgeon.tracing import Inputs, check_model, copied, outside_inference_mode, trace
from surgeon.tuning.objectives import Objective

__all__ = ["RATIOS", "WHOLE", "Curve", "Point", "Sensitivity", "sensitivity"]

#: Shares that are tried where none are given.
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@outside_inference_mode
@one_at_a_time
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    loader: Iterable[Any],
    *,
    what: str = "filters",
    ratios: Sequence[float] = RATIOS,
    criterion: str | Callable[[Request], Floats] = "magnitude",
    dataloader: Iterable[Any] | None = None,
    layers: Iterable[str] = ("*",),
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    directory: str | os.PathLike[str] | None = None,
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
    directory:
        Keeps what is measured; a sweep that was stopped and is called again with the same arguments goes on from there.
    seed:
        For criteria that draw.
    progress:
        Called as ``progress("sweep", cuts done, cuts in all)``.

    Raises
    ------
    SelectionError
        If `what` is unknown, a ratio is out of range, or `layers` match nothing.
    NothingToCutError
        If no channel of the model may go.
    CheckpointError
        If `directory` holds another sweep.
    BusyError
        If another run is at work there.
    ScoreError, TuningError
        As :func:`surgeon.score` and :func:`surgeon.tune`.
    """
    module = check_model(model)
    _check(what, ratios)
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    name, _ = find_criterion(criterion)
    graph = None if what == "weights" else tried(channel_graph(trace(module, Inputs.of(example_inputs))), seed)
    _check_layers(module, graph, layers)
    with together("a sweep"), locked(directory if first() else None):
        folder = None if directory is None else Path(directory)
        judge = Judge(loader, Objective(loss_fn, forward_loss), progress or (lambda *_: None), folder)
        dense = judge(module)
        chosen = sorted({float(ratio) for ratio in ratios})
        # The dense model's loss stands for its weights and for the data.
        judge.goes_on({"what": what, "criterion": name, "seed": seed, "loss": f"{dense.loss:.6g}"})
        if graph is None:
            curves = sweep_weights(copied(module, {}), chosen, layers, judge)
            return Sensitivity(what, "magnitude", dense, tuple(curves))
        batches = loader if dataloader is None else dataloader
        scores = score(graph, criterion, batches, loss_fn, forward_loss=forward_loss, seed=seed)
        sweep = FilterSweep(module, graph, scores, chosen, judge, seed)
        return Sensitivity(what, scores.criterion, dense, tuple(sweep.curves(layers)))


def _check_layers(model: nn.Module, graph: ChannelGraph | None, layers: Sequence[str]) -> None:
    """Refuse globs that fit nothing before anything is measured."""
    if graph is not None:
        check_any(swept(graph, layers), layers)
    else:
        check_any([weight for weight in find_maskable(model)[0] if matching([weight.name], layers)], layers)


def _check(what: str, ratios: Sequence[float]) -> None:
    if what not in ("filters", "weights"):
        raise SelectionError(f"what={what!r}: expected 'filters' or 'weights'")
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise SelectionError(f"ratios={list(ratios)}: expected at least one, each above 0 and below 1, such as 0.5")
