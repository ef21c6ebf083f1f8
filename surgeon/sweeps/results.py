"""What a sweep finds, as data: points of curves, curves of groups."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

from surgeon.tuning import Validation

__all__ = ["WHOLE", "Curve", "Point", "Sensitivity"]

#: Name of the curve of everything together.
WHOLE = "whole network"


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
        """All of it, as values that JSON can hold."""
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
