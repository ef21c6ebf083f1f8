"""README's tables of coverage: how many models came out right, what the other tool makes of them, and in what time."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator
from typing import Any

from tables import Results, grid

WORDS = {"right": "right", "refused": "refused, with the reason", "wrong": "wrong", "unproven": "unproven"}
PEER = "Torch-Pruning 1.6.1"


def coverage(found: Results) -> str:
    """Models by what came of them, and lines about the other tool where it was run."""
    rows = [row for row in found["rows"].values() if "ours" in row]
    counts = collections.Counter(WORDS.get(row["ours"]["status"], "not finished in time") for row in rows)
    shown = dict.fromkeys(("right", "refused, with the reason", "wrong", *counts))
    table = grid(["models, half of every group cut", "count"], [[word, str(counts[word])] for word in shown])
    errors = [row["ours"]["check"]["error"] for row in rows if "check" in row["ours"]]
    right = f"Right: equal at every node to the silenced dense model, float64; the largest error is {max(errors):.0e}."
    late = [name for name, row in found["rows"].items() if row.get("ours", {}).get("status") == "timeout"]
    lines = [right, *([f"Not finished in time: {', '.join(late)}."] if late else []), *beside(found)]
    return table + "\n\n" + "\n".join(lines)


def beside(found: Results) -> Iterator[str]:
    """What the other tool does with the same models: how many run, what it leaves, how long it takes."""
    theirs = {name: row["theirs"] for name, row in found["rows"].items() if "theirs" in row}
    runs = [name for name, row in theirs.items() if row["status"] == "runs"]
    if theirs:
        yield f"{PEER} gives a smaller model that runs for {len(runs)} of {len(theirs)}."
    both = [name for name in runs if "params_left" in found["rows"][name].get("ours", {})]
    if both:
        above = {name: 100 * (left(found, name, "ours") - left(found, name, "theirs")) for name in both}
        worst = max(above, key=lambda name: above[name])
        yield f"Parameters left, ours less theirs: at most {above[worst]:.2f} points ({worst})."
    yield from pace({name: row["race"] for name, row in found["rows"].items() if "race" in row})


def left(found: Results, name: str, side: str) -> float:
    """Share of the parameters that one side leaves of a model."""
    share: float = found["rows"][name][side]["params_left"]
    return share


def pace(raced: dict[str, Any]) -> Iterator[str]:
    """CPU time of trace, graph, plan and rewrite beside the other tool's build and step."""
    ratios = [row["ratio"]["median"] for row in raced.values() if "ratio" in row]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        yield f"CPU time, ours over theirs: {mean:.2f}, geometric mean of the {len(ratios)} where both work."
    slow = [name for name, row in raced.items() if row.get("within") is False]
    if slow:
        yield f"Longer than five forwards and 2 s: {', '.join(slow)}."
