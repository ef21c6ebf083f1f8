"""The JSON files that runs keep, as damage and strangers leave them: one error that names file, place and next step."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon.cost.tables import Place, Table
from surgeon.errors import CheckpointError, SurgeonError
from surgeon.experiments import running, store
from surgeon.jsonfiles import read_file
from surgeon.streaming import INDEX, PLAN, Shards, load_shards, prune_shards
from surgeon.sweeps import judging
from surgeon.tuning import record, state
from surgeon_cli import grid, stepwise
from tests.cli_run import Ran, surgeon_cli
from tests.factories import Small
from tests.pictures import draw
from tests.test_cli_stepwise import prune as prune_in_steps
from tests.test_streaming import Decoder
from tests.test_streaming import folder as shards

__all__ = ["shards"]  # a fixture

X = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 5


def net() -> Small:
    torch.manual_seed(0)
    return Small()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), 6)


# ---------------------------------------------------------------- what keeps a file, and what reads it


@dataclass(frozen=True)
class Kept:
    """A run that keeps a JSON file: `make` runs it in a folder, `again` takes it up."""

    file: str
    make: Callable[[Path], object]

    def again(self, folder: Path) -> object:
        return self.make(folder)


def steps(folder: Path) -> object:
    return surgeon.prune_and_tune(
        net(), X[:1], loader(), loader(), ratio=0.3, criterion="magnitude", steps=2, directory=folder,
        tuning={"device": "cpu"},
    )  # fmt: skip


def trained(folder: Path) -> object:
    from surgeon.data import Data, Split

    split = Split(Y, torch.randint(0, 256, (12, 3, 6, 6), dtype=torch.uint8))
    data = Data("drawn", tuple("abcde"), split, split)
    made = surgeon.data.Preprocess(6, 6)
    return surgeon.train(net(), data, epochs=1, preprocess=made, batch_size=6, directory=folder, device="cpu")


def compared(folder: Path) -> object:
    cells = surgeon.Experiment(("magnitude",), ({"ratio": 0.3},), ("one-shot",), (0,), 1, 1, dense=False)
    return surgeon.compare(
        net(), X[:1], loader(), loader(), cells, directory=folder, about={"a": 1}, tuning={"device": "cpu"}
    )


def swept(folder: Path) -> object:
    return surgeon.sensitivity(net(), X[:1], loader(), ratios=(0.5,), directory=folder)


RUNS = {
    "steps": Kept("run.json", steps),
    "train": Kept("train.json", trained),
    "cells": Kept("cells.json", compared),
    "points": Kept("points.json", swept),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each of the runs, finished."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_ROUNDS", 2)
        for name, run in RUNS.items():
            run.make(root / name)
    return root


@pytest.fixture
def run(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> tuple[Kept, Path]:
    """One of the runs in a folder of its own."""
    shutil.copytree(finished / request.param, tmp_path / "run")
    return RUNS[request.param], tmp_path / "run"


# ---------------------------------------------------------------- texts that are no file of a run


def nan(text: str) -> str:
    """The first number of an object is none."""
    value = json.loads(text)
    value[next(iter(value))] = math.nan
    return json.dumps(value)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "no UTF-8": lambda data: data.replace(b"{", b"{\xff", 1),
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "deep": lambda _: b"[" * 50_000 + b"]" * 50_000,
    "deeper than any file": lambda _: b"[" * 70 + b"]" * 70,
    "not a number": lambda data: nan(data.decode()).encode(),
    "huge number": lambda data: data.replace(b"{", b'{"x": 1' + b"0" * 5000 + b",", 1),
    "beyond all numbers": lambda data: data.replace(b"{", b'{"x": 1e999,', 1),
    "twice": lambda data: data.replace(b"{", b'{"x": 1, "x": 2,', 1),
    "control characters": lambda data: data.replace(b"{", b'{"\\u001b[2J": 1,', 1),
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "a text": lambda _: b'"asked"',
    "nothing in it": lambda _: b"{}",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_damaged_file_is_named_with_what_to_do(run: tuple[Kept, Path], how: str) -> None:
    kept, folder = run
    file = folder / kept.file
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"give another (folder|directory)") as caught:
        kept.again(folder)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_a_run_that_is_whole_is_taken_up(run: tuple[Kept, Path]) -> None:
    kept, folder = run
    before = (folder / kept.file).read_bytes()
    kept.again(folder)
    assert (folder / kept.file).read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_what_is_no_regular_file_is_not_waited_for(run: tuple[Kept, Path], kind: str) -> None:
    kept, folder = run
    file = folder / kept.file
    file.unlink()
    makers: dict[str, Callable[[], None]] = {
        "folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "device": lambda: file.symlink_to("/dev/zero"),
    }  # fmt: skip
    makers[kind]()
    with pytest.raises(CheckpointError, match="no regular file; give another"):
        kept.again(folder)


def test_a_file_larger_than_any_run_writes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="expected at most"):
        read_file(tmp_path / "large", Any, "give another folder")


# ---------------------------------------------------------------- values of another type

WRONG: tuple[Any, ...] = (None, "x", "", [], {}, -1, 10**30, True, 1.5, [[]], {"": None}, {"float": "nan"})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def with_another(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    if not path:
        return wrong
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = wrong
    return changed


def lacking(value: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return changed


def changed(value: Any) -> Iterator[Any]:
    """The value with each of its parts replaced by each of the wrong ones, or left out."""
    for path in places(value):
        yield from (with_another(value, path, wrong) for wrong in WRONG)
        if path:
            yield lacking(value, path)


def asked_in(file: Path) -> record.Asked:
    return record.Asked(**json.loads(file.read_text()))


READERS: dict[str, Callable[[Path], object]] = {
    "steps": lambda folder: record.read_rows(folder, asked_in(folder / "asked")),
    "cells": lambda folder: read_file(folder / "cells.json", store._Saved, "x"),
    "points": lambda folder: read_file(folder / "points.json", judging._Saved, "x"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_value_of_another_type_is_an_error_or_fits(finished: Path, tmp_path: Path, name: str) -> None:
    whole = json.loads((finished / name / RUNS[name].file).read_text())
    (tmp_path / "asked").write_text(json.dumps(whole.get("asked")))
    refused = 0
    for value in changed(whole):
        (tmp_path / RUNS[name].file).write_text(json.dumps(value))
        refused += refuses(lambda: READERS[name](tmp_path), tmp_path / RUNS[name].file)
    assert refused > 8 * len(list(places(whole)))


def refuses(work: Callable[[], object], file: Path) -> bool:
    """Whether the file is refused, by an error that names it; any other exception fails the test."""
    told = None
    try:
        work()
    except CheckpointError as problem:
        told = str(problem)
    assert told is None or str(file) in told
    return told is not None


def test_the_message_says_where(finished: Path, tmp_path: Path) -> None:
    value = json.loads((finished / "steps" / "run.json").read_text())
    value["steps"][0]["history"][0]["lr"] = "fast"
    (tmp_path / "run.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"run.json: .*steps\[0\]\.history\[0\]\.lr is 'fast', expected a number"):
        record.read_rows(tmp_path, record.Asked(**value["asked"]))


@pytest.mark.parametrize("run", ["steps"], indirect=True)
def test_a_record_that_lacks_steps_is_told(run: tuple[Kept, Path]) -> None:
    _, folder = run
    value = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**value, "steps": []}))
    with pytest.raises(CheckpointError, match="step 2 has begun, and the record holds 0 steps; give another"):
        steps(folder)


# ---------------------------------------------------------------- the state of a training run


def tuned(folder: Path, optimizer: str) -> surgeon.Tuned:
    return surgeon.tune(
        net(), loader(), loader(), epochs=2, lr=0.01, resume_dir=folder, optimizer=optimizer, device="cpu", ema=0.9
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_state_of_other_values_is_an_error_or_goes_on(optimizer: str, tmp_path: Path) -> None:
    """Stopped after the first epoch; the header's values and the tensors are changed one at a time."""
    seen = iter([False, True])

    def stop(_: object) -> None:
        if not next(seen):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgeon.tune(net(), loader(), loader(), epochs=2, lr=0.01, resume_dir=tmp_path, optimizer=optimizer,
                     device="cpu", ema=0.9, on_epoch=stop)  # fmt: skip
    file = tmp_path / state.FILE
    tensors, data = load_file(file), file.read_bytes()
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["surgeon_training"])
    chance = random.Random(0)
    cases = [(value, tensors) for value in chance.sample(list(changed(header)), 150)]
    for name in chance.sample(sorted(tensors), 20):
        for other in (torch.zeros(7), torch.zeros((), dtype=torch.int64), tensors[name].to(torch.complex64)):
            cases.append((header, {**tensors, name: other}))  # noqa: PERF401  # two kinds of cases
        cases.append((header, {key: tensor for key, tensor in tensors.items() if key != name}))
    refused = 0
    for value, stored in cases:
        save_file(stored, file, metadata={"surgeon_training": json.dumps(value)})
        refused += refuses(lambda: tuned(tmp_path, optimizer), file)
    assert refused > len(cases) / 2
    file.write_bytes(data)
    assert len(tuned(tmp_path, optimizer).history) == 2


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize("how", [how for how in DAMAGE if how != "not a number"])
def test_a_damaged_index_or_plan_of_shards_is_named(shards: Path, how: str) -> None:
    small = shards.parent / "small"
    prune_shards(Decoder, torch.arange(7)[None], shards, small, ratio=0.4)
    for file, again in ((shards / INDEX, lambda: Shards(shards)), (small / PLAN, lambda: load_shards(small, Decoder))):
        data = file.read_bytes()
        file.write_bytes(DAMAGE[how](data))
        with pytest.raises(SurgeonError, match=str(file)):
            again()
        file.write_bytes(data)
        again()


def test_shards_are_safetensors_files(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    index["weight_map"]["norm.bias"] = PLAN
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        Shards(shards)


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_table_of_times_is_measured_anew_and_written_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    place = Place.here(torch.device("cpu"))
    table = Table(place, timer=lambda _: 0.5)
    assert table.seconds("a", lambda: lambda: None) == 0.5
    assert table.seconds("b", _fail) == math.inf
    table.save()
    assert Table.open(place).entries == {"a": 0.5, "b": math.inf}
    place.file.write_bytes(DAMAGE[how](place.file.read_bytes()))
    with pytest.warns(UserWarning, match="no latency table of this device"):
        again = Table.open(place)
    assert str(place.file) in caplog.text
    assert again.entries == {}
    again.timer = lambda _: 0.25
    again.seconds("a", lambda: lambda: None)
    with pytest.warns(UserWarning, match="no latency table"):
        again.save()
    assert Table.open(place).entries == {"a": 0.25}


def _fail() -> Callable[[], Any]:
    raise RuntimeError


# ---------------------------------------------------------------- commands


def message(ran: Ran, file: str) -> str:
    """What a command says of a file that it can't use."""
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    told = next(line for line in ran.err.splitlines() if line.startswith("Error: "))
    assert file in told
    return told


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepwise, "_ROUNDS", 2)
    draw(tmp_path / "photos" / "train", 6)
    draw(tmp_path / "photos" / "test", 3, seed=1)


@pytest.mark.usefixtures("photographs")
def test_commands_that_go_on_name_a_damaged_file() -> None:
    words = ("--filters", 3)
    assert prune_in_steps(*words, steps=1).code == 0
    for name in ("run.json", "steps.jsonl"):
        file = Path("small") / name
        data = file.read_bytes()
        for how, damage in DAMAGE.items():
            file.write_bytes(damage(data))
            if not (name == "steps.jsonl" and how == "empty"):
                message(prune_in_steps(*words, "--resume", steps=1), str(file))
        file.write_bytes(data)
    row = json.loads(Path("small/steps.jsonl").read_text())
    for path in places(row["latency"]):
        for wrong in WRONG:
            text = json.dumps({**row, "latency": with_another(row["latency"], path, wrong)})
            Path("small/steps.jsonl").write_text(text + "\n")
            stepwise_says(Path("small/steps.jsonl"))


def stepwise_says(file: Path) -> None:
    """The rows fit, or an error names the line."""
    found: list[dict[str, Any]] = []
    if not refuses(lambda: found.extend(stepwise._lines(file)), file):
        timed = found[0]["latency"]  # None where a step was not timed
        assert timed is None or isinstance(timed["speed_up"]["ratio"], float | int)


EXPERIMENTS = [
    ("grid.json", b"[" * 50_000, "nested too deeply"),
    ("grid.json", b"\xff\xfe{}", "utf-8"),
    ("grid.json", b'{"steps": 1e999}', "beyond all numbers"),
    ("grid.json", b'{"steps": NaN}', "NaN"),
    ("grid.json", b'{"seeds": [' + b"9" * 6000 + b"]}", "too many digits"),
    ("grid.json", b'{"seeds": [9223372036854775808]}', "seeds"),
    ("grid.json", b'{"seeds": [-1]}', "seeds"),
    ("grid.json", b'{"budgets": [{"max_macs": [0.5]}]}', "max_macs is [0.5]"),
    ("grid.json", b'{"budgets": [{"model": 1}]}', "there is no 'model'"),
    ("grid.json", b'{"budgets": [{}]}', "no table"),
    ("grid.json", b'{"dense": "no"}', "expected true or false"),
    ("grid.json", b'{"epochs": "10"}', "epochs='10'"),
    ("grid.json", b'{"epochs": 1, "epochs": 2}', "twice"),
    ("grid.toml", b"a = " + b"[" * 50_000, "grid.toml"),
    ("grid.toml", b"seeds = [" + b"9" * 6000 + b"]", "grid.toml"),
    ("grid.toml", b"steps = nan", "steps=nan"),
    ("grid.toml", b"epochs = 1979-05-27", "epochs="),
    ("grid.toml", b"criteria = [1]", "criteria"),
    ("grid.toml", b"\xff", "utf-8"),
]


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize(("name", "data", "told"), EXPERIMENTS)
def test_experiments_that_can_not_be_read(name: str, data: bytes, told: str) -> None:
    Path(name).write_bytes(data)
    with pytest.raises(SurgeonError, match=name) as caught:
        grid.read(Path(name))
    assert told in str(caught.value)
    message(surgeon_cli("compare", "--model", "tests.factories:two_classes", "--data", "photos", "--experiment", name),
            name)  # fmt: skip
