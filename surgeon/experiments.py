"""``compare``: a grid of cuts with training, every finished cell kept, and what comes out against what it costs.

A cell is one criterion, budget, schedule and seed. All get the same number of epochs in all, so that cutting gradually,
at once, not at all, and a small network trained from new weights are compared at equal cost.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon import processes
from surgeon.channels import channel_graph
from surgeon.errors import CheckpointError, TuningError
from surgeon.files import locked
from surgeon.iteration import prune_and_tune
from surgeon.jsonfiles import as_read, read_file, write_file
from surgeon.measure import latency
from surgeon.planning.budgets import LIMITS
from surgeon.pruning import prune
from surgeon.report import sizes
from surgeon.tracing import Inputs, check_model, trace
from surgeon.tuning import evaluate, tune
from surgeon.tuning.order import own_randomness

__all__ = ["Cell", "Compared", "Experiment", "Summary", "compare"]

#: Schedules that are no gradual cut: everything at once; the cut network from new weights; the whole network.
ONE_SHOT, SCRATCH, DENSE = "one-shot", "scratch", "dense"
_FILE = "cells.json"
_ROUNDS = 10
_SEEDS = 2**63


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes
    ----------
    criteria, budgets, schedules, seeds:
        The grid. A budget is what :func:`surgeon.prune` takes (``{"max_macs": 0.5}``); a schedule one of
        :func:`surgeon.prune_and_tune`, ``"one-shot"`` (cut at once and train as long), or ``"scratch"`` (the network
        that one cut leaves, from new weights).
    steps, epochs:
        Cuts of a gradual schedule, and epochs of every cell in all; the steps share them evenly.
    dense:
        Also train the whole network as long.
    """

    criteria: tuple[str, ...] = ("taylor",)
    budgets: tuple[Mapping[str, Any], ...] = ({"max_macs": 0.5},)
    schedules: tuple[str, ...] = ("linear", "one-shot")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5
    epochs: int = 10
    dense: bool = True

    def __post_init__(self) -> None:
        for name in ("criteria", "budgets", "schedules", "seeds"):
            if not getattr(self, name):
                raise TuningError(f"{name} is empty: give at least one")
        if type(self.steps) is not int or type(self.epochs) is not int or not 1 <= self.steps <= self.epochs:
            raise TuningError(
                f"steps={self.steps!r}, epochs={self.epochs!r}: expected at least one step, and an epoch for each"
            )
        if self.epochs % self.steps:
            raise TuningError(f"epochs={self.epochs} can't be shared evenly by steps={self.steps}: give a multiple")
        if not isinstance(self.dense, bool):
            raise TuningError(f"dense={self.dense!r}: expected true or false")
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed < _SEEDS:
                raise TuningError(f"seeds: {seed!r} is no whole number from 0 to 2^63 - 1")
        for budget in self.budgets:
            _check_budget(budget)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Experiment:
        """From a file's table.

        Raises
        ------
        TuningError
            For a field that there isn't, or one of another type.
        """
        known = cls.__dataclass_fields__
        if unknown := sorted(set(fields) - set(known)):
            raise TuningError(f"the experiment has no field {unknown[0]!r}; there are: {', '.join(known)}")
        listed = {"criteria": str, "budgets": Mapping, "schedules": str, "seeds": int}
        for name, kind in listed.items():
            values = fields.get(name, ())
            if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
                raise TuningError(f"the experiment's {name} is {values!r}: expected a list of {kind.__name__}")
        given: dict[str, Any] = {n: tuple(value) if n in listed else value for n, value in fields.items()}
        return cls(**given)

    def keys(self) -> Iterator[Key]:
        """All cells of the grid; the whole network is one for each seed."""
        for criterion, budget, schedule, seed in itertools.product(
            self.criteria, self.budgets, self.schedules, self.seeds
        ):
            steps = 1 if schedule in (ONE_SHOT, SCRATCH) else self.steps
            yield Key(criterion, tuple(sorted(budget.items())), schedule, seed, steps, self.epochs)
        for seed in self.seeds if self.dense else ():
            yield Key("", (), DENSE, seed, 1, self.epochs)


def _check_budget(budget: Any) -> None:
    known = ("filters", "ratio", *LIMITS)
    if not isinstance(budget, Mapping) or not budget:
        raise TuningError(f"budgets: {budget!r} is no table such as {{'max_macs': 0.5}}")
    for name, amount in budget.items():
        if name not in known:
            raise TuningError(f"budgets: there is no {name!r}; there are: {', '.join(known)}")
        if isinstance(amount, bool) or not isinstance(amount, int | float | str):
            raise TuningError(f"budgets: {name} is {amount!r}, expected a number or a share ('50%')")


@dataclass(frozen=True)
class Key:
    """What a cell is: see :class:`Experiment`; the budget as pairs."""

    criterion: str
    budget: tuple[tuple[str, str | float | int | None], ...]
    schedule: str
    seed: int
    steps: int
    epochs: int

    @property
    def amounts(self) -> dict[str, Any]:
        """The budget, as :func:`surgeon.prune` takes it."""
        return dict(self.budget)

    @property
    def folder(self) -> str:
        """Where its training is kept."""
        words = [self.criterion, *(f"{name}={amount}" for name, amount in self.budget), self.schedule]
        return "_".join([*filter(None, words), f"{self.steps}x{self.epochs}", f"seed={self.seed}"]).replace("/", "-")


@dataclass(frozen=True)
class Cell:
    """One finished run.

    `accuracy` is a share of the judging data, or None; `macs` counts a multiply-add as 1; `latency` is the median of
    one forward in seconds, and `speed_up` the dense model's over it, measured interleaved.
    """

    key: Key
    accuracy: float | None
    loss: float
    macs: int
    params: int
    latency: float
    speed_up: float


@dataclass(frozen=True)
class _Saved:
    """What the file holds."""

    about: Any
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Summary:
    """The seeds of one criterion, budget and schedule together: least, mean and greatest accuracy, mean costs."""

    criterion: str
    budget: tuple[tuple[str, Any], ...]
    schedule: str
    runs: int
    least: float
    mean: float
    most: float
    macs: float
    params: float
    latency: float
    speed_up: float


@dataclass(frozen=True)
class Compared:
    """What :func:`compare` gives back."""

    cells: tuple[Cell, ...]
    summaries: tuple[Summary, ...]

    def front(self, cost: str) -> tuple[Summary, ...]:
        """What nothing beats in mean accuracy and in ``"macs"``, ``"params"`` or ``"latency"`` both; cheapest first."""
        best, kept = float("-inf"), []
        for summary in sorted(self.summaries, key=lambda s: (getattr(s, cost), -s.mean)):
            if summary.mean > best:
                best = summary.mean
                kept.append(summary)
        return tuple(kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the fronts hold positions among the summaries."""
        fronts = {cost: [self.summaries.index(s) for s in self.front(cost)] for cost in ("macs", "params", "latency")}
        return {**asdict(self), "fronts": fronts}


def compare(
    model: nn.Module,
    example_inputs: Any,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    experiment: Experiment,
    *,
    judge: Iterable[Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Compared:
    """Run every cell of a grid that isn't finished yet, starting from `model` each time; `model` is left as it is.

    Parameters
    ----------
    model, example_inputs, train_loader, val_loader:
        As in :func:`surgeon.prune_and_tune`; `val_loader` chooses the epoch of each run.
    experiment:
        The grid.
    judge:
        What the cells are judged on, such as a test set; default: `val_loader`, which flatters them all.
    directory, about:
        Where finished cells and the state of the running one are kept, and what they belong to (JSON-able): a folder
        of something else is refused. A grid can be made larger later on.
    tuning, options:
        As in :func:`surgeon.prune_and_tune`, for every cell.
    on_cell:
        Called with every cell when it is finished.

    Raises
    ------
    CheckpointError
        If `directory` belongs to another comparison.
    BusyError
        If another run is at work there.
    TuningError, BudgetError and others
        As :func:`surgeon.prune_and_tune`.
    """
    if processes.count() > 1:
        raise TuningError("compare works in one process: start it without a launcher")
    run = _Run(
        check_model(model), example_inputs, train_loader, val_loader, val_loader if judge is None else judge,
        None if directory is None else Path(directory), dict(tuning or {}), options, progress or (lambda *_: None),
    )  # fmt: skip
    keys = list(dict.fromkeys(experiment.keys()))
    with locked(directory):
        done = run.read(about or {})
        for number, key in enumerate(keys):
            if key not in done:
                done[key] = run.cell(key)
                run.write(about or {}, done)
                (on_cell or (lambda _: None))(done[key])
            run.progress("cells", number + 1, len(keys))
    cells = tuple(done[key] for key in keys)
    return Compared(cells, tuple(_summaries(cells)))


def _summaries(cells: Sequence[Cell]) -> Iterator[Summary]:
    together: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        together[cell.key.criterion, cell.key.budget, cell.key.schedule].append(cell)
    for (criterion, budget, schedule), runs in together.items():
        seen = [run.accuracy if run.accuracy is not None else -run.loss for run in runs]
        means = (sum(getattr(run, n) for run in runs) / len(runs) for n in ("macs", "params", "latency", "speed_up"))
        yield Summary(criterion, budget, schedule, len(runs), min(seen), sum(seen) / len(seen), max(seen), *means)


@dataclass
class _Run:
    """Runs cells, and keeps the finished ones."""

    dense: nn.Module
    example_inputs: Any
    train_loader: Iterable[Any]
    val_loader: Iterable[Any]
    judge: Iterable[Any]
    directory: Path | None
    tuning: dict[str, Any]
    options: dict[str, Any]
    progress: Callable[[str, int, int], None]

    def read(self, about: Mapping[str, Any]) -> dict[Key, Cell]:
        """The cells that are finished."""
        if self.directory is None:
            return {}
        path = self.directory / _FILE
        if not path.exists():
            self.write(about, {})
            return {}
        saved: _Saved = read_file(path, _Saved, "give another folder")
        if saved.about != as_read(about):
            raise CheckpointError(f"{path}: its cells belong to {saved.about}, these to {about}; give another folder")
        return {cell.key: cell for cell in saved.cells}

    def write(self, about: Mapping[str, Any], done: Mapping[Key, Cell]) -> None:
        """Keep the finished cells; the file is replaced whole."""
        if self.directory is None:
            return
        write_file(self.directory / _FILE, _Saved(about, tuple(done.values())))

    def cell(self, key: Key) -> Cell:
        """Train one, and measure it."""
        small = self._trained(key)
        device = next((p.device for p in self.dense.parameters()), torch.device("cpu"))
        with own_randomness(device):
            seen = evaluate(small, self.judge)
        graph = channel_graph(trace(small, Inputs.of(self.example_inputs)))
        timed = latency({"dense": self.dense, "small": small}, self.example_inputs, rounds=_ROUNDS)
        now, ratio = sizes(graph), timed.speed_up("small", "dense").ratio
        median = next(t.median for t in timed.latencies if t.name == "small")
        return Cell(key, seen.accuracy, seen.loss, now["max_macs"], now["max_params"], median, ratio)

    def _trained(self, key: Key) -> nn.Module:
        folder = None if self.directory is None else self.directory / key.folder
        if key.schedule in (DENSE, SCRATCH):
            start = copy.deepcopy(self.dense) if key.schedule == DENSE else self._anew(key)
            tune(
                start, self.train_loader, self.val_loader, epochs=key.epochs, resume_dir=folder, seed=key.seed,
                progress=self.progress, **self.tuning,
            )  # fmt: skip
            return start
        result = prune_and_tune(
            self.dense, self.example_inputs, self.train_loader, self.val_loader, **key.amounts, steps=key.steps,
            schedule=key.schedule, epochs_per_step=key.epochs // key.steps, criterion=key.criterion, seed=key.seed,
            directory=folder, tuning=self.tuning, progress=self.progress, **self.options,
        )  # fmt: skip
        return result.model

    def _anew(self, key: Key) -> nn.Module:
        """What one cut leaves, with new weights."""
        options = {"dataloader": self.train_loader, **self.options}
        device = next((p.device for p in self.dense.parameters()), torch.device("cpu"))
        with own_randomness(device):
            torch.manual_seed(key.seed)
            small = prune(
                self.dense, self.example_inputs, **key.amounts, criterion=key.criterion, seed=key.seed, **options
            ).model
            torch.manual_seed(key.seed)
            renew(small)
        return small


def renew(model: nn.Module) -> None:
    """Give every layer new weights, as its class starts them, drawn from torch's random numbers.

    Raises
    ------
    TuningError
        If some parameter belongs to a module that has no ``reset_parameters()``: it would keep what it has learned.
    """
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TuningError(
                f"{name or 'the model'} ({type(module).__name__}) has parameters and no reset_parameters(): it can't "
                "be trained from new weights; leave 'scratch' out, or give its class one"
            )
