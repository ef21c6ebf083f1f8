"""A full disk, for all that writes: the earlier file stays whole, nothing stray is left, an error with the path."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from surgeon import plots
from surgeon.cost.tables import Place, Table
from surgeon.experiments import running
from surgeon.files import LOCK
from surgeon.jsonfiles import write_file, write_lines
from surgeon.streaming import prune_shards
from surgeon.trainer import Row
from surgeon.tuning import Epoch
from surgeon_cli import stepwise
from surgeon_cli.files import write_text
from tests.cli_run import surgeon_cli
from tests.pictures import draw
from tests.test_run_folders import RUNS, X, loader, net
from tests.test_streaming import TOKENS, Decoder
from tests.test_streaming import folder as shards

__all__ = ["shards"]  # a fixture

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def no_more_than(limit: int) -> Iterator[None]:
    """The kernel writes no file beyond so many bytes; what comes before that is on the disk, as when it fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# ---------------------------------------------------------------- whatever writes one file


def cut() -> surgeon.Result:
    return surgeon.prune(net(), X[:1], filters=4, criterion="magnitude", verify=False)


def save(path: Path) -> None:
    result = cut()
    surgeon.save(path, result.model, result.plan)


def save_compact(path: Path) -> None:
    result = cut()
    surgeon.save(path, result.model, result.plan, compact=dict.fromkeys(("first.bias", "norm.weight"), "shared"))


def report(path: Path) -> None:
    surgeon.write_report(path, cut())


def curves(path: Path) -> None:
    plots.curves([Row("all", Epoch(n, 0.1, 1 / n, 1 / n, 0.5)) for n in range(1, 5)], path)


def export(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        surgeon.export(net().eval(), path, example_inputs=X[:2])


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a model": ("s.safetensors", save),
    "a compact model": ("s.safetensors", save_compact),
    "a report": ("r.html", report),
    "a plot as PNG": ("p.png", curves),
    "a plot as SVG": ("p.svg", curves),
    "a plot as PDF": ("p.pdf", curves),
    "ONNX": ("m.onnx", export),
    "a torch.export archive": ("m.pt2", export),
    "source": ("m.py", export),
    "JSON": ("a.json", lambda path: write_file(path, {"a": list(range(500))})),
    "JSON lines": ("a.jsonl", lambda path: write_lines(path, [{"a": n} for n in range(200)])),
    "a table": ("a.md", lambda path: write_text(path, "a row\n" * 300)),
}


@pytest.fixture
def drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    made = tmp_path / "drafts"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nothing fits", "half fits", "all but a byte fits"])
@pytest.mark.parametrize("name", WRITERS)
def test_the_earlier_file_stays_whole_and_nothing_else_is_left(name: str, share: float, drafts: Path) -> None:
    file, write = WRITERS[name]
    folder = drafts.parent / "there"
    folder.mkdir()
    write(folder / file)
    before = contents(folder)
    size = max(len(data) for data in before.values())
    with no_more_than(int(share * (size - 1))), pytest.raises(OSError) as caught:  # noqa: PT011  # looked at below
        write(folder / file)
    assert contents(folder) == before
    assert list(drafts.iterdir()) == []
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert any(str(folder / other) in str(caught.value) for other in before)
    write(folder / file)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below it; locks are nothing that anybody reads."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------- folders


def test_shards_are_there_whole_or_not_at_all(shards: Path) -> None:
    target = shards.parent / "small"
    for limit in (0, 1000, 1500):
        with no_more_than(limit), pytest.raises(OSError, match=str(target)) as caught:
            prune_shards(Decoder, TOKENS, shards, target, ratio=0.4)
        assert caught.value.errno == errno.EFBIG
        assert list(shards.parent.iterdir()) == [shards]
    prune_shards(Decoder, TOKENS, shards, target, ratio=0.4)


@pytest.mark.parametrize("limit", [0, 300, 3000])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_whose_disk_is_full_goes_on_when_there_is_room(
    name: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_ROUNDS", 2)
    run, folder = RUNS[name], tmp_path / "run"
    with no_more_than(limit):
        failed = told_by(lambda: run.make(folder))
    if failed is None:
        assert limit  # a sweep's points fit
    else:
        assert failed.errno == errno.EFBIG
        assert str(failed.filename).startswith(str(folder))
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    run.make(folder)
    assert (folder / run.file).exists()


def told_by(work: Callable[[], object]) -> OSError | None:
    try:
        work()
    except OSError as problem:
        return problem
    return None


def test_training_that_can_not_be_kept_stops_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """The disk fills up in the third epoch."""

    def tuned(epochs: Callable[[tuple[Epoch, ...]], None] = lambda _: None) -> surgeon.Tuned:
        return surgeon.tune(net(), loader(), loader(), epochs=4, resume_dir=tmp_path, device="cpu", on_epoch=epochs)

    whole = surgeon.tune(net(), loader(), loader(), epochs=4, device="cpu")
    with contextlib.ExitStack() as stack:

        def filled(history: tuple[Epoch, ...]) -> None:
            if len(history) == 2:
                stack.enter_context(no_more_than(2000))

        stack.enter_context(pytest.raises(OSError, match=r"training\.safetensors"))
        tuned(filled)
    assert [path.name for path in tmp_path.iterdir() if path.name != LOCK] == ["training.safetensors"]
    again = tuned()
    assert [row.train_loss for row in again.history] == [row.train_loss for row in whole.history]
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_table_of_times_that_does_not_fit_costs_a_word_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    table = Table(Place.here(torch.device("cpu")), timer=lambda _: 0.5)
    table.seconds("a", lambda: lambda: None)
    table.save()
    before = contents(tmp_path)
    table.seconds("b", lambda: lambda: None)
    with no_more_than(100), pytest.warns(UserWarning, match=os.strerror(errno.EFBIG)):
        table.save()
    assert contents(tmp_path) == before


# ---------------------------------------------------------------- commands


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepwise, "_ROUNDS", 2)
    draw(tmp_path / "photos" / "train", 6)
    draw(tmp_path / "photos" / "test", 3, seed=1)
    save(tmp_path / "s.safetensors")
    return tmp_path


NET = ("--model", "tests.factories:two_classes", "--image-size", 16, "--device", "cpu")
COMMANDS: dict[str, tuple[Any, ...]] = {
    "out/s.safetensors": ("prune", *NET, "--filters", 4, "--criterion", "magnitude", "--output"),
    "out/r.html": ("report", "s.safetensors", "--model", "tests.factories:small", "--output"),
    "out/g.dot": ("inspect", "tests.factories:small", "--image-size", 16, "--dot"),
    "out/m.py": ("export", "s.safetensors", "--format", "python", "--model", "tests.factories:small", "--output"),
    "out/c.csv": ("evaluate", "tests.factories:two_classes", "--image-size", 16, "--data", "photos", "--csv"),
    "out/t.safetensors": ("train", *NET, "--data", "photos", "--epochs", 1, "--batch-size", 6, "--output"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_which_file_does_not_fit(name: str, offline: Path) -> None:
    Path("out").mkdir()
    Path(name).write_bytes(b"precious")
    with no_more_than(50):
        ran = surgeon_cli(*COMMANDS[name], name)
    assert ran.code == 1, ran.err
    assert os.strerror(errno.EFBIG) in ran.err
    assert name.rpartition(".")[0] in ran.err
    assert Path(name).read_bytes() == b"precious"
    assert not [path for path in offline.rglob("*") if path.name.endswith(".tmp")]


def test_a_log_that_does_not_fit_is_told_once_and_the_work_is_done(offline: Path) -> None:
    with no_more_than(10_000):
        Path("log").write_bytes(b"x" * 9990)
        ran = surgeon_cli("--log-json", "log", *COMMANDS["out/s.safetensors"], "small.safetensors")
    assert ran.code == 0, ran.err
    assert ran.err.count("nothing more is logged there") == 1
    assert "Traceback" not in ran.err
    assert Path("small.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_output_is_an_error_and_no_traceback() -> None:
    words = [sys.executable, "-m", "surgeon_cli", "inspect", "tests.factories:small", "--image-size", "16", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert f"standard output: {os.strerror(errno.ENOSPC)}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# ---------------------------------------------------------------- a real small disk

FILL = """
import json, os, sys, tempfile
from pathlib import Path
from tests import test_full_disk as t
disk, told = Path(sys.argv[1]), {}
for name, (file, write) in t.WRITERS.items():
    folder = disk / "there"
    folder.mkdir()
    write(folder / file)
    before = t.contents(folder)
    filler = disk / "filler"
    with filler.open("wb") as rest:
        try:
            while True:
                os.write(rest.fileno(), b"x" * 4096)
        except OSError:
            pass
    try:
        write(folder / file)
        told[name] = "no error"
    except OSError as problem:
        told[name] = [problem.errno, str(problem.filename).startswith(str(folder)), t.contents(folder) == before]
    filler.unlink()
    write(folder / file)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
print(json.dumps(told))
"""


def small_disks() -> bool:
    """Whether a file system may be mounted here, in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_every_writer_on_a_small_disk_that_is_full(tmp_path: Path) -> None:
    if not small_disks():
        pytest.skip("no file system can be mounted here; the limit of file sizes stands in for it above")
    (tmp_path / "disk").mkdir()
    (tmp_path / "fill.py").write_text(FILL)
    script = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" "$3" "$1"'
    given = (str(tmp_path / "disk"), sys.executable, str(tmp_path / "fill.py"))
    words = ["unshare", "-rm", "sh", "-c", script, "sh", *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {name: [errno.ENOSPC, True, True] for name in WRITERS}
