"""surgeon bench: what is compared with what; no test looks at a time."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from surgeon_cli import timing
from tests.cli_run import surgeon_cli

SMALL = "tests.factories:small"


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    file = tmp_path / "s.safetensors"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "magnitude", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    return file


def test_a_file_is_timed_against_its_own_dense_origin(pruned: Path) -> None:
    words = ("--model", SMALL, "--rounds", 3, "--threads", 1, "--device", "cpu", "--batch-size", 1, "--batch-size", 3)
    ran = surgeon_cli("bench", pruned, *words, "--json")
    assert ran.code == 0, ran.err
    results = ran.json["results"]
    assert [(r["device"], r["batch_size"], r["threads"]) for r in results] == [("cpu", 1, 1), ("cpu", 3, 1)]
    dense, small = results[0]["models"]
    assert dense["base"] is None
    assert small["base"] == dense["name"]
    assert small["params"] < dense["params"]
    assert len(small["samples"]) == 3
    assert small["speed_up"]["low"] <= small["speed_up"]["ratio"] <= small["speed_up"]["high"]


def test_files_of_one_origin_share_the_dense_model(pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    again = shutil.copy(pruned, tmp_path / "more" / pruned.name)
    words = ("--model", SMALL, "--rounds", 2, "--device", "cpu", "--json")
    (result,) = surgeon_cli("bench", pruned, again, *words).json["results"]
    dense = f"dense of {pruned}"
    assert [(row["name"], row["base"]) for row in result["models"]] == [
        (dense, None), (str(pruned), dense), (str(again), dense),
    ]  # fmt: skip


def test_models_are_compared_with_the_first() -> None:
    words = ("--image-size", 16, "--rounds", 2, "--device", "cpu")
    ran = surgeon_cli("bench", SMALL, "tests.factories:tied", *words)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    for told in ("median ms", "quartiles ms", "images/s", "speed-up"):
        assert told in ran.err


def test_files_are_compared_with_a_model_that_is_named(pruned: Path) -> None:
    words = ("--against", "tests.factories:two_classes", "--model", SMALL, "--rounds", 2, "--device", "cpu")
    ran = surgeon_cli("bench", pruned, *words, "--json")
    assert ran.code == 0, ran.err
    (result,) = ran.json["results"]
    assert [(row["name"], row["base"]) for row in result["models"]] == [
        ("tests.factories:two_classes", None),
        (str(pruned), "tests.factories:two_classes"),
    ]


def test_layers_and_files_with_tables(pruned: Path, tmp_path: Path) -> None:
    page, tables = tmp_path / "b.html", tmp_path / "b.md"
    words = ("--model", SMALL, "--rounds", 2, "--device", "cpu", "--channels-last", "--fold-bn", "--layers", "--json")
    ran = surgeon_cli("bench", pruned, *words, "--html", page, "--markdown", tables)
    assert ran.code == 0, ran.err
    (result,) = ran.json["results"]
    assert (result["layout"], result["fold_bn"], result["dtype"]) == ("channels_last", True, "float32")
    assert [row["name"] for row in result["layers"]] == ["first", "norm", "second", "head"]
    assert all(seconds > 0 for row in result["layers"] for seconds in row["seconds"].values())
    assert "torch" in result["versions"]
    assert ran.json["about"]["command"].startswith("surgeon")
    assert f"| {pruned} |" in tables.read_text(encoding="utf-8")
    assert "batch norms folded" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="no onnx extra")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile has no C++ compiler here")
def test_every_back_end_computes_what_eager_does_and_stands_in_the_same_table(pruned: Path) -> None:
    backends = ("--backend", "eager", "--backend", "compile", "--backend", "onnxruntime")
    ran = surgeon_cli("bench", pruned, "--model", SMALL, "--rounds", 2, "--device", "cpu", *backends, "--json")
    assert ran.code == 0, ran.err
    results = {result["backend"]: result["models"] for result in ran.json["results"]}
    assert list(results) == ["eager", "compile", "onnxruntime"]
    for name, (dense, small) in results.items():
        assert small["speed_up"]["base"] == dense["name"]
        for row in (dense, small):
            assert row["difference"] is None if name == "eager" else row["difference"] < 1e-4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "MODEL_OR_FILE"),
        (("gone.safetensors",), "No such file"),
        (("/nosuch.st",), "/nosuch.st: No such file"),
        ((SMALL, SMALL), "twice"),
        ((SMALL, "--rounds", 0), "--rounds"),
        ((SMALL, "--device", "abacus"), "abacus"),
        ((SMALL, "--backend", "abacus"), "abacus"),
        ((SMALL, "--html", "no/b.html"), "no such folder"),
    ],
)
def test_bad_input(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli("bench", *words)
    assert ran.code == 2
    assert told in ran.err


def test_each_condition_is_shown_when_it_is_done(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = timing.measure

    def stopped(models: Any, device: Any, conditions: Any, *rest: Any, **options: Any) -> Any:
        if conditions.batch_size == 2:
            raise KeyboardInterrupt
        return measure(models, device, conditions, *rest, **options)

    monkeypatch.setattr(timing, "measure", stopped)
    words = ("--model", SMALL, "--rounds", 2, "--device", "cpu", "--batch-size", 1, "--batch-size", 2)
    ran = surgeon_cli("bench", pruned, *words)
    assert ran.code == 130
    assert "batch 1" in ran.err
    assert "stopped" in ran.err


def test_a_file_is_timed_and_looked_at_with_images_of_the_size_that_is_asked_for(pruned: Path) -> None:
    """The file remembers 16 pixels."""
    words = ("--factory", SMALL, "--rounds", 1, "--device", "cpu", "--json")
    for asked, size in (((), 16), (("--image-size", 24), 24)):
        inputs = surgeon_cli("bench", pruned, *words, *asked).json["inputs"]
        assert [spec["args"]["list"][0]["tensor"] for spec in inputs.values()] == [[1, 3, size, size]] * 2
    against = ("--against", "tests.factories:two_classes", "--image-size", 24)
    inputs = surgeon_cli("bench", pruned, *words, *against).json["inputs"]
    assert [spec["args"]["list"][0]["tensor"] for spec in inputs.values()] == [[1, 3, 24, 24]] * 2


def test_time_of_the_processor(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: float(next(clock)))
    words = ("--model", SMALL, "--rounds", 2, "--device", "cpu", "--cpu-time")
    (result,) = surgeon_cli("bench", pruned, *words, "--json").json["results"]
    assert result["cpu_time"] is True
    assert [row["median"] for row in result["models"]] == [1.0, 1.0]
    assert "CPU time, cpu, batch 1" in surgeon_cli("bench", pruned, *words).err


def test_what_the_system_takes_is_told(pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()

    def times() -> os.times_result:
        now = next(seconds)
        return os.times_result((0.8 * now, 0.2 * now, 0.0, 0.0, float(now)))

    monkeypatch.setattr("surgeon.measure.clocks.os.times", times)
    words = ("bench", pruned, "--factory", SMALL, "--rounds", 2, "--device", "cpu")
    told = surgeon_cli(*words).err
    assert "the system takes 20% of" in " ".join(told.split())
    assert "THP_MEM_ALLOC_ENABLE=1" in told
    monkeypatch.setattr("surgeon.measure.clocks.os.times", lambda: os.times_result((0.0,) * 5))
    assert "the system takes" not in surgeon_cli(*words).err
