"""One run: epochs of steps, validation in between, the state saved after each."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import DivergenceError, TuningError
from surgeon.processes import from_first, length, total
from surgeon.tracing import in_mode
from surgeon.tuning.averaging import copy_into, snapshot
from surgeon.tuning.evaluation import Validation, evaluate, moved
from surgeon.tuning.objectives import Objective, count_examples
from surgeon.tuning.order import seed_epoch
from surgeon.tuning.penalties import Penalty
from surgeon.tuning.rates import rate
from surgeon.tuning.recipe import Epoch, Recipe
from surgeon.tuning.sharded import Spread, reshard
from surgeon.tuning.sharing import parts_of
from surgeon.tuning.state import Run, write_state
from surgeon.tuning.synchronised import Step, synchronised

_log = logging.getLogger("surgeon")

__all__ = ["Loop", "Metric", "on_device"]

#: ``metric(model)`` of the model in eval mode; greater is better.
Metric = Callable[[nn.Module], float]


@dataclass
class Loop:
    """A training run on its device.

    Attributes
    ----------
    run:
        What is carried from epoch to epoch.
    recipe:
        What was asked.
    objective:
        The loss.
    accelerator, device:
        Of :func:`~surgeon.tuning.hardware.hardware`.
    call:
        What is called as the model (it may be compiled, or spread over processes); ``run.model`` holds the tensors.
    stepper:
        The optimizer as accelerate wraps it.
    loader, val_loader, metric, penalty, folder, progress, on_epoch:
        As in :func:`surgeon.tune`.
    before_saving:
        As in :func:`surgeon.tune`.
    spread:
        Where the model is sharded: ``run`` is then its sharded run.
    """

    run: Run
    recipe: Recipe
    objective: Objective
    accelerator: Any
    device: torch.device
    call: nn.Module
    stepper: Any
    loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    metric: Metric | None
    penalty: Penalty | None
    folder: Any
    progress: Callable[[str, int, int], None]
    on_epoch: Callable[[tuple[Epoch, ...]], None]
    before_saving: Callable[[int], None]
    spread: Spread | None = None

    def finish(self) -> None:
        """Train the epochs that are still to come, then load the weights that are to stay."""
        for epoch in range(len(self.run.history) + 1, self.recipe.epochs + 1):
            self._epoch(epoch)
            if self.folder is not None:
                writes = self.accelerator.is_main_process
                whole = self.run if self.spread is None else self.spread.gather(keep=writes)
                self.before_saving(epoch)
                if writes:
                    write_state(self.folder, whole)
                self.accelerator.wait_for_everyone()
            self.on_epoch(tuple(self.run.history))
        if self.run.best is not None:
            copy_into(self.run.model, self.run.best)
        elif self.run.average is not None and self.run.history:
            copy_into(self.run.model, self.run.average.tensors)
        if self.spread is not None:
            self.spread.gather()

    def _epoch(self, number: int) -> None:
        start = time.perf_counter()
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        parts = parts_of(self.loader, rank, size, self.recipe.seed, number)
        seed_epoch(parts, self.recipe.seed, number, rank)
        self.stepper.zero_grad()  # what the caller, or a step that was interrupted, has left
        with in_mode(self.run.model, True):
            loss = self._train(parts, number)
        getattr(self.penalty, "after_epoch", lambda _: None)(self.run.model)
        row = Epoch(number, self.run.optimizer.param_groups[0]["lr"], loss)
        with self._averaged():
            row = self._validated(row)
            if self._validates and row.rank > (self._best_rank or (-math.inf, -math.inf)):
                self.run.best, self.run.best_epoch = snapshot(self.run.model), number
        if not self._validates:
            self.run.best_epoch = number
        row = replace(row, seconds=time.perf_counter() - start)
        self.run.history.append(row)
        _log.info(
            "epoch %d of %d: loss %.6g, %.2f s", number, self.recipe.epochs, row.train_loss, row.seconds,
            extra={"stage": "tune", "seconds": row.seconds},
        )  # fmt: skip

    def _train(self, parts: Iterable[tuple[Any, float]], number: int) -> float:
        """The epoch's mean loss over the examples."""
        summed, examples = torch.zeros((), dtype=torch.float64, device=self._counts_on), 0
        size, step = length(self.loader) or 0, Step()
        with synchronised(self.run.model, step, self.accelerator.num_processes):
            for index, (given, weight) in enumerate(parts):
                batch, step.counts = moved(given, self.device), weight > 0
                self._set_rates(number - 1 + (index + 0.5) / size if size else number - 0.5)
                loss = self._step(batch, weight)
                if not index and number == 1:
                    _check_finite(float(loss), number)
                count = count_examples(batch) if step.counts else 0
                summed, examples = summed + loss.to(summed) * count, examples + count
                self.progress("tune", (number - 1) * size + index + 1, self.recipe.epochs * size)
        seen, of = (float(value) for value in total(summed, torch.tensor(examples)))
        if not of:
            raise TuningError(
                f"the training loader gave no batch in epoch {number}; pass one that can be iterated again every epoch"
            )
        _check_finite(seen, number)
        return seen / of

    def _step(self, batch: Any, weight: float) -> Tensor:
        with self.accelerator.autocast():
            loss = self.objective(self.call, batch).loss
        minimised = loss if weight == 1 else loss * weight
        minimised = minimised if self.penalty is None else minimised + self.penalty(self.run.model)
        self.accelerator.backward(minimised)
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.run.model.parameters(), self.recipe.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.run.average is not None:
            self.run.average.update(self.run.model)
        return loss.detach()

    def _set_rates(self, position: float) -> None:
        recipe = self.recipe
        share = rate(recipe.schedule, position, recipe.epochs, recipe.warmup_epochs)
        for group in self.run.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share

    def _validated(self, row: Epoch) -> Epoch:
        """The row with what validation says; all processes take the first one's word."""
        if self.val_loader is not None and self.metric is None:
            seen: Validation = evaluate(
                self.run.model, self.val_loader, self.objective.plain(), autocast=self.accelerator.autocast,
                evenly=self.spread is not None,
            )  # fmt: skip
            row = replace(row, val_loss=seen.loss, val_accuracy=seen.accuracy, val_top5=seen.top5)
        if self.metric is not None:
            with in_mode(self.run.model, False), torch.no_grad():
                found = float(self.metric(self.run.model))
            row = replace(row, val_metric=from_first(lambda: found))
        if self.spread is not None:
            reshard(self.run.model)
        return row

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        average = self.run.average
        return contextlib.nullcontext() if average is None else average.applied(self.run.model)

    @property
    def _validates(self) -> bool:
        return self.val_loader is not None or self.metric is not None

    @property
    def _best_rank(self) -> tuple[float, float] | None:
        return self.run.history[self.run.best_epoch - 1].rank if self.run.best_epoch else None

    @property
    def _counts_on(self) -> torch.device:
        """Where losses are added up: some devices have no 64-bit numbers."""
        return torch.device("cpu") if self.device.type == "mps" else self.device


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"the loss is not finite ({loss}) in epoch {epoch}; lower lr, add warmup_epochs or clip, or check the data"
        )


@contextlib.contextmanager
def on_device(model: nn.Module, device: torch.device, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Run the body with the model on the device; afterwards it is where it was."""
    before = next((p.device for p in model.parameters()), device)
    _move(model, device, optimizer)
    try:
        yield
    finally:
        _move(model, before, optimizer)


def _move(model: nn.Module, device: torch.device, optimizer: torch.optim.Optimizer | None) -> None:
    if any(tensor.device != device for tensor in model.parameters()):
        model.to(device)
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim:  # counters of steps stay where the optimizer put them
                state[key] = value.to(parameter.device)
