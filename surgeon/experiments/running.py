"""One cell of a grid: cut, trained and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.channels import channel_graph
from surgeon.errors import TuningError
from surgeon.experiments.grid import DENSE, SCRATCH, Key
from surgeon.experiments.results import Cell
from surgeon.iteration import prune_and_tune
from surgeon.measure import latency
from surgeon.pruning import prune
from surgeon.report import sizes
from surgeon.tracing import Inputs, copied, trace
from surgeon.tuning import evaluate, tune
from surgeon.tuning.optimizers import FROM_SCRATCH
from surgeon.tuning.order import own_randomness

__all__ = ["OF_STEPS", "Runner", "renew"]

_ROUNDS = 10
#: Options that :func:`surgeon.prune_and_tune` has beside those of :func:`surgeon.prune`.
OF_STEPS = ("after_cut", "carry_optimizer", "rewind", "origin", "on_step")


@dataclass
class Runner:
    """Trains and measures one cell after the other; see :func:`surgeon.compare`."""

    dense: nn.Module
    example_inputs: Any
    train_loader: Iterable[Any]
    val_loader: Iterable[Any]
    judge: Iterable[Any]
    directory: Path | None
    tuning: dict[str, Any]
    options: dict[str, Any]
    progress: Callable[[str, int, int], None]

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
            start = copied(self.dense, {}) if key.schedule == DENSE else self._anew(key)
            tune(
                start, self.train_loader, self.val_loader, epochs=key.epochs, resume_dir=folder, seed=key.seed,
                progress=self.progress, **(self.tuning if key.schedule == DENSE else self._from_scratch()),
            )  # fmt: skip
            return start
        result = prune_and_tune(
            self.dense, self.example_inputs, self.train_loader, self.val_loader, **key.amounts, steps=key.steps,
            schedule=key.schedule, epochs_per_step=key.epochs // key.steps, criterion=key.criterion, seed=key.seed,
            directory=folder, tuning=self.tuning, progress=self.progress, **self.options,
        )  # fmt: skip
        return result.model

    def _from_scratch(self) -> dict[str, Any]:
        """How new weights are trained: where no rate is given, at their own."""
        rate = FROM_SCRATCH.get(self.tuning.get("optimizer", "sgd"))
        return self.tuning if self.tuning.get("lr") is not None or rate is None else {**self.tuning, "lr": rate}

    def _anew(self, key: Key) -> nn.Module:
        """What one cut leaves, with new weights."""
        options = {"dataloader": self.train_loader, **self.options}
        options = {name: value for name, value in options.items() if name not in OF_STEPS}
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
