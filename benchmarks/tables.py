"""What README's tables are written with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ranged(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the least and the greatest behind it."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def level_cell(group: Sequence[Results], level: str) -> str:
    """One level of healing over the seeds."""
    values = [row["top1"][level] for row in group if level in row["top1"]]
    return ranged(values) if values else "-"


def quartiles(found: Results, factor: float = 1.0, digits: int = 2) -> str:
    """The median, and the quartiles behind it."""
    middle, low, high = (f"{factor * found[name]:.{digits}f}" for name in ("median", "q1", "q3"))
    return middle if found["n"] == 1 else f"{middle} ({low} to {high})"


def mean_top1(rows: Iterable[Results], case: tuple[str, float, str, str], level: str) -> float:
    """The mean over the seeds of one case, its network, speed-up, tool and criterion, cut in one step."""
    names = ("network", "speedup", "tool", "criterion")
    found = [row["top1"] for row in rows if tuple(row[name] for name in names) == case and row.get("steps", 1) == 1]
    return statistics.fmean(top1[level] for top1 in found if level in top1)


def outcomes(found: Results) -> dict[str, int]:
    """Random networks by what came of them; "noticed": the check refused a first cut, and another one came back."""
    statuses = dict(found["statuses"])
    noticed = sum("only the check noticed" in row["detail"] for row in found["failures"])
    return {**statuses, "noticed": noticed, "wrong": statuses.get("wrong", 0) - noticed}
