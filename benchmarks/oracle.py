"""Random networks with random plans, by seed: are any cut wrongly?

    python -m benchmarks.oracle --count 1000 --seconds 3000

Each seed's outcome is a line of ``benchmarks/results/oracle.jsonl``; a run that was stopped goes on where it was, and
lines that belong to other source code don't count. The summary is ``benchmarks/results/oracle.json``. Exits with 1 if
any network was cut wrongly or crashed, 2 if the time ran out first.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.judge import Outcome, judge_seed, sample_cut
from tests.networks import sample_network

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEED_SECONDS = 120  # a network that takes longer counts as crashed

Row = dict[str, Any]


class Overdue(BaseException):
    """A network took too long; no ``Exception``, so that nothing on the way up swallows it."""


def fingerprint() -> str:
    """A hash of the code under test and of the code that tests it."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted([*ROOT.glob("surgeon/**/*.py"), *ROOT.glob("tests/blocks/*.py"), *ROOT.glob("tests/[njo]*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def finished(path: Path, code: str) -> dict[int, Row]:
    """The rows of this very code; a line torn by an interruption is skipped."""
    rows: dict[int, Row] = {}
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("code") == code:
            rows[row["seed"]] = row
    return rows


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise `Overdue` in the main thread after `seconds` of the processor's time: a busy machine is no fault here."""

    def overdue(*_: Any) -> None:
        raise Overdue

    before = signal.signal(signal.SIGPROF, overdue)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(seed: int, extended: bool, code: str) -> Row:
    """Judge one seed."""
    start = time.process_time()
    try:
        with limit(SEED_SECONDS):
            outcome = judge_seed(seed, extended)
    except Overdue:
        outcome = Outcome("crash", f"took longer than {SEED_SECONDS} CPU seconds")
    row: Row = {"seed": seed, **asdict(outcome), "seconds": round(time.process_time() - start, 3), "code": code}
    if outcome.status != "exact":
        row |= {"spec": json.loads(sample_network(seed, extended).to_json()), "cut": asdict(sample_cut(seed, extended))}
    return row


def summary(rows: Sequence[Row], extended: bool, code: str) -> Row:
    """What the rows say together."""
    exact = [row for row in rows if row["status"] == "exact"]
    parts = collections.Counter(part.kind for row in rows for part in sample_network(row["seed"], extended).parts)
    return {
        "networks": len(rows),
        "statuses": dict(collections.Counter(row["status"] for row in rows)),
        "worst_error": max((row["error"] for row in exact), default=None),
        "unproven": [row["seed"] for row in exact if not row["proven"]],
        "invisible": [row["seed"] for row in exact if row["effect"] < 1e-6],
        "refused": dict(collections.Counter(row["detail"] for row in rows if row["status"] == "refused")),
        "failures": [row for row in rows if row["status"] in ("wrong", "crash")],
        "blocks": dict(parts.most_common()),
        "whole": dict(collections.Counter(text for row in exact for text in row["whole"]).most_common()),
        "seconds": {"sum": round(sum(row["seconds"] for row in rows), 1), "max": max(row["seconds"] for row in rows)},
        "grammar": "extended" if extended else "basic",
        "tolerance": "1e-9 of each output's largest value, float64",
        "code": code,
        "command": "python -m benchmarks.oracle " + shlex.join(sys.argv[1:]),
        "device": f"cpu, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, value: Row) -> None:
    """Write beside, then rename, so that a reader never sees half a file; paths are those within the repository."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(value, indent=1).replace(f"{ROOT}{os.sep}", "") + "\n")
    beside.replace(path)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prune random networks and judge each by the oracle.")
    parser.add_argument("--count", type=int, default=1000, help="how many networks (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; run again to go on")
    parser.add_argument("--extended", action="store_true", help="blocks beyond convolutional networks as well")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


def main() -> int:
    """Run what is missing, write the summary, return the exit code."""
    chosen, code, start = options(), fingerprint(), time.monotonic()
    torch.set_num_threads(1)
    chosen.results.mkdir(parents=True, exist_ok=True)
    stem = "oracle_extended" if chosen.extended else "oracle"
    log = chosen.results / f"{stem}.jsonl"
    rows = finished(log, code)
    seeds = range(chosen.start, chosen.start + chosen.count)
    with log.open("a") as file:
        for seed in seeds:
            if seed in rows:
                continue
            if time.monotonic() - start > chosen.seconds:
                break
            rows[seed] = run(seed, chosen.extended, code)
            file.write(json.dumps(rows[seed]) + "\n")
            file.flush()
            if rows[seed]["status"] in ("wrong", "crash"):
                print(f"seed {seed}: {rows[seed]['status']}: {rows[seed]['detail']}", file=sys.stderr)
    done = [rows[seed] for seed in seeds if seed in rows]
    if not done:
        return 2
    result = summary(done, chosen.extended, code)
    write(chosen.results / f"{stem}.json", result)
    print(json.dumps({key: result[key] for key in ("networks", "statuses", "worst_error", "seconds")}))
    if result["failures"]:
        return 1
    return 0 if len(done) == len(seeds) else 2


if __name__ == "__main__":
    sys.exit(main())
