"""Commands in hard surroundings: places that can't be written, odd names, signals, pipes that nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

import surgeon
from surgeon.cost.tables import Place, Table, cache_folder
from surgeon.files import LOCK, locked, write_beside
from surgeon_cli.stopping import Ended, Stopped, endable
from tests.cli_run import Ran, surgeon_cli
from tests.pictures import draw

ROOT = Path(__file__).resolve().parent.parent
NET = ("--model", "tests.factories:small", "--image-size", 16, "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prune(output: object, *words: object, model: object = "tests.factories:small") -> Ran:
    given = ("--filters", 4, "--criterion", "magnitude", "--image-size", 16, "--device", "cpu")
    return surgeon_cli("prune", "--model", model, *given, "--output", output, *words)


def is_told(ran: Ran, *words: str) -> None:
    """One error that says this, and exit code 2."""
    assert ran.code == 2, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err


# ---------------------------------------------------------------- places


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc: no folder in which nobody may write")
@pytest.mark.parametrize("words", [
    ("prune", *NET, "--filters", 4, "--output"), ("prune", *NET, "--filters", 4, "--dry-run", "--report"),
    ("inspect", "tests.factories:small", "--dot"), ("export", "tests.factories:small", "--format", "pt2", "-o"),
    ("bench", "tests.factories:small", "--markdown"), ("sensitivity", *NET, "--csv"),
    ("train", *NET, "--data", "digits", "--epochs", 1, "--output"), ("share", *NET, "--output"),
])  # fmt: skip
def test_a_folder_that_can_not_be_written_is_told_before_the_work(words: tuple[Any, ...]) -> None:
    start = time.perf_counter()
    is_told(surgeon_cli(*words, "/proc/self/out"), "/proc/self/out")
    assert time.perf_counter() - start < 20
    assert list(Path().iterdir()) == []


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder() -> None:
    Path("folder").mkdir()
    Path("file").write_text("precious")
    is_told(prune("folder"), "folder: is a folder; give a file name")
    is_told(prune("file/s.safetensors"), "file")
    is_told(prune("gone/s.safetensors"), "gone", "no such folder")
    draw(Path("photos/train"), 6)
    words = ("train", "--model", "tests.factories:two_classes", "--image-size", 16, "--data", "photos", "--epochs", 1)
    is_told(surgeon_cli(*words, "--output", "t.safetensors", "--run", "file"), "file")
    assert Path("file").read_text() == "precious"


def test_links_that_lead_nowhere() -> None:
    Path("deep").mkdir()
    Path("link").symlink_to("deep/target")
    assert prune("link").code == 0
    assert Path("link").is_symlink()
    assert Path("deep/target").is_file()
    Path("lost").symlink_to("gone/target")
    is_told(prune("lost"), "no such folder")
    Path("round").symlink_to("round")
    is_told(prune("round"), "leads to itself")


def test_an_input_is_no_output() -> None:
    assert prune("s.safetensors").code == 0
    data = Path("s.safetensors").read_bytes()
    Path("link").symlink_to("s.safetensors")
    Path("sub").mkdir()
    for output in ("s.safetensors", "link", "sub/../s.safetensors"):
        is_told(surgeon_cli("report", "s.safetensors", "-o", output), "is read by this command")
        is_told(surgeon_cli("inspect", "s.safetensors", "--dot", output), "is read by this command")
        is_told(prune(output, model="s.safetensors"), "is read by this command")
    is_told(prune("t.safetensors", "--report", "t.safetensors"), "two things would be written there")
    assert Path("s.safetensors").read_bytes() == data


ODD = [
    "a b.safetensors", "-s.safetensors", "\N{SNOWMAN}\u202e.safetensors", "a\nb\x1b[2J.safetensors",
    "%s{0}'\".safetensors",
    "x" * 243 + ".safetensors", "[bold].safetensors", "CON", "...",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_names(name: str) -> None:
    path = Path().absolute() / name
    ran = prune(path, "--json", "--report", path.with_suffix(".html"))
    assert ran.code == 0, ran.err
    assert "\x1b[2J" not in ran.err
    assert path.is_file()
    for words in (
        ("inspect", path, "--model", "tests.factories:small"),
        ("report", path, "--model", "tests.factories:small"),
    ):
        ran = surgeon_cli(*words)
        assert ran.code == 0, ran.err
    surgeon.load(path, lambda: __import__("tests.factories").factories.small())
    assert not [left for left in Path().iterdir() if left.name.endswith(".tmp")]


def test_a_name_that_is_no_text_is_refused_before_the_work() -> None:
    """safetensors would write the file, and never open it."""
    is_told(prune(Path("\udcff.safetensors").absolute()), "the name is no UTF-8")
    with pytest.raises(OSError, match="no UTF-8"):
        surgeon.load("\udcff.safetensors")
    assert list(Path().iterdir()) == []


def test_a_name_that_is_too_long_for_any_file() -> None:
    is_told(prune("x" * 300), "File name too long")


def test_a_long_name_has_a_short_one_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("\N{SNOWMAN}" * 85)
    with write_beside(path) as temporary:
        temporary.write_text("a")
    assert path.read_text() == "a"


# ---------------------------------------------------------------- the cache


def test_a_user_without_a_home_measures_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    for name in ("SURGEON_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert not cache_folder().exists()
    table = Table.open(Place.here(torch.device("cpu")))
    assert table.entries == {}
    table.timer = lambda _: 0.5
    table.seconds("a", lambda: lambda: None)
    with pytest.warns(UserWarning, match="SURGEON_CACHE names a folder"):
        table.save()
    monkeypatch.setenv("SURGEON_CACHE", "~stranger/cache")
    assert not cache_folder().exists()


# ---------------------------------------------------------------- folders of runs


def test_a_file_system_without_locks_is_told_and_worked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock.FileLock, "acquire", without)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert "its file system has no locks" in caplog.text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc: no folder in which nobody may write")
def test_a_folder_for_the_run_that_can_not_be_made_is_told() -> None:
    draw(Path("photos/train"), 6)
    words = ("train", "--model", "tests.factories:two_classes", "--image-size", 16, "--data", "photos", "--epochs", 1)
    is_told(surgeon_cli(*words, "--output", "t.safetensors", "--run", "/proc/self/run"), "/proc/self/run")


# ---------------------------------------------------------------- signals

TRAIN = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # tests may run under nohup, whose children ignore one of them
from torch.utils.data import DataLoader
from surgeon_cli.main import cli
from surgeon import trainer
tune = trainer.tune
def slow(*args, **options):
    seen = options.pop("on_epoch")
    def told(history):
        seen(history)
        if len(history) == 2:
            print("two", flush=True)
            time.sleep(60)
    return tune(*args, on_epoch=told, **options)
if sys.argv[1] == "slow":
    trainer.tune = slow
cli(sys.argv[2:], prog_name="surgeon")
"""


def training(*words: str, slow: str) -> subprocess.Popen[str]:
    given = ["train", "--model", "tests.factories:two_classes", "--image-size", "16", "--data", "photos",
             "--epochs", "3", "--batch-size", "6", "--device", "cpu", *words]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", TRAIN, slow, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=environment)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_run_that_is_asked_to_end_says_so_and_goes_on(number: signal.Signals) -> None:
    draw(Path("photos/train"), 6)
    draw(Path("photos/test"), 3, seed=1)
    process = training("--output", "a.safetensors", slow="slow")
    assert process.stdout is not None
    assert process.stdout.readline() == "two\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert "--resume goes on from here" in told
    assert "Traceback" not in told
    assert {path.name for path in Path().rglob("*") if path.name.endswith(".tmp")} == set()
    assert not Path("a.safetensors").exists()
    for name, words in (("a", ["--resume"]), ("b", [])):
        done = training("--output", f"{name}.safetensors", *words, slow="no")
        _, told = done.communicate(timeout=120)
        assert done.returncode == 0, told
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert (Path("a") / LOCK).exists()


def test_a_second_signal_ends_at_once_and_the_caller_has_his_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ended() -> None:
        with endable():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    with pytest.raises(Ended) as caught:
        ended()
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert Stopped("", caught.value).exit_code == 143
    assert Stopped("", KeyboardInterrupt()).exit_code == 130


def test_signals_that_somebody_else_has_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with endable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with endable():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---------------------------------------------------------------- pipes


@pytest.mark.parametrize("both", [False, True], ids=["standard output", "both"])
def test_a_pipe_that_nobody_reads_is_no_traceback(both: bool) -> None:
    """``surgeon inspect resnet18 --json | head -1``."""
    words = [sys.executable, "-m", "surgeon_cli", "inspect", "tests.factories:small", "--image-size", "16", "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words if not both else words[:-1], stdout=write, stderr=write if both else subprocess.PIPE,
                          check=False, cwd=ROOT)  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert both or b"Traceback" not in done.stderr
    assert both or b"Exception ignored" not in done.stderr
