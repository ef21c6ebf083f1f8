"""Names that the commands give by themselves, and what is checked of files before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from surgeon.errors import InputError
from surgeon_cli.files import check_outputs, named_after, run_folder
from surgeon_cli.wording import by_options
from tests.cli_run import commands, surgeon_cli

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


# ---------------------------------------------------------------- amounts

PRUNE = ("prune", "--model", "tests.factories:small")


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (("--max-macs", "1e9"), 10**9),
        (("--max-macs", "1.5G"), 1_500_000_000),
        (("--max-macs", "2000"), 2000),
        (("--max-macs", "1"), 1),
        (("--max-macs", "0.5"), 0.5),
        (("--max-macs", "50%"), "50%"),
        (("--max-macs", "80%,0.5", "--steps", 2), ("80%", 0.5)),
        (("--ratio", "0.5"), 0.5),
        (("--ratio", "0.2,0.4", "--steps", 2), (0.2, 0.4)),
    ],
)
def test_amounts_are_read(words: tuple[object, ...], read: object, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []
    monkeypatch.setattr("surgeon_cli.commands.prune._run", lambda options: found.extend(options.budget.values()))
    ran = surgeon_cli(*PRUNE, *words)
    assert (ran.code, found) == (0, [read]), ran.err
    assert type(found[0]) is type(read)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-macs", "0"), "'--max-macs': '0': give a count"),
        (("--max-macs", "-5"), "'--max-macs': '-5': give a count"),
        (("--max-macs", "150%"), "'--max-macs': '150%': give a count (2000000, 1.5G) or a share (50%, 0.5)"),
        (("--max-macs", "2.5"), "'--max-macs': '2.5'"),
        (("--max-params", "nan"), "'--max-params': 'nan'"),
        (("--max-params", "80%,inf", "--steps", 2), "'--max-params': 'inf'"),
        (("--ratio", "0.2,nan", "--steps", 2), "'--ratio': 'nan': give a share between 0 and 1, such as 0.5"),
        (("--ratio", "1"), "'--ratio': '1': give a share"),
        (("--ratio", "0.2,0.4"), "--ratio lists 2 amounts, one for each step, and there are 1: give --steps 2"),
        (("--ratio", "0.2,0.4", "--steps", 3), "and there are 3: give --steps 2"),
    ],
)
def test_amounts_that_make_no_sense_are_told_before_the_model_is_made(
    words: tuple[object, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon_cli.models.resolve", lambda *_, **__: pytest.fail("the model was made"))
    ran = surgeon_cli(*PRUNE, *words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ratio", 0.5, "--ignore", "third*"), "--ignore: 'third*' matches no layer of the model"),
        (("--ratio", 0.5, "--unit", "third*"), "--unit: 'third*' matches no layer of the model"),
        (("--max-latency", "abc"), "--max-latency abc: expected a share up to 1 of the dense model's time"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_it_is_ranked_and_timed(
    words: tuple[object, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("score", "timing_of"):
        monkeypatch.setattr(f"surgeon.cutting.{name}", lambda *_, **__: pytest.fail("ranked, or timed"))
    ran = surgeon_cli(*PRUNE, "--image-size", 16, "--samples", 2, "--dry-run", *words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ratio", 0.5, "--min-channels", 1000), "no group has a smaller width (at least --min-channels 1000,"),
        (("--max-macs", "1e-9"), "--max-macs: 1e-09 (0) asked"),
        (("--max-macs", 3), "--max-macs: 3 asked"),
        (("--ratio", 0.001), "--ratio 0.001: no channel has to go"),
        (("--filters", 19), "--filters 19: at most 18 of the model's filters can be removed"),
    ],
)
def test_what_cannot_be_reached_is_told_by_the_options(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli(*PRUNE, "--image-size", 16, "--criterion", "magnitude", "--dry-run", *words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("ratio=0.5: too little", "--ratio 0.5: too little"),
        ("max_macs='50%', max_params=0.5: no", "--max-macs 50%, --max-params 0.5: no"),
        (
            "needs data: pass dataloader=..., or criterion='lamp', which",
            "needs data: pass --data DIR, or --criterion lamp, which",
        ),
        ("filters and max_macs exclude each other", "filters and --max-macs exclude each other"),
        ("use surgeon.prune(..., ratio=0.5) in Python", "use surgeon.prune(..., ratio=0.5) in Python"),
        ("  output: is the output\n  ratio: a layer", "  output: is the output\n  ratio: a layer"),
        ("./output=3.png: no such folder", "./output=3.png: no such folder"),
        ("forward_loss=f: no option", "forward_loss=f: no option"),
    ],
)
def test_errors_of_the_library_name_the_options(message: str, told: str) -> None:
    command = commands().get_command(click.Context(commands()), "prune")
    assert command is not None
    assert by_options(message, command) == told
