"""surgeon demo: from nothing to a report, a file and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.checkpoint import read_header
from surgeon.data import Preprocess, open_data
from surgeon.tuning import evaluate
from tests.cli_run import Ran, surgeon_cli


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """A quarter of the widths, for the tests' sake."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return surgeon_cli("demo", "--output", folder, "--model", "vgg7_bn-x0.25", "--epochs", 6, "--json"), folder


def test_a_quarter_of_the_macs_at_nearly_the_accuracy(ran: tuple[Ran, Path]) -> None:
    done, _ = ran
    assert done.code == 0, done.err
    report, accuracy = done.json["report"], done.json["accuracy"]
    assert report["macs_after"] <= report["macs_before"] / 4
    assert report["check"]["status"] == "passed"
    assert list(accuracy) == ["cut", "cut and healed", "dense", "fine-tuned"]
    assert accuracy["dense"] > 0.9
    assert accuracy["cut"] < accuracy["cut and healed"]
    assert accuracy["fine-tuned"] > accuracy["dense"] - 0.05  # of the whole widths: within a point


def test_the_file_is_the_network_that_was_judged(ran: tuple[Ran, Path]) -> None:
    done, folder = ran
    file = folder / "small.safetensors"
    small, origin = surgeon.load(file), read_header(file).origin
    assert origin is not None
    made = Preprocess.from_dict(origin["preprocess"])
    images = open_data("digits").test
    assert made is not None
    assert images is not None
    seen = evaluate(small, surgeon.data.batches(images, made, 64))
    assert seen.accuracy == pytest.approx(done.json["accuracy"]["fine-tuned"])
    assert surgeon_cli("inspect", file).code == 0


def test_the_calls_that_it_says_do_it(ran: tuple[Ran, Path], tmp_path: Path) -> None:
    done, folder = ran
    calls = [line.strip().removeprefix(">>> ") for line in done.err.splitlines() if line.strip().startswith(">>> ")]
    assert sum("surgeon." in call for call in calls) > 10
    text = re.sub(r"epochs=\d+", "epochs=1", "\n".join(calls)).replace(str(folder), str(tmp_path))
    exec(compile(text, "demo", "exec"), {"surgeon": surgeon, "torch": torch})  # as a reader would
    assert surgeon_cli("inspect", tmp_path / "small.safetensors").code == 0
    assert "fine-tuned" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_shows_accuracy_latency_and_scores(ran: tuple[Ran, Path]) -> None:
    page = (ran[1] / "report.html").read_text(encoding="utf-8")
    for told in ("fine-tuned", "batch size 64", "vgg7_bn-x0.25 on handwritten digits", "features.0"):
        assert told in page


def test_threads_are_as_before(ran: tuple[Ran, Path]) -> None:
    del ran
    assert torch.get_num_threads() == 1  # tests/conftest.py


def test_another_network_that_there_is_not(tmp_path: Path) -> None:
    done = surgeon_cli("demo", "--output", tmp_path, "--model", "vgg8")
    assert done.code == 2
    assert "no network called 'vgg8'" in done.err
