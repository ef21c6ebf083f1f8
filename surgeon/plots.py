"""Pictures of results, with matplotlib (the extra ``[plots]``), which is loaded when one is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgeon.checkpoint import write_beside
from surgeon.errors import InputError
from surgeon.experiments import Compared
from surgeon.sweeps import WHOLE, Sensitivity
from surgeon.trainer import Row

__all__ = ["curves", "drawn", "figure", "fronts", "sensitivity_curves"]

_KINDS = ("png", "svg", "pdf")


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
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in _KINDS:
        raise InputError(f"{path}: a plot is written as .{', .'.join(_KINDS)}")
    with write_beside(path) as temporary:
        made.savefig(temporary, format=kind, dpi=130)


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
