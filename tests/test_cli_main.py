"""The program itself: help, version, suggestions, exit codes."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from surgeon import errors
from surgeon_cli.main import cli, told
from surgeon_cli.options import MODELS
from tests.cli_run import commands

COMMANDS = cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_listed_with_one_line_of_help(name: str) -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    line = next(line for line in output.splitlines() if line.split()[:1] == [name])
    assert line.endswith(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    command = commands().get_command(click.Context(commands()), name)
    assert command is not None
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert options
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("width", [40, 100])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_stands_on_one_line_of_the_help(name: str, width: int) -> None:
    command = commands().get_command(click.Context(commands()), name)
    assert command is not None
    written = re.search(r"Example: surgeon .*", command.help or "")
    assert written is not None
    for _ in range(2):  # whoever asks twice gets the same
        shown = CliRunner().invoke(cli, [name, "--help"], terminal_width=width).output
        assert [line.strip() for line in shown.splitlines() if "Example:" in line] == [written[0]]


@pytest.mark.parametrize("name", COMMANDS)
def test_models_are_called_the_same_in_all_commands(name: str) -> None:
    shown = " ".join(CliRunner().invoke(cli, [name, "--help"], terminal_width=100).output.split())
    assert "{" not in shown
    if "MODEL_OR_FILE" in shown or "--model MODEL" in shown:
        assert MODELS in shown


def test_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["prnue"])
    assert result.exit_code == 2
    assert "Did you mean 'prune'?" in result.stderr


def test_unknown_command_far_from_all_lists_them() -> None:
    result = CliRunner().invoke(cli, ["zzz"])
    assert result.exit_code == 2
    assert ", ".join(COMMANDS) in result.stderr


def test_unknown_option_suggests_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["prune", "--fliters", "3"])
    assert result.exit_code == 2
    assert "--filters" in result.stderr


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("surgeon, version ")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.BudgetError("too much"), 2),
        (errors.ModelError("no model"), 2),
        (errors.VerificationError("layer1 differs"), 1),
        (errors.InexactError("layer1 differs, and is all there is"), 1),
        (errors.NothingToCutError("all is pinned"), 2),
        (errors.TuningError("no such optimizer"), 2),
        (errors.DivergenceError("the loss is not finite"), 1),
        (errors.ExportError("nobody can write this"), 2),
        (errors.InexactExportError("computes something else"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), 1),
        (OSError(errno.EIO, "Input/output error", "/data/x"), 1),
        (OSError(errno.ENOENT, "No such file or directory", "/data/x"), 2),
        (OSError("no number at all"), 2),
    ],
)
def test_errors_become_one_message_and_a_code(raised: Exception, code: int) -> None:
    with pytest.raises(click.ClickException) as caught, told():
        raise raised
    assert caught.value.exit_code == code
    assert str(raised.args[-1]) in caught.value.message


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), told():
        raise ZeroDivisionError


def test_main_module_is_what_the_script_calls(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgeon_cli.main import main

    monkeypatch.setattr(sys, "argv", ["surgeon", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "surgeon, version" in capsys.readouterr().out


def test_a_device_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon_cli.runtime import pick_device

    asked: list[str] = []

    def zeros(_size: int, *, device: torch.device) -> None:
        asked.append(str(device))

    monkeypatch.setattr(torch, "zeros", zeros)  # no GPU is needed to see that it is tried out
    assert [str(pick_device(name)) for name in ("cpu", "cuda:1")] == asked == ["cpu", "cuda:1"]
    for there, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert str(pick_device("auto")) == name
    with pytest.raises(errors.InputError, match="--device nonsense can't be used here"):
        pick_device("nonsense")


def test_what_is_stopped_says_so_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_self: click.Command, _ctx: click.Context) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Command, "invoke", stop)
    ran = CliRunner().invoke(cli, ["device"])
    assert ran.exit_code == 130
    assert ran.stderr == "stopped; nothing half-written is left; the same command starts again\n"


@pytest.mark.parametrize("words", [
    ("prune", "--filters", "2", "--model"), ("train", "--data", "digits", "--epochs", "1", "--model"), ("bench",),
    ("evaluate", "--data", "digits"), ("inspect",), ("share", "--model"), ("sensitivity", "--model"),
])  # fmt: skip
def test_a_file_that_is_not_there_is_missed_before_torch_is_loaded(words: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from surgeon_cli.main import cli\ntry: cli(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *words, "surgeon-demo/small.safetensors"], capture_output=True, text=True,
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.endswith(
        "Error: surgeon-demo/small.safetensors: No such file or directory; surgeon demo makes it\n"
    )
    assert ran.stdout == "False\n"
