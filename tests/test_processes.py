"""Several processes do what one does: sums, decisions, healed and trained weights; and none waits for a dead one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from surgeon import processes
from surgeon.errors import ProcessError, TuningError
from surgeon.tuning.sharded import is_sharded
from tests.cli_run import surgeon_cli
from tests.pictures import draw
from tests.work_of_processes import ALONE, WORK

ROOT = Path(__file__).resolve().parent.parent
SIZE = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What came out of all work in two processes."""
    made = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SURGEON_CACHE": str(made / "cache"), "PYTHONWARNINGS": ""}
    command = [sys.executable, "-m", "tests.work_of_processes", str(made)]
    started = [
        subprocess.Popen([*command, str(rank), str(SIZE)], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for rank in range(SIZE)
    ]
    told = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * SIZE, told
    return made


def outcome(folder: Path, name: str, rank: int) -> dict[str, Any]:
    stem = f"{name}-{rank}-of-{SIZE}"
    return {**load_file(folder / f"{stem}.safetensors"), **json.loads((folder / f"{stem}.json").read_text())}


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    return {}


#: Scores and healed weights; what fifty steps of training make of rounding.
TOLERANCE = dict.fromkeys(WORK, 1e-6) | {
    "trained": 1e-4, "trained on few": 1e-5, "cut in steps": 1e-4, "in shards": 1e-4, "in blocks": 1e-4,
    "taken up": 1e-4, "cut in steps, in shards": 1e-4,
    "masked": 1e-5, "masked, one batch for all": 1e-5,  # what is solved step by step ends a hair sooner or later
}  # fmt: skip


@pytest.mark.parametrize("name", WORK)
def test_two_processes_do_what_one_does(folder: Path, one: dict[str, dict[str, Any]], name: str) -> None:
    torch.set_num_threads(1)
    expected = WORK[name]()
    found = outcome(folder, name, 0)
    assert found.keys() == expected.keys()
    assert found.get("plan") == expected.get("plan")
    for key, value in expected.items():
        if isinstance(value, Tensor):
            scale = max(float(value.double().abs().max()), 1e-12)
            assert float((found[key].double() - value.double()).abs().max()) <= TOLERANCE[name] * scale, key
        elif isinstance(value, list):
            assert torch.allclose(torch.tensor(found[key]), torch.tensor(value), rtol=TOLERANCE[name]), key
        else:
            assert key == "layers" or found[key] == value, key


@pytest.mark.parametrize("name", [*WORK, "in time"])
def test_both_end_with_the_same_bits(folder: Path, name: str) -> None:
    first, second = (outcome(folder, name, rank) for rank in range(SIZE))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key], key


def test_pieces_of_a_batch_score_as_the_whole() -> None:
    found = WORK["scored"]()
    for name, whole in found.items():
        if not name.endswith(" in pieces"):
            torch.testing.assert_close(found[f"{name} in pieces"], whole, rtol=1e-5, atol=1e-9, msg=name)


def test_an_error_in_one_is_an_error_in_all(folder: Path) -> None:
    assert outcome(folder, "fails", 1)["error"] == "ValueError: the second process can't read its image"
    assert outcome(folder, "fails", 0)["error"].startswith("ProcessError: process 1 failed: ValueError: the second")


def test_different_models_are_refused(folder: Path) -> None:
    for rank in range(SIZE):
        assert outcome(folder, "another model", rank)["error"].startswith(
            "ProcessError: the processes have different w"
        )


def test_different_work_is_refused(folder: Path) -> None:
    for rank in range(SIZE):
        assert "have come apart" in outcome(folder, "something else", rank)["error"]


def test_one_can_work_alone(folder: Path, one: dict[str, dict[str, Any]]) -> None:
    expected = WORK["lstsq"]()
    found = outcome(folder, "alone", 0)
    assert found["plan"] == expected["plan"]
    assert outcome(folder, "alone", 1) == {}
    assert set(ALONE) == {
        "fails", "another model", "something else", "alone", "in time", "no penalty", "has shards",
    }  # fmt: skip


def test_each_has_its_part_of_weights_and_optimizer(folder: Path) -> None:
    found = [outcome(folder, "has shards", rank) for rank in range(SIZE)]
    for part in ("weights", "state"):
        assert sum(one[part] for one in found) == found[0]["all"]
        assert max(one[part] for one in found) < 0.6 * found[0]["all"]


def test_what_can_not_be_done_in_shards_is_refused(folder: Path) -> None:
    for rank in range(SIZE):
        told = outcome(folder, "no penalty", rank)["error"]
        assert told.startswith("TuningError: a penalty looks at whole weights"), told


@pytest.mark.parametrize(
    ("words", "precision", "told"),
    [
        ({"FSDP_VERSION": "1"}, None, "--fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, None, "leave --fsdp_offload_params out"),
        ({"FSDP_VERSION": "2"}, "fp16", "use 'bf16'"),
    ],
)
def test_what_a_launcher_asks_for(
    words: dict[str, str], precision: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_sharded(None, "no", None, 2)
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    assert is_sharded(None, "no", None, 2)
    assert not is_sharded(False, "no", None, 2)
    assert not is_sharded(None, "no", None, 1)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TuningError, match=told):
        is_sharded(None, precision, None, 2)


def test_one_process_is_asked_nothing() -> None:
    value = torch.arange(3.0)
    assert (processes.count(), processes.rank(), processes.first()) == (1, 0, True)
    assert processes.same(value) is value
    assert [part.tolist() for part in processes.total(value)] == [[0, 1, 2]]
    assert processes.from_first(lambda: object) is object
    processes.agree("weights", pytest.fail)  # there is nobody to compare with
    assert list(processes.own_batches("abc")) == [(0, "a"), (1, "b"), (2, "c")]
    assert list(processes.kept(processes.Own([(3, "x")]))) == [(3, "x")]


def test_loaders_that_are_shared_already_are_known() -> None:
    data = TensorDataset(torch.arange(6))
    sampler: DistributedSampler[Any] = DistributedSampler(data, 2, 0)
    assert processes.is_shared(DataLoader(data, 2, sampler=sampler))
    assert not processes.is_shared(DataLoader(data, 2))
    assert not processes.is_shared([1, 2])


# --- the command line


PRUNE = ("prune", "--model", "tests.factories:small", "--ratio", "0.4", "--heal", "lstsq", "--samples", "20")


def test_the_command_in_two_processes_writes_what_one_writes(tmp_path: Path) -> None:
    words = [*PRUNE, "--batch-size", "8", "--image-size", "16", "--json", "--output"]
    torch.set_num_threads(1)
    alone = surgeon_cli(*words, tmp_path / "one.safetensors")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    done = subprocess.run(
        [*launcher, "-m", "surgeon_cli", *words, str(tmp_path / "two.safetensors")], cwd=ROOT, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)  # one document: the other process says nothing
    assert facts["plan"] == alone.json["plan"]
    assert done.stderr.count("written: ") == 1
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=0, atol=1e-6 * max(float(tensor.abs().max()), 1e-12)), name


def test_the_command_trains_in_shards_what_one_process_trains(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "train", 9)
    draw(tmp_path / "photos" / "test", 4, seed=1)
    words = ["prune", "--model", "tests.factories:two_classes", "--image-size", "16", "--device", "cpu",
             "--ratio", "0.3", "--data", str(tmp_path / "photos"), "--epochs", "2", "--steps", "2",
             "--train-batch-size", "6", "--crop", "0", "--no-flip", "--json", "--output"]  # fmt: skip
    torch.set_num_threads(1)
    alone = surgeon_cli(*words, tmp_path / "one.safetensors")
    assert alone.code == 0, alone.err
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    done = subprocess.run(
        [*launcher, "-m", "surgeon_cli", *words, str(tmp_path / "two.safetensors"), "--sharded"], cwd=ROOT, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"] == alone.json["plan"]
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, rtol=0, atol=1e-4 * max(float(tensor.abs().max()), 1e-12)), name


def test_commands_of_one_process_refuse_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = surgeon_cli("inspect", "resnet18")
    assert found.code == 2
    assert "surgeon inspect works in one process" in found.err


def test_what_failed_elsewhere_is_not_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ProcessError("process 0 failed: no such image")

    monkeypatch.setattr(processes, "start", failing)
    first = surgeon_cli(*PRUNE)
    assert (first.code, "process 0 failed" in first.err) == (1, True)
    monkeypatch.setenv("RANK", "1")
    second = surgeon_cli(*PRUNE)
    assert (second.code, second.err) == (1, "")


def test_one_process_where_several_were_meant_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    found = surgeon_cli(*PRUNE, "--dry-run", "--criterion", "random", "--image-size", "16")
    assert "accelerate has started one process; for several on CPUs: torchrun" in found.err
