"""What `surgeon prune` has to say when it is done."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import emit_json, percent_change, reasons, say, size, table, warn

if TYPE_CHECKING:
    import surgeon

    from .subjects import Subject


def show(
    subject: Subject, result: surgeon.Result, written: Path | None, *, as_json: bool, with_plan: bool, healed: bool
) -> None:
    """What a person wants to know, on standard error; with `as_json` all there is, on standard output."""
    from torch import fx

    from surgeon.checkpoint import is_followed

    report = result.report.to_dict()
    file_bytes = written.stat().st_size if written else None
    if as_json:
        emit_json(
            {
                "model": subject.name,
                "weights": subject.weights,
                "report": report,
                "plan": json.loads(result.plan.to_json()),
                "output": None if written is None else str(written),
                "file_bytes": file_bytes,
            }
        )
    _show_widths(subject.name, report["layers"])
    table("", ("", "before", "after", "change"), _totals(report))
    if report["timing"] is not None:
        _show_timing(report["timing"])
    reasons(report["pinned"])
    _show_doubts(report, subject.warnings)
    say(_check_line(report["check"]))
    if report["healing"]:
        say(_healing_line(report["healing"]))
    say(_file_line(written, file_bytes, is_followed(subject.origin) or isinstance(result.model, fx.GraphModule)))
    if with_plan and not as_json:
        _show_plan(result.plan.removed.items())
    if not healed:
        say(_next_line(written))


def _show_widths(name: str, layers: list[dict[str, Any]]) -> None:
    rows = [(row["name"], row["type"], row["before"], row["after"]) for row in layers]
    changed = [(*row, f"-{row[2] - row[3]}") for row in rows if row[2] != row[3]]
    table(
        f"{name}: out-channels, {len(changed)} of {len(rows)} layers changed",
        ("layer", "type", "before", "after", "removed"),
        changed,
        left=2,
    )


def _show_doubts(report: dict[str, Any], told: Collection[str]) -> None:
    """Notes and warnings, but those that were told before the cut."""
    for note in report["notes"]:
        say(f"note: {note}")
    for warning in [w for w in report["warnings"] if w not in told]:
        warn(warning)
    if report["check"] is not None and report["check"]["status"] != "passed":
        warn("the check could not prove the cut right everywhere; compare the two models before you rely on it")


_COUNTS = (("filters", "convolution filters"), ("macs", "MACs (1 multiply-add = 1)"), ("params", "parameters"))


def _totals(report: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for key, title in _COUNTS:
        before, after = report[f"{key}_before"], report[f"{key}_after"]
        yield title, f"{before:,}", f"{after:,}", percent_change(before, after)
    before, after = report["bytes_before"], report["bytes_after"]
    yield "parameters and buffers", size(before), size(after), percent_change(before, after)


def _show_timing(timing: dict[str, Any]) -> None:
    """Time before and after: predicted from the latency table, and measured on the models themselves."""
    measured, ratio = timing["measured"], timing["speed_up"]
    dense, small = measured["latencies"]

    def milliseconds(seconds: float) -> str:
        return f"{1000 * seconds:.2f} ms"

    rows = [
        ("predicted", *(milliseconds(timing["predicted"][name]) for name in ("dense", "small"))),
        ("measured, median", milliseconds(dense["median"]), milliseconds(small["median"])),
        ("quartiles", *(f"{1000 * row['low']:.2f} to {1000 * row['high']:.2f} ms" for row in (dense, small))),
    ]
    table(
        f"time of one forward: {measured['device']}, batch {measured['conditions']['batch_size']}, "
        f"{measured['threads']} threads, {measured['conditions']['dtype']}",
        ("", "before", "after"), rows,
    )  # fmt: skip
    limit = f"; asked: {timing['asked']} ({milliseconds(timing['limit'])})" if timing["limit"] is not None else ""
    say(f"measured speed-up: {ratio['ratio']:.2f}x (95 %: {ratio['low']:.2f} to {ratio['high']:.2f}){limit}")
    if timing["noisy"]:
        warn("the machine was busy while it was timed (quartiles more than 10 % of the median apart): time it again")


def _check_line(check: dict[str, Any] | None) -> str:
    if check is None:
        return "check: not done (--no-verify)"
    errors = f"largest error {check['error']:.1e}, on your own weights {check['own_error']:.1e}"
    facts = f"{check['nodes']} places compared, {errors}"
    if check["status"] == "passed":
        return f"check: passed ({facts})"
    stopped = f" (stopped at {check['stopped']})" if check.get("stopped") else ""
    return f"check: {check['status'].upper()} ({facts}); not compared: {', '.join(check['unproven'][:4])}{stopped}"


def _healing_line(layers: list[dict[str, Any]]) -> str:
    changed = [row for row in layers if row["healed"] < row["sliced"]]
    left = statistics.median(row["healed"] / row["sliced"] for row in changed) if changed else 1.0
    return f"healed: {len(changed)} of {len(layers)} layers; their error on held-out images fell to {left:.0%} (median)"


def _file_line(written: Path | None, file_bytes: int | None, alone: bool) -> str:
    if written is None:
        return "dry run: no model written"
    factory = "" if alone else ", factory=...), a callable that makes the dense model"
    call = f"surgeon.load({str(written)!r}" + (factory or ")")
    return f"written: {written} ({size(file_bytes or 0)}); open it with {call}"


def _next_line(written: Path | None) -> str:
    """What to do about a model that was cut, and nothing else."""
    seen = "" if written is None else f"; surgeon evaluate {written} --data DIR shows how accurate it is"
    return (
        "next: nothing made up for the cut yet: add --heal lstsq (no labels, no training), or train on --data DIR with "
        f"--epochs N, in several --steps N{seen}"
    )


def _show_plan(removed: Any) -> None:
    say("plan (group: channels that go):")
    for group, channels in removed:
        say(f"  {group}: {', '.join(str(channel) for channel in channels)}")
