"""How much of the field's models surgeon cuts, exactly: all of torchvision, the families of timm, some of transformers.

Each model stands in a process of its own, within a limit of time and memory, with half of every group to remove. The
row says what came of it: ``right`` (the check passed at every node that it compares, and the small model's own forward
runs again), ``unproven``, ``refused`` (with the reason), ``wrong``, ``crash``, ``timeout`` or ``memory``. Weights are
random: neither coverage nor exactness depends on them. Rows go to ``benchmarks/results/coverage_SET.json`` one by one;
a second run goes on, ``--retry`` measures again what isn't right, ``--stale`` what other sources of surgeon gave.

    python benchmarks/coverage.py --set torchvision        # an hour or two
    python benchmarks/coverage.py --set timm --only resnet10t vit_tiny_patch16_224
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common import Table, arguments, output_path, pick_device, run_main, say, source_digest
from confined import Facts, Limits, run_confined
from coverage_zoo import LISTS, names

SIDES = {"ours": Limits(300, 12), "theirs": Limits(180, 8), "race": Limits(480, 12)}
SETTINGS = {"ratio": 0.5, "scope": "local", "criterion": "random"}
GOOD = "right"


def main() -> int:
    """Fill the table, say what it holds; 1 if anything was cut wrongly."""
    options = parse()
    pick_device(options)
    table = opened(options)
    stop = time.monotonic() + 60 * options.minutes
    for name in chosen(options):
        for side in sides(options):
            if time.monotonic() < stop and due(table.rows.get(name, {}).get(side), options):
                row = measure(options, name, side)
                table.put(name, {**table.rows.get(name, {}), side: row})
                say(f"{name}, {side}: {line(row)}")
    print(summary(table.rows))
    return int(any(row.get("ours", {}).get("status") == "wrong" for row in table.rows.values()))


def parse() -> argparse.Namespace:
    """Read the options; one thread unless told otherwise."""
    parser = arguments("Which models are cut, and whether rightly.", "coverage")
    parser.set_defaults(threads=1)
    parser.add_argument("--set", choices=list(LISTS), default="torchvision", help="whose models")
    parser.add_argument("--only", nargs="+", help="these models")
    parser.add_argument(
        "--side",
        choices=[*SIDES, "both"],
        default="ours",
        help="surgeon, Torch-Pruning, their times side by side, or all",
    )
    parser.add_argument("--seconds", type=float, help="limit for one model (default: 300 for ours, 180 for theirs)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so long")
    parser.add_argument("--retry", action="store_true", help="measure again the rows that aren't right")
    parser.add_argument("--stale", action="store_true", help="measure again the rows of other sources of surgeon")
    options = parser.parse_args()
    options.name = f"coverage_{options.set}"
    return options


def opened(options: argparse.Namespace) -> Table:
    """The table with all the rows of earlier runs: each row says itself which sources it is of."""
    device = pick_device(options)
    table = Table(output_path(options), SETTINGS, device)
    if table.path.exists() and not options.fresh:
        old = json.loads(table.path.read_text(encoding="utf-8"))
        table.rows, table.facts = old["rows"], old["facts"]
        say(f"going on with {table.path.name}: {len(table.rows)} rows are there")
    return table


def chosen(options: argparse.Namespace) -> Sequence[str]:
    """The models asked for."""
    known = names(options.set)
    unknown = set(options.only or ()) - set(known)
    if unknown:
        raise SystemExit(f"not in the set {options.set}: {', '.join(sorted(unknown))}")
    return options.only or known[: 3 if options.quick else None]


def sides(options: argparse.Namespace) -> Sequence[str]:
    """The tools asked for."""
    return list(SIDES) if options.side == "both" else [options.side]


def due(row: Facts | None, options: argparse.Namespace) -> bool:
    """Whether a row has to be measured (again)."""
    if row is None:
        return True
    bad = options.retry and row["status"] != GOOD
    return bool(bad or (options.stale and row.get("source") != source_digest()))


def measure(options: argparse.Namespace, name: str, side: str) -> Facts:
    """One row, from a process of its own."""
    limits = Limits(options.seconds or SIDES[side].seconds, SIDES[side].gigabytes)
    words = [options.set, name, side]
    start = time.monotonic()
    facts, end, last = run_confined("coverage_row.py", words, limits, options.threads)
    return finished(facts, end, last) | {"wall_s": round(time.monotonic() - start, 1)}


def finished(facts: Facts, end: str, last: str) -> Facts:
    """The row with what ended the process: a limit that only the oracle met leaves the verdict as it was."""
    stage = facts.pop("stage", "start")
    if not end:
        return facts
    how = f"{end} in {stage}" + f": {last}" * (end == "crash")
    if stage == "oracle":
        return facts | {"oracle": {"silent": how}}
    return facts | {"status": end, "detail": how}


# ---------------------------------------------------------------- in words


def line(row: Facts) -> str:
    """A row on one line."""
    words = [row["status"]]
    if "params_left" in row:
        words.append(f"{row['params_left']:.1%} of the parameters left, {row['seconds']:.1f} s")
    if "check" in row:
        words.append(f"error {row['check']['error']:.0e}, oracle {row.get('oracle')}")
    return ", ".join(words) + (f": {row['detail']}" if row.get("detail") else "")


def summary(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts by status as a markdown table, and whether the rows are of one source."""
    lines = ["| tool | models | " + "by status |", "| --- | ---: | --- |"]
    for side in SIDES:
        found = [row[side] for row in rows.values() if side in row]
        counts = collections.Counter(row["status"] for row in found)
        listed = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        lines += [f"| {side} | {len(found)} | {listed} |"] if found else []
    lines += geometric(rows)
    sources = {row["ours"].get("source") for row in rows.values() if "ours" in row}
    mixed = [f"The rows are of {len(sources)} different sources of surgeon (--stale)."] if len(sources) > 1 else []
    return "\n".join([*lines, "", *mixed]).rstrip()


def geometric(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The geometric mean of our time over theirs where both worked, and who is over five forwards and 2 s."""
    raced = {name: row["race"] for name, row in rows.items() if "ratio" in row.get("race", {})}
    slow = [name for name, row in rows.items() if row.get("race", {}).get("within") is False]
    logs = [math.log(row["ratio"]["median"]) for row in raced.values()]
    mean = (
        [f"Ours takes {math.exp(sum(logs) / len(logs)):.2f} of theirs (geometric mean of {len(logs)})."] if logs else []
    )
    return ["", *mean, *([f"Over 5 forwards + 2 s: {', '.join(slow)}."] if slow else [])]


if __name__ == "__main__":
    run_main(main)
