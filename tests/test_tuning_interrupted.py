"""Training that an interruption, a kill or several processes don't change."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

import surgeon
import surgeon.iteration.running
from surgeon.errors import CheckpointError
from surgeon.files import LOCK
from surgeon.tuning.state import FILE
from tests import factories
from tests.tuned import EPOCHS, Breaking, Stop, X, loader, net, same, same_state, tune


def full_run(folder: Path | None, data: Dataset[Any], model: nn.Module | None = None) -> surgeon.Tuned:
    """A run that has everything with a state."""
    module = model or net()
    graph = surgeon.channel_graph(surgeon.trace(net(), X[:2]))
    return surgeon.tune(
        module, DataLoader(data, 8, shuffle=True), loader(12, shuffle=False), epochs=EPOCHS, optimizer="adamw", lr=0.05,
        ema=0.9, clip=1.0, penalty=surgeon.GroupPenalty(graph, 1e-3, 1e-2), warmup_epochs=1, resume_dir=folder,
    )  # fmt: skip


def test_a_run_that_is_stopped_twenty_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole = full_run(None, Breaking(0))
    again = full_run(None, Breaking(0))
    assert same(whole.model, again.model)
    draw = random.Random(0)
    for stops in range(10):  # each time twice: at any item of the run, and once more in what is left
        folder, model = tmp_path / str(stops), net()
        for _ in range(2):
            with pytest.raises(Stop):
                full_run(folder, Breaking(draw.randrange(1, len(X))), model)
        with pytest.raises(Stop):
            full_run(folder, Breaking(draw.randrange(1, EPOCHS * len(X) + 1)))
        assert sorted(p.name for p in folder.iterdir()) == [LOCK, FILE]
        resumed = full_run(folder, Breaking(0), net() if stops % 2 else model)
        assert same(whole.model, resumed.model)
        assert same_state(whole.optimizer, resumed.optimizer)
        assert whole.best_epoch == resumed.best_epoch
        plain = [[{**vars(row), "seconds": 0} for row in t.history] for t in (whole, resumed)]
        assert plain[0] == plain[1]


KILLED = """
import sys, time
from pathlib import Path
from tests import test_tuning_interrupted as t
import torch
torch.set_num_threads(int(sys.argv[2]))
class Slow(t.Breaking):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)
print("ready", flush=True)
done = t.full_run(Path(sys.argv[1]), Slow(0))
torch.manual_seed(0)
"""


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    whole = full_run(None, Breaking(0))
    draw = random.Random(1)
    root, state = Path(__file__).resolve().parent.parent, tmp_path / "run" / FILE
    threads = str(torch.get_num_threads())  # with another number of them sums are rounded otherwise
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "run"), threads], stdout=subprocess.PIPE, cwd=root, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not state.exists():  # the first epoch: at the second start it is there
            time.sleep(0.01)
        time.sleep(draw.uniform(0.05, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / f".{FILE}.0123abcd.tmp").write_bytes(b"half")  # what a kill in the middle of writing leaves
    resumed = full_run(tmp_path / "run", Breaking(0))
    assert same(whole.model, resumed.model)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [LOCK, FILE]


def test_a_finished_run_gives_its_outcome_again(tmp_path: Path) -> None:
    one = full_run(tmp_path, Breaking(0))
    other = full_run(tmp_path, Breaking(1))  # no item is asked for
    assert same(one.model, other.model)
    assert one.history == other.history
    assert one.best_epoch == other.best_epoch


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    assert full_run(None, Breaking(0)).notes == ()
    for _ in range(2):  # in the second epoch, and at once when it is called again
        with pytest.raises(Stop):
            full_run(tmp_path, Breaking(len(X) + 2))
    try:
        torch.set_num_threads(threads + 1)
        notes = full_run(tmp_path, Breaking(0)).notes
        torch.set_num_threads(threads + 2)
        assert full_run(tmp_path, Breaking(1)).notes == notes  # it was finished
    finally:
        torch.set_num_threads(threads)
    (note,) = notes
    assert note.startswith(f"from epoch 3 on it had threads {threads + 1} instead of {threads}:")


def test_a_channels_last_run_in_bf16_is_taken_up_to_the_bit(tmp_path: Path) -> None:
    seen = []

    def go(folder: Path | None, after: int) -> nn.Module:
        model = net().to(memory_format=torch.channels_last)
        model.second.register_forward_hook(lambda *given: seen.append(given[2]))
        batches = DataLoader(Breaking(after), 8, shuffle=True)
        found: nn.Module = tune(model, batches, epochs=3, ema=0.9, mixed_precision="bf16", resume_dir=folder).model
        return found

    whole = go(None, 0)
    assert all(y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last) for y in seen)
    with pytest.raises(Stop):
        go(tmp_path, len(X) + 9)
    resumed = go(tmp_path, 0)
    assert same(whole, resumed)
    assert resumed.get_parameter("second.weight").is_contiguous(memory_format=torch.channels_last)


def test_workers_and_generators_follow_the_seed(tmp_path: Path) -> None:
    def go(seed: int = 0, **kwargs: Any) -> nn.Module:
        generator = torch.Generator()
        generator.seed()
        return surgeon.tune(net(), loader(generator=generator, **kwargs), epochs=2, lr=0.1, seed=seed).model

    assert same(go(), go())
    assert not same(go(), go(seed=1))
    assert same(go(num_workers=1), go(num_workers=1))


def test_another_run_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)
    for given, message in (({"epochs": 2}, "its run has epochs=1, this one 2"), ({"lr": 0.5}, "its run has lr"),
                           ({"optimizer": "adamw"}, "optimizer='SGD', this one 'AdamW'"),
                           ({"mixed_precision": "bf16"}, "mixed_precision='no', this one 'bf16'")):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            tune(net(), loader(), **{"epochs": 1, "resume_dir": tmp_path, **given})
    with pytest.raises(CheckpointError, match="batches=3, this one 6"):
        surgeon.tune(net(), loader(4), epochs=1, resume_dir=tmp_path)
    with pytest.raises(CheckpointError, match="doesn't fit this model"):
        surgeon.tune(factories.Small(2), loader(), epochs=1, resume_dir=tmp_path)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(CheckpointError):
        surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)


def test_views_of_one_storage_and_ties_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 4)

    def go(**kwargs: Any) -> surgeon.Tuned:
        torch.manual_seed(0)
        return surgeon.tune(nn.LSTM(4, 3), [x], epochs=2, forward_loss=lambda m, b: m(b)[0].square().mean(), **kwargs)

    assert same(go().model, go(resume_dir=tmp_path).model)
    assert same(go().model, go(resume_dir=tmp_path).model)
    tied = factories.Tied()
    surgeon.tune(tied, loader(), epochs=1, resume_dir=tmp_path / "tied")
    assert tied.once.weight is tied.again.weight


SPREAD = """
import os, sys, torch, surgeon
from safetensors.torch import save_file
from tests import tuned as t
from torch.utils.data import DataLoader, TensorDataset
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
with torch.no_grad():
    for p in model.parameters():
        p.fill_(0.01)
batches = DataLoader(TensorDataset(t.X, t.Y), 6)
folder = sys.argv[1]
surgeon.tune(model, batches, batches, epochs=2, lr=0.1, schedule="constant", device="cpu", resume_dir=folder)
save_file(model.state_dict(), f"{folder}/{os.environ['RANK']}.safetensors")
"""


def test_two_processes_divide_each_batch_and_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "spread.py").write_text(SPREAD)
    root = Path(__file__).resolve().parent.parent
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, str(tmp_path / "spread.py"), str(tmp_path)], check=True, env=given, cwd=root,
        capture_output=True,
    )  # fmt: skip
    alone = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.fill_(0.01)
    batches = loader(6, shuffle=False)
    surgeon.tune(alone, batches, batches, epochs=2, lr=0.1, schedule="constant", device="cpu")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert all(torch.allclose(found[name], p, atol=1e-6) for name, p in alone.named_parameters())
