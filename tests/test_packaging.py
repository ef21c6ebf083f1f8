"""What is installed: built into a wheel, put into a clean place, run from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "surgeon", "cli")


def run(*words: str, cwd: Path, **extra: str) -> str:
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}, **extra}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(target), ".")
    run(*pip, cwd=source)
    (built,) = target.glob("filter_surgeon-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("installed")
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        str(place),
        str(wheel),
    )
    run(*pip, cwd=place)
    return place


def test_the_wheel_holds_every_module_and_no_others(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "surgeon").rglob("*.py")}
    expected |= {"surgeon_cli/" + p.relative_to(ROOT / "cli").as_posix() for p in (ROOT / "cli").rglob("*.py")}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "surgeon/pages/templates").iterdir()}
    assert names == expected | {"surgeon/py.typed", "surgeon_cli/py.typed"}


def test_no_package_named_cli_is_installed(installed: Path) -> None:
    assert not (installed / "cli").exists()
    code = "import importlib.util as u, surgeon_cli; print(u.find_spec('cli'), surgeon_cli.__file__)"
    told = run(sys.executable, "-c", code, cwd=installed, PYTHONPATH=str(installed))
    assert told.startswith("None ")
    assert str(installed) in told


def test_the_console_script_shows_help_without_torch(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "surgeon"
    told = run(sys.executable, "-X", "importtime", str(script), "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "prune" in told
    assert "surgeon_cli.main" in told
    loaded = {
        line.rpartition("|")[2].strip().split(".")[0] for line in told.splitlines() if line.startswith("import time:")
    }
    assert loaded & {"torch", "surgeon", "numpy", "networkx", "rich"} == set()


def test_the_version_is_the_distributions(installed: Path, wheel: Path, tmp_path: Path) -> None:
    told = run(sys.executable, str(installed / "bin" / "surgeon"), "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert told.strip() == f"surgeon, version {wheel.name.split('-')[1]}"


def test_what_the_readme_imports_is_there(installed: Path, tmp_path: Path) -> None:
    code = "import surgeon; print(surgeon.__file__); surgeon.prune; surgeon.load; surgeon.Plan"
    assert str(installed) in run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
