"""What a comparison finds, as data: cells, their seeds together, the fronts of accuracy against cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from surgeon.experiments.grid import Key

__all__ = ["Cell", "Compared", "Summary", "summaries"]


@dataclass(frozen=True)
class Cell:
    """One finished run.

    `accuracy` is a share of the judging data, or None; `macs` counts a multiply-add as 1; `latency` is the median of
    one forward in seconds, and `speed_up` the dense model's over it, measured interleaved.
    """

    key: Key
    accuracy: float | None
    loss: float
    macs: int
    params: int
    latency: float
    speed_up: float


@dataclass(frozen=True)
class Summary:
    """The seeds of one criterion, budget and schedule together: least, mean and greatest accuracy, mean costs."""

    criterion: str
    budget: tuple[tuple[str, Any], ...]
    schedule: str
    runs: int
    least: float
    mean: float
    most: float
    macs: float
    params: float
    latency: float
    speed_up: float


@dataclass(frozen=True)
class Compared:
    """What :func:`compare` gives back."""

    cells: tuple[Cell, ...]
    summaries: tuple[Summary, ...]

    def front(self, cost: str) -> tuple[Summary, ...]:
        """What nothing beats in mean accuracy and in ``"macs"``, ``"params"`` or ``"latency"`` both; cheapest first."""
        best, kept = float("-inf"), []
        for summary in sorted(self.summaries, key=lambda s: (getattr(s, cost), -s.mean)):
            if summary.mean > best:
                best = summary.mean
                kept.append(summary)
        return tuple(kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the fronts hold positions among the summaries."""
        fronts = {cost: [self.summaries.index(s) for s in self.front(cost)] for cost in ("macs", "params", "latency")}
        return {**asdict(self), "fronts": fronts}


def summaries(cells: Sequence[Cell]) -> Iterator[Summary]:
    """The seeds of each criterion, budget and schedule together."""
    together: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        together[cell.key.criterion, cell.key.budget, cell.key.schedule].append(cell)
    for (criterion, budget, schedule), runs in together.items():
        seen = [run.accuracy if run.accuracy is not None else -run.loss for run in runs]
        means = (sum(getattr(run, n) for run in runs) / len(runs) for n in ("macs", "params", "latency", "speed_up"))
        yield Summary(criterion, budget, schedule, len(runs), min(seen), sum(seen) / len(seen), max(seen), *means)
