"""Cancelled calls, several threads, folders that are in use: what is left behind, and what comes out."""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon.errors import BusyError
from surgeon.files import LOCK, locked, write_beside
from surgeon.tracing import recorder, replay
from tests import factories

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()


class Watched(nn.Module):
    """Batch norm, dropout, an LSTM (fused kernels are switched off for it), frozen weights, gradients, a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.drop = nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.3)
        self.lstm, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        steps, _ = self.lstm(self.drop(x).flatten(2).transpose(1, 2))
        return self.head(steps.mean(1))


def watched() -> Watched:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Watched().train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.register_forward_hook(lambda *_: None)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a call may have changed, in a form that can be compared."""
    cpu: Any = torch.backends
    return {
        "tensors": {n: t.detach().clone() for n, t in model.state_dict().items()},
        "objects": [[(key, id(value)) for key, value in vars(m).items()] for m in model.modules()],
        "modes": [m.training for m in model.modules()],
        "gradients": {n: (p.requires_grad, None if p.grad is None else p.grad.clone()) for n, p in named(model)},
        "hooks": [hooks(m) for m in model.modules()],
        "global hooks": hooks_everywhere(),
        "random": (torch.get_rng_state(), json.dumps(random.getstate()), _numpys()),
        "switches": (
            cpu.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), cpu.cuda.math_sdp_enabled(),
            cpu.cuda.flash_sdp_enabled(), cpu.cuda.mem_efficient_sdp_enabled(), torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(), torch._C._len_torch_dispatch_stack(),
            torch._C._len_torch_function_stack(), nn.Module.__call__,
        ),
    }  # fmt: skip


def _numpys() -> str:
    return str(np.random.get_state())  # noqa: NPY002  # what users' transforms draw from


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def hooks(module: nn.Module) -> int:
    return sum(len(value) for name, value in vars(module).items() if "hooks" in name)


def hooks_everywhere() -> int:
    space = vars(torch.nn.modules.module)
    return sum(len(value) for name, value in space.items() if name.startswith("_global") and isinstance(value, dict))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before if not same(before[name], after[name])]


class Stop(Exception):
    """Raised by a loader."""


class Breaking:
    """Batches, of which asking for the k-th raises."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.asked = at, error, 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 24, 8):
            self.asked += 1
            if self.asked == self.at:
                raise self.error
            yield X[start : start + 8], Y[start : start + 8]


CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "prune": lambda m, b: surgeon.prune(m, X[:2], ratio=0.3, dataloader=b),
    "prune and heal": lambda m, b: surgeon.prune(m, X[:2], ratio=0.3, dataloader=b, heal="lstsq", calibration=b),
    "prune in place": lambda m, b: surgeon.prune(m, X[:2], ratio=0.3, dataloader=b, inplace=True),
    "prune in steps": lambda m, b: surgeon.prune(m, X[:2], ratio=0.3, dataloader=b, steps=2, heal="bn"),
    "auto": lambda m, b: surgeon.prune(m, X[:2], ratio=0.3, dataloader=b, criterion="auto"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error"),
    [("prune", Stop), *((call, KeyboardInterrupt) for call in ("prune and heal", "prune in steps", "auto"))],
)
def test_a_loader_that_raises_leaves_everything_as_it_was(call: str, error: type[BaseException]) -> None:
    for at in (1, 3, 4):
        model, batches = watched(), Breaking(at, error)
        before = state(model)
        try:
            CALLS[call](model, batches)
        except error:
            assert changed(before, state(model)) == [], at
        else:
            assert batches.asked < at == 4, "only a call that needs a single pass gets by"


def _break_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int) -> list[int]:
    """The k-th call of a function of surgeon's raises KeyboardInterrupt; the list counts."""
    real, count = getattr(place, name), [0]

    def run(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, run)
    return count


@pytest.mark.parametrize(("place", "name"), [(recorder, "_run"), (replay.Replay, "run_node")])
@pytest.mark.parametrize("call", ["prune and heal", "prune in place"])
def test_an_interrupt_inside_any_operator_leaves_everything_as_it_was(
    call: str, place: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        calls = _break_at(patch, place, name, -1)
        CALLS[call](watched(), Breaking(-1, Stop))
    for at in (1, calls[0] // 2, calls[0]):
        model = watched()
        before = state(model)
        with monkeypatch.context() as patch:
            _break_at(patch, place, name, at)
            with pytest.raises(KeyboardInterrupt):
                CALLS[call](model, Breaking(-1, Stop))
        assert changed(before, state(model)) == [], at


def test_an_interrupt_at_any_instant_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer's signal comes between any two instructions, as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    # Python itself swallows what is raised in a finaliser or in the collector's callbacks (hypothesis has one):
    # the key is pressed again a moment later.
    report = sys.unraisablehook

    def again(swallowed: Any) -> None:
        if not issubclass(swallowed.exc_type, KeyboardInterrupt):
            report(swallowed)
        elif waiting:
            signal.setitimer(signal.ITIMER_REAL, 0.001)

    monkeypatch.setattr(sys, "unraisablehook", again)
    waiting = False
    old = signal.signal(signal.SIGALRM, interrupt)
    draw, interrupted = random.Random(3), 0
    try:
        for _ in range(5):
            model = watched()
            before = state(model)
            waiting = True
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.01, 0.4))
            try:
                CALLS["prune and heal"](model, Breaking(-1, Stop))
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                waiting = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert changed(before, state(model)) == []
    finally:
        signal.signal(signal.SIGALRM, old)
    assert interrupted


def test_an_interrupted_change_in_place_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon.trial import skeleton

    for at in (1, 30):
        model = watched()
        before = state(model)
        with monkeypatch.context() as patch:
            _break_at(patch, skeleton, "_substituted", at)
            with pytest.raises(KeyboardInterrupt):
                CALLS["prune in place"](model, Breaking(-1, Stop))
        assert changed(before, state(model)) == [], at


def test_an_interrupted_training_leaves_flags_hooks_and_random_numbers_as_they_were() -> None:
    for at in (1, 5):
        model = watched()
        model.head.weight.grad = None  # training clears gradients; weights are those of the last step
        before = state(model)
        with pytest.raises(KeyboardInterrupt):
            surgeon.tune(model, Breaking(at, KeyboardInterrupt), epochs=3)
        found = changed(before, state(model))
        assert set(found) <= {"tensors", "gradients"}, at
        assert [p.requires_grad for p in model.parameters()] == [now for now, _ in before["gradients"].values()]


# ---------------------------------------------------------------- threads


JOBS: dict[str, Callable[[nn.Module], Any]] = {
    "lstm": lambda m: CALLS["prune and heal"](m, Breaking(-1, Stop)),
    "graph": lambda m: surgeon.prune(m, X[:2], filters=6, criterion="magnitude", as_graph=True, verify=False),
    "taylor": lambda m: surgeon.prune(m, X[:2], filters=7, dataloader=list(Breaking(-1, Stop)), heal="gram"),
    "attention": lambda m: surgeon.prune(m, torch.ones(2, 5, 8), ratio=0.3, criterion="magnitude"),
    "training": lambda m: surgeon.tune(m, list(Breaking(-1, Stop)), epochs=2, seed=5),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def told(name: str, model: nn.Module) -> dict[str, Any]:
    """A job's outcome."""
    done = JOBS[name](model)
    removed = dict(done.plan.removed) if hasattr(done, "plan") else [row.train_loss for row in done.history]
    return {"tensors": {n: t.detach().clone() for n, t in done.model.state_dict().items()}, "rest": removed}


def test_four_threads_get_what_one_gets() -> None:
    makes: dict[str, Callable[[], nn.Module]] = {
        "lstm": watched, "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    }  # fmt: skip
    order = [*JOBS, *JOBS]
    models = [seeded(makes.get(name, factories.Small)) for name in order]
    expected = {name: told(name, copy.deepcopy(model)) for name, model in zip(order, models, strict=False)}
    before = state(watched())
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(told, order, models))
    for name, found in zip(order, together, strict=True):
        assert same(expected[name], found), name
    assert changed({k: before[k] for k in ("random", "switches", "global hooks")}, state(watched())) == []


# ---------------------------------------------------------------- folders


def loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(X, Y), 8, shuffle=True)


def run_in(folder: Path, on_step: Callable[..., None] | None = None) -> surgeon.PrunedAndTuned:
    model = seeded(lambda: factories.Small(2))
    return surgeon.prune_and_tune(
        model, X[:2], loader(), loader(), steps=2, filters=6, epochs_per_step=1, directory=folder, on_step=on_step
    )


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    def second(*_: Any) -> None:
        with pytest.raises(BusyError, match="another run is at work there"):
            run_in(tmp_path)
        with pytest.raises(BusyError):
            surgeon.tune(factories.Small(2), loader(), epochs=1, resume_dir=tmp_path)

    run_in(tmp_path, second)


@pytest.mark.parametrize("entry", ["tune", "compare"])
def test_every_run_with_a_folder_holds_it(entry: str, tmp_path: Path) -> None:
    model, grid = factories.Small(2), surgeon.Experiment.read({"budgets": [{"filters": 4}], "epochs": 1, "steps": 1})
    runs: dict[str, Callable[[], Any]] = {
        "tune": lambda: surgeon.tune(model, loader(), epochs=1, resume_dir=tmp_path),
        "compare": lambda: surgeon.compare(model, X[:2], loader(), loader(), grid, directory=tmp_path),
    }
    with locked(tmp_path), pytest.raises(BusyError):
        runs[entry]()


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_in(tmp_path, stop)
    run_in(tmp_path)


HOLDER = """
import sys, time
from surgeon.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_leaves_its_folder_unlocked_and_swept(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, cwd=root, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError
    holder.kill()
    holder.wait()
    holder.stdout.close()
    (tmp_path / ".step-1.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".tmpm2VY2n").write_bytes(b"half, by safetensors")
    (tmp_path / ".mine.tmp").write_bytes(b"of somebody else")
    with locked(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, ".mine.tmp"]


def test_the_lock_is_the_systems_own() -> None:
    assert filelock.FileLock is not filelock.SoftFileLock


def _one_run(folder: Path) -> None:
    torch.set_num_threads(1)
    done = run_in(folder / "run")
    surgeon.save(folder / "final", done.model, done.plan)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_runs_that_are_killed_end_as_one_that_is_not(tmp_path: Path) -> None:
    whole, fork = run_in(tmp_path / "whole"), multiprocessing.get_context("fork")
    draw = random.Random(2)
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        for kill in range(4):
            process = fork.Process(target=_one_run, args=(folder,))
            process.start()
            process.join(None if kill == 3 else draw.uniform(0.05, 1.0))
            if process.is_alive():
                process.kill()
                process.join()
        back = surgeon.load(folder / "final", lambda: factories.Small(2))
        assert same(dict(whole.model.state_dict()), dict(back.state_dict()))


def test_a_name_comes_after_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is flushed to the disk before it is renamed, the folder after that."""
    import os

    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def noted(word: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            order.append(word)
            return real(*args)

        return run

    monkeypatch.setattr(os, "fsync", noted("sync", sync))
    monkeypatch.setattr(Path, "replace", noted("rename", rename))
    with write_beside(tmp_path / "f") as temporary:
        temporary.write_text("x", encoding="ascii")
    assert order == ["sync", "rename", "sync"]


def test_copies_of_a_model_keep_no_lock() -> None:
    """What threads share is the process's, never a model's: models can be copied and sent on."""
    model = surgeon.prune(factories.small(), X[:2], filters=4, criterion="magnitude", verify=False).model
    assert not any(isinstance(value, type(threading.RLock())) for m in model.modules() for value in vars(m).values())
    copy.deepcopy(model)
