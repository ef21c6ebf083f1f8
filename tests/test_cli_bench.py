"""surgeon bench: what is compared with what; no test looks at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_models_are_compared_with_the_first() -> None:
    words = ("--image-size", 16, "--rounds", 2, "--device", "cpu")
    ran = surgeon_cli("bench", SMALL, "tests.factories:tied", *words)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    for told in ("median ms", "quartiles ms", "images/s", "speed-up"):
        assert told in ran.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "MODEL_OR_FILE"),
        (("gone.safetensors",), "No such file"),
        (("/nosuch.st",), "/nosuch.st: No such file"),
        ((SMALL, SMALL), "twice"),
        ((SMALL, "--rounds", 0), "--rounds"),
        ((SMALL, "--device", "abacus"), "abacus"),
    ],
)
def test_bad_input(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli("bench", *words)
    assert ran.code == 2
    assert told in ran.err
