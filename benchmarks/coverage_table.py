"""README's tables of coverage: how many models came out right, what the other tool makes of them, and in what time."""

from __future__ import annotations

import collections
import math
import statistics
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
    table = grid(["models, half of every group that can go", "count"], [[word, str(counts[word])] for word in shown])
    errors = [row["ours"]["check"]["error"] for row in rows if "check" in row["ours"]]
    right = f"Right: equal at every node to the silenced dense model, float64; the largest error is {max(errors):.0e}."
    late = [name for name, row in found["rows"].items() if row.get("ours", {}).get("status") == "timeout"]
    lines = [right, *kept(rows), *([f"Not finished in time: {', '.join(late)}."] if late else []), *beside(found)]
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
    raced = {name: row["race"] for name, row in found["rows"].items() if "race" in row}
    yield from pace({name: row for name, row in raced.items() if name in runs})


def kept(rows: list[Results]) -> Iterator[str]:
    """How much was left, and what the second opinion is."""
    shares = sorted(row["ours"]["params_left"] for row in rows if "params_left" in row["ours"])
    above = sum(share > 0.5 for share in shares)
    yield (
        f"Parameters left: {100 * statistics.median(shares):.0f} % in the middle, {100 * shares[-1]:.0f} % at most; "
        f"above half in {above}, where the forward's own numbers hold channels or heads."
    )
    words = [row["ours"].get("oracle", {}) for row in rows]
    agrees, differs = sum("error" in word for word in words), sum("differs" in word for word in words)
    yield (
        "A second opinion by the tests' oracle, which shares no code with the check, on networks of up to 60 million "
        f"parameters: it agrees on {agrees} and can't judge {len(words) - agrees - differs}"
        + (f"; it differs on {differs}" if differs else "")
        + "."
    )


def left(found: Results, name: str, side: str) -> float:
    """Share of the parameters that one side leaves of a model."""
    share: float = found["rows"][name][side]["params_left"]
    return share


def pace(raced: dict[str, Any]) -> Iterator[str]:
    """CPU time of trace, graph, plan and rewrite beside the other tool's build and step."""
    ratios = [row["ratio"]["median"] for row in raced.values() if "ratio" in row]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        yield (
            f"CPU time of the surgery without the check, ours over theirs: {mean:.2f}, geometric mean of the "
            f"{len(ratios)} where both work."
        )
    slow = [name for name, row in raced.items() if row.get("within") is False]
    if slow:
        yield f"Longer than five forwards and 2 s: {', '.join(slow)}."
