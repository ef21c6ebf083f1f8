"""The scripts under examples/ run as a user would run them, and do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"

#: What each needs beyond surgeon, and what it must print: the figures are held to be what they should.
SCRIPTS: dict[str, tuple[str | None, str]] = {
    "plain_loop": (None, r"cut to (?:39|40)% .*\nepoch 3: (?P<right>[\d.]+)% right"),
    "huggingface_trainer": (
        "transformers", r"small model: (?P<before>[\d.]+)\n(?:.*\n)*two epochs later: (?P<after>[\d.]+)",
    ),
    "lightning_trainer": ("lightning", r"small network, [\d,]+ of [\d,]+ parameters: (?P<right>[\d.]+)%"),
    "widths_in_the_forward": (
        None, r"second keeps its channels: constant .*\n(?:.*\n)*as a graph: second has 8 of 16 .*\n.*True",
    ),
    "timm_model": ("timm", r"check passed\nopened again, it computes the same: True"),
}  # fmt: skip


def test_every_script_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    package, told = SCRIPTS[name]
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    ran = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = re.search(told, ran.stdout)
    assert found is not None, ran.stdout
    figures = {key: float(value) for key, value in found.groupdict().items()}
    assert figures.get("right", 100.0) > 80.0, ran.stdout
    assert figures.get("after", 0.0) < figures.get("before", 1.0), ran.stdout
