"""Names that the commands give by themselves, and what is checked of files before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from surgeon.errors import InputError
from surgeon_cli.files import check_outputs, named_after, run_folder
from tests.cli_run import surgeon_cli

NAMED = {
    "resnet18": "resnet18-cut",
    "cifar:vgg7_bn-x0.1": "vgg7_bn-x0.1-cut",
    "package.module:factory": "factory-cut",
    "timm:hf_hub/mixer.v1": "mixer.v1-cut",
    "net.safetensors": "net-cut",
    "./net.safetensors": "net-cut",
    "../runs/net.safetensors": "net-cut",
    "/data/runs/net.safetensors": "net-cut",
    "runs/net": "net-cut",
}


@pytest.mark.parametrize("model", NAMED)
def test_what_is_made_of_a_model_is_called_after_it_and_lies_in_the_current_folder(model: str) -> None:
    assert named_after(model, "cut") == NAMED[model]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("a/net.safetensors", "a/net"),
        ("grid.toml", "grid"),
        ("grid.json", "grid"),
        ("net", "net-run"),
        ("net-x0.1", "net-x0.1-run"),
    ],
)
def test_a_runs_folder_is_never_the_file_that_it_makes(file: str, folder: str) -> None:
    assert run_folder(Path(file)) == Path(folder)


def test_what_is_written_is_not_the_folder_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="net: the run's folder"):
        check_outputs([tmp_path / "net"], folder=tmp_path / "x" / ".." / "net")
    check_outputs([tmp_path / "net.safetensors"], folder=tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_plot_that_cannot_be_drawn_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_outputs([], plots=[tmp_path / "curves.PNG", None])
    with pytest.raises(InputError, match=r"curves\.xyz: a plot is written as \.png, \.svg, \.pdf"):
        check_outputs([], plots=[tmp_path / "curves.xyz"])
    with pytest.raises(click.UsageError, match="two things"):
        check_outputs([tmp_path / "a.png"], plots=[tmp_path / "a.png"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="plots need matplotlib"):
        check_outputs([], plots=[tmp_path / "curves.png"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--model", "cifar:vgg7_bn-x0.1", "--data", "digits", "--epochs", 1, "--plot"),
        ("evaluate", "resnet18", "--data", "digits", "--plot"),
        ("evaluate", "resnet18", "--data", "digits", "--histograms"),
        ("sensitivity", "--model", "resnet18", "--plot"),
        ("compare", "--model", "resnet18", "--experiment", "grid.json", "--plot"),
        ("inspect", "resnet18", "--filters"),
    ],
)
def test_every_command_that_draws_checks_so(
    words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("surgeon_cli.models.resolve", lambda *_, **__: pytest.fail("the model was made"))
    ran = surgeon_cli(*words, "plot.xyz")
    assert (ran.code, "plot.xyz: a plot is written as" in ran.err) == (2, True), ran.err
    assert not list(tmp_path.iterdir())
