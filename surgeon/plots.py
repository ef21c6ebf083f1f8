"""Pictures of results, with matplotlib (the extra ``[plots]``), which is loaded when one is drawn."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.utils import make_grid

from surgeon.errors import InputError
from surgeon.experiments import Compared
from surgeon.files import write_beside
from surgeon.finegrained.layers import find_weights
from surgeon.sweeps import WHOLE, Sensitivity
from surgeon.trainer import Row

__all__ = [
    "check",
    "curves",
    "drawn",
    "errors",
    "figure",
    "filters",
    "fronts",
    "sensitivity_curves",
    "weight_histograms",
]

_KINDS = ("png", "svg", "pdf")
_MOST_LAYERS, _COLUMNS = 24, 4  # of which weights are drawn
_BINS = 80


def check(path: str | os.PathLike[str]) -> None:
    """Whether this can be drawn, for those who work long before they draw it.

    Raises
    ------
    InputError
        If the suffix is none of png, svg and pdf, or matplotlib isn't installed.
    """
    _kind(path)
    figure()


def _kind(path: str | os.PathLike[str]) -> str:
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in _KINDS:
        raise InputError(f"{path}: a plot is written as .{', .'.join(_KINDS)}")
    return kind


def figure(columns: int = 1, *, width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    """A matplotlib figure and its axes in a row, drawn without a screen.

    Raises
    ------
    InputError
        If matplotlib isn't installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise InputError("plots need matplotlib: python -m pip install 'filter-surgeon[plots]'") from problem
    made = Figure(figsize=(width * columns, height), layout="constrained")
    return made, made.subplots(1, columns, squeeze=False)[0]


def drawn(made: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure; the file's suffix says how: png, svg or pdf.

    Raises
    ------
    InputError
        For another suffix.
    OSError
        If it can't be written.
    """
    kind = _kind(path)
    picture = io.BytesIO()  # matplotlib's PDF hides what goes wrong on a disk behind errors of its own
    with write_beside(path) as temporary:
        made.savefig(picture, format=kind, dpi=130)
        temporary.write_bytes(picture.getvalue())


def curves(rows: Iterable[Row], path: str | os.PathLike[str]) -> None:
    """Training curves: loss and accuracy by epoch, the frozen phase in front.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`.
    """
    epochs = [row.epoch for row in rows]
    numbers = range(1, len(epochs) + 1)
    made, (losses, accuracies) = figure(2)
    losses.plot(numbers, [e.train_loss for e in epochs], label="training")
    losses.plot(numbers, [_number(e.val_loss) for e in epochs], label="validation")
    losses.set(xlabel="epoch", ylabel="loss")
    accuracies.plot(numbers, [100 * _number(e.val_accuracy) for e in epochs], label="top-1")
    if any(e.val_top5 is not None for e in epochs):
        accuracies.plot(numbers, [100 * _number(e.val_top5) for e in epochs], label="top-5")
    accuracies.set(xlabel="epoch", ylabel="validation accuracy, %")
    for axes in (losses, accuracies):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
        axes.grid(alpha=0.3)
    drawn(made, path)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def sensitivity_curves(found: Sensitivity, path: str | os.PathLike[str]) -> None:
    """Accuracy (or loss) by share removed: one line for each group, a thick one for the whole network.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`.
    """
    made, (axes,) = figure(width=9)
    right = found.dense.accuracy is not None
    for curve in found.curves:
        points = [p for p in curve.points if p.loss is not None]
        if points:
            values = [100 * _number(p.accuracy) if right else _number(p.loss) for p in points]
            style = {"color": "black", "linewidth": 2.5} if curve.name == WHOLE else {"linewidth": 1, "alpha": 0.8}
            axes.plot([100 * p.ratio for p in points], values, marker=".", label=curve.name, **style)
    axes.axhline(100 * _number(found.dense.accuracy) if right else found.dense.loss, color="grey", linestyle=":")
    axes.set(xlabel=f"{found.what} removed, %", ylabel="right, %" if right else "loss")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    drawn(made, path)


def fronts(found: Compared, path: str | os.PathLike[str]) -> None:
    """Error against MACs, parameters and latency, least to greatest of each, with the line of what nothing beats.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`.
    """
    costs = {"macs": ("MMACs", 1e6), "params": ("million parameters", 1e6), "latency": ("ms for one forward", 1e-3)}
    made, columns = figure(len(costs), width=4.5)
    for axes, (cost, (title, unit)) in zip(columns, costs.items(), strict=True):
        for schedule in dict.fromkeys(summary.schedule for summary in found.summaries):
            those = [summary for summary in found.summaries if summary.schedule == schedule]
            means = [100 * (1 - summary.mean) for summary in those]
            spread = [[100 * (s.mean - s.least) for s in those], [100 * (s.most - s.mean) for s in those]]
            spread.reverse()  # the greatest accuracy is the least error
            axes.errorbar([getattr(s, cost) / unit for s in those], means, spread, fmt="o", capsize=3, label=schedule)
        front = found.front(cost)
        axes.plot([getattr(s, cost) / unit for s in front], [100 * (1 - s.mean) for s in front], color="grey", zorder=0)
        axes.set(xlabel=title, ylabel="error, %")
        axes.grid(alpha=0.3)
    columns[0].legend()
    drawn(made, path)


def errors(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Error of several models against MACs and parameters, with the line of what nothing beats.

    Parameters
    ----------
    rows:
        One per model: ``name``, ``accuracy`` (a share), ``macs`` and ``params``.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`.
    """
    made, columns = figure(2)
    for axes, (cost, title) in zip(columns, (("macs", "MMACs"), ("params", "million parameters")), strict=True):
        points = sorted((row[cost] / 1e6, 100 * (1 - _number(row["accuracy"])), str(row["name"])) for row in rows)
        best = [point for number, point in enumerate(points) if all(point[1] < other[1] for other in points[:number])]
        axes.plot([x for x, _, _ in best], [y for _, y, _ in best], color="grey", zorder=0)
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o")
        for x, y, name in points:
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small")
        axes.set(xlabel=title, ylabel="error, %")
        axes.grid(alpha=0.3)
    drawn(made, path)


def weight_histograms(models: Mapping[str, nn.Module], path: str | os.PathLike[str]) -> None:
    """The weights of each convolution and linear layer, those of all models over each other; the largest layers.

    Zeros are left out: a mask's would be higher than all else. How much is not zero stands above each layer.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`; also if no model has such a layer.
    """
    values = {
        name: {w.name: w.value().cpu().float().flatten() for w in find_weights(model)[0]}
        for name, model in models.items()
    }
    sizes = {layer: len(found) for of in reversed(values.values()) for layer, found in of.items()}
    layers = [name for name in sizes if name in sorted(sizes, key=lambda layer: -sizes[layer])[:_MOST_LAYERS]]
    if not layers:
        raise InputError("no convolution or linear layer to draw the weights of")
    rows = -(-len(layers) // _COLUMNS)
    made, _ = figure(width=13, height=2.4 * rows)
    made.clear()
    for number, layer in enumerate(layers):
        axes = made.add_subplot(rows, min(_COLUMNS, len(layers)), number + 1)
        shares = []
        for name, of in values.items():
            found = of.get(layer, torch.zeros(0))
            axes.hist(found[found != 0].numpy(), bins=_BINS, histtype="step", label=name)
            shares += [f"{found.count_nonzero() / len(found):.0%}"] if len(found) else []
        axes.set_title(f"{layer}: {', '.join(shares)} not zero", fontsize="small")
    made.legend(*made.axes[0].get_legend_handles_labels(), loc="outside upper left", fontsize="small")
    drawn(made, path)


def filters(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """The filters of the first convolution as images: in colour where it reads three channels, else their first one.

    Raises
    ------
    InputError, OSError
        As :func:`figure` and :func:`drawn`; also if there is no convolution of images.
    """
    first = next((m.weight.detach().cpu().float() for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise InputError(f"{type(model).__name__} has no convolution of images, whose filters could be drawn")
    columns = math.ceil(math.sqrt(len(first)))
    made, (axes,) = figure(width=6, height=6)
    low, high = first.amin((1, 2, 3), keepdim=True), first.amax((1, 2, 3), keepdim=True)
    shown = (first - low) / (high - low).clamp_min(1e-12)
    shown = shown if shown.shape[1] == 3 else shown[:, :1].expand(-1, 3, -1, -1)
    grid = make_grid(shown, nrow=columns, padding=1, pad_value=1.0)
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{len(first)} filters of {tuple(first.shape[1:])}", fontsize="small")
    drawn(made, path)
