"""Reports as pages: what is in them, and how they look in a browser, on a laptop and on a phone."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import surgeon
from surgeon.deadline import Timing
from surgeon.errors import InputError
from surgeon.measure import latency
from surgeon.pages import numbers, render
from surgeon.pages.lanes import lanes
from surgeon.report.groups import histogram
from tests import factories, pages
from tests.cli_run import surgeon_cli
from tests.test_streaming import Box, Unboxing

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def result() -> surgeon.Result:
    torch.manual_seed(0)
    return surgeon.prune(factories.small().eval(), X, filters=6, criterion="magnitude")


# ---------------------------------------------------------------- what is in them


def test_everything_that_was_found_is_on_the_page(result: surgeon.Result, tmp_path: Path) -> None:
    surgeon.write_report(tmp_path / "r.html", result, title="mine", accuracy={"dense": 0.5})
    text = html.unescape((tmp_path / "r.html").read_text(encoding="utf-8"))
    for row in result.report.layers:
        assert f"{row.before} → {row.after}" in text
    for pin in result.report.pinned:
        assert pin.reason in text
    assert "check passed" in text
    assert "50.0 %" in text
    assert "<title>mine" in text


def test_a_page_asks_for_nothing_from_elsewhere(result: surgeon.Result) -> None:
    text = render(pages.everything(result.report))
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#|data:)", text)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_no_name_is_taken_for_markup(result: surgeon.Result) -> None:
    text = render(pages.hostile(result.report))
    assert text.count("<script>") == 1
    assert 'onerror="' not in text
    assert "{{ 7 * 7 }}" in text
    assert html.escape(pages.HOSTILE[0], quote=False) in text.replace("&#39;", "'")


def test_bins_hold_every_channel_and_the_line_parts_them(result: surgeon.Result) -> None:
    assert result.report.groups
    for group in result.report.groups:
        scores = group.scores
        assert scores is not None
        assert sum(scores.kept) == group.kept
        assert sum(scores.removed) == group.size - group.kept
        if group.kept < group.size:
            assert scores.cut is not None
            assert scores.low <= scores.cut <= scores.high


@pytest.mark.parametrize("width", [0.0, 5e-324, 1e-310, 1e-3, 1.0, 1e300])
def test_bins_of_any_width_count_as_numpy_does(width: float) -> None:
    scores = np.linspace(0, 1, 49) * width
    stays = np.arange(49) % 3 > 0
    found = histogram(scores, stays)
    assert found is not None
    assert (sum(found.kept), sum(found.removed)) == (32, 17)
    if width > 1e-300:  # where the edges of bins can be told apart
        shifted = scores[1::2]  # in the middle of each bin
        whole = histogram(np.concatenate([scores[[0, -1]], shifted]), np.ones(26, dtype=bool))
        assert whole is not None
        assert list(whole.kept) == np.histogram(np.concatenate([scores[[0, -1]], shifted]), 24)[0].tolist()


def test_several_steps_have_no_one_score(result: surgeon.Result) -> None:
    torch.manual_seed(0)
    report = surgeon.prune(factories.small().eval(), X, ratio=0.5, steps=2, criterion="magnitude", verify=False).report
    assert all(group.scores is None for group in report.groups)
    assert "cut at" not in render(pages.facts(report))


def test_what_a_cut_was_timed_by_is_on_its_page(result: surgeon.Result, tmp_path: Path) -> None:
    times = {"dense": torch.nn.Linear(3, 3), "small": torch.nn.Linear(3, 2)}
    found = latency(times, torch.ones(1, 3), rounds=2, warmup=0, threads=1)
    timing = Timing.of(0.5, {"dense": 1.0, "small": 0.4}, found)
    page = tmp_path / "page.html"
    surgeon.write_report(page, dataclasses.replace(result.report, timing=timing))
    text = page.read_text(encoding="utf-8")
    assert 'id="latency' in text
    assert "1 thread" in text


def test_a_file_tells_what_its_plan_did(result: surgeon.Result, tmp_path: Path) -> None:
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    found = surgeon.pages.report_of_file(tmp_path / "s.safetensors", factories.small)
    for name in (
        "layers",
        "filters_after",
        "macs_before",
        "macs_after",
        "params_after",
        "bytes_before",
        "bytes_after",
        "pinned",
    ):
        assert getattr(found, name) == getattr(result.report, name), name
    assert found.check is None
    assert "not checked" in render(pages.facts(found))


def test_a_file_of_a_graph_needs_no_factory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = surgeon.prune(factories.small().eval(), X, filters=6, criterion="magnitude", as_graph=True, verify=False)
    surgeon.save(tmp_path / "g.safetensors", done.model, done.plan)
    found = surgeon.pages.report_of_file(tmp_path / "g.safetensors")
    assert found.filters_after == done.report.filters_after
    assert "the small model alone" in found.notes[0]


def test_a_page_needs_something_to_show(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs something to show"):
        surgeon.write_report(tmp_path / "r.html", None)
    with pytest.raises(InputError, match="got int"):
        surgeon.write_report(tmp_path / "r.html", 3)
    assert list(tmp_path.iterdir()) == []


def test_lanes_of_groups_that_meet_are_apart() -> None:
    def group(name: str, *layers: str) -> dict[str, Any]:
        return {
            "name": name, "size": 2, "kept": 1, "producers": layers[:1], "followers": layers[1:-1],
            "consumers": layers[-1:],
        }  # fmt: skip

    drawing = lanes([group("a", "a", "b", "d"), group("c", "c", "d"), group("e", "e", "f")], list("abcdef"))
    first, second, third = drawing.lanes
    assert first.x != second.x
    assert first.x == third.x
    assert (first.top, first.bottom) == (13, 26 * 3 + 13)
    assert [mark.role for mark in first.marks] == ["produces", "follows", "consumes"]
    assert [row.groups for row in drawing.rows] == [[0], [0], [1], [0, 1], [2], [2]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (numbers.short(999), "999"), (numbers.short(4_089_184_256), "4.09 G"),
        (numbers.short(15_470_264_320), "15.5 G"),
        (numbers.size(527_800_000), "528 MB"), (numbers.size(12), "12 B"), (numbers.time(0.0425), "42.5 ms"),
        (numbers.time(2.5), "2.50 s"), (numbers.time(3.2e-6), "3.20 µs"),
        (numbers.change(50, 100), "\N{MINUS SIGN}50.0 %"),
        (numbers.change(7, 7), "±0 %"),
    ],
)  # fmt: skip
def test_numbers_are_read_easily(given: str, told: str) -> None:
    assert given == told


# ---------------------------------------------------------------- the commands


def test_prune_writes_a_report(tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    words = ("--filters", 3, "--criterion", "magnitude", "--image-size", 16, "--dry-run", "--report", target)
    ran = surgeon_cli("prune", "--model", "tests.factories:small", *words)
    assert ran.code == 0, ran.err
    assert f"report: {target}" in ran.err
    text = target.read_text(encoding="utf-8")
    assert "tests.factories:small, cut by surgeon" in text
    assert "<code>surgeon" in text


def test_report_of_a_file(result: surgeon.Result, tmp_path: Path) -> None:
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    ran = surgeon_cli("report", tmp_path / "s.safetensors", "--model", "tests.factories:small")
    assert ran.code == 0, ran.err
    assert (tmp_path / "s.html").exists()
    refused = surgeon_cli("report", tmp_path / "s.safetensors", "-o", tmp_path / "no" / "r.html")
    assert refused.code == 2
    assert "no such folder" in refused.err


def test_a_file_whose_inputs_a_plan_cannot_describe(tmp_path: Path) -> None:
    box = Box(torch.randn(2, 8))
    result = surgeon.prune(Unboxing().eval(), box, ratio=0.3, criterion="magnitude")
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    surgeon.write_report(tmp_path / "r.html", tmp_path / "s.safetensors", factory=Unboxing, example_inputs=box)
    found = surgeon.pages.report_of_file(tmp_path / "s.safetensors", Unboxing, box)
    assert found.params_after == result.report.params_after
