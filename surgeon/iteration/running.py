"""A run of :func:`surgeon.prune_and_tune`: its steps, and what an interruption left of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.checkpoint import load, read_header, save
from surgeon.composition import compose
from surgeon.errors import CheckpointError
from surgeon.planning import Plan
from surgeon.planning.steps import remaining
from surgeon.processes import first, from_first
from surgeon.pruning import prune
from surgeon.report import layer_rows, sizes
from surgeon.rewriting import fit, rewrite
from surgeon.tracing import Inputs, copied, trace
from surgeon.tuning import Tuned, evaluate, rewrite_optimizer, tune
from surgeon.tuning.objectives import Objective
from surgeon.tuning.order import own_randomness, seed_epoch
from surgeon.tuning.record import Asked, Step, read_rows, write_rows
from surgeon.tuning.state import FILE

_log = logging.getLogger("surgeon")
#: Called as ``after_cut(small, before, plan)``; changes the small model in place.
AfterCut = Callable[[nn.Module, nn.Module, Plan], None]
#: Called as ``on_step(step, small)``.
OnStep = Callable[[Step, nn.Module], None]


@dataclass(frozen=True)
class PrunedAndTuned:
    """What :func:`prune_and_tune` gives back: the model, all cuts as one plan for the dense model, and the steps.

    `dense` is the row of the model before the first cut, number 0.
    """

    model: nn.Module
    plan: Plan
    steps: tuple[Step, ...]
    dense: Step


def graph_of(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """The channels of a model."""
    return channel_graph(trace(model, Inputs.of(example_inputs)))


@dataclass
class Run:
    """A run of :func:`prune_and_tune`: its arguments, the dense model's sizes, and the targets of each step."""

    dense: nn.Module
    sizes: dict[str, int]
    example_inputs: Any
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    goals: list[dict[str, float]]
    options: dict[str, Any]
    tuning: dict[str, Any]
    epochs_per_step: int
    final_epochs: int
    after_cut: AfterCut | None
    carry_optimizer: bool
    rewind: nn.Module | None
    directory: Path | None
    origin: Mapping[str, Any] | None
    on_step: OnStep
    seed: int
    progress: Callable[[str, int, int], None]

    def finish(self, asked: Asked, graph: ChannelGraph) -> PrunedAndTuned:
        """All steps that are still to come.

        Raises
        ------
        CheckpointError
            If the record holds fewer steps than have begun.
        """
        rows = [] if self.directory is None else self._record(self.directory, asked)
        model, plan, tuned = self.dense, Plan.empty(graph), None
        dense = self._measured(0, self.dense, plan, graph)
        start = self._last_begun()
        if len(rows) < start - 1:
            raise CheckpointError(
                f"{self.directory}: step {start} has begun, and the record holds {len(rows)} steps; give another "
                "directory"
            )
        self.progress("steps", max(start - 1, 0), len(self.goals))
        for number, goal in enumerate(self.goals, 1):
            if number < start:
                continue
            if number > start or start == 0:
                model, plan, optimizer = self._cut(number, goal, model, plan, tuned)
            else:
                model, plan = self._load(number, plan)
                optimizer = None
            row = self._measured(number, model, plan, graph)
            tuned = self._tune(number, model, optimizer)
            history, best, notes = tuned.history, tuned.best_epoch, tuned.notes
            row = dataclasses.replace(row, history=history, best_epoch=best, notes=notes)
            rows = [*rows[: number - 1], row]
            if self.directory is not None and first():
                save(self.directory / f"step-{number}.safetensors", model, plan, self.origin)
                write_rows(self.directory, asked, rows)
            counts = number, len(self.goals), row.filters, row.params
            _log.info("step %d of %d: %d filters, %d parameters left", *counts, extra={"stage": "steps"})
            self.on_step(row, model)
            self.progress("steps", number, len(self.goals))
        return PrunedAndTuned(model, plan, tuple(rows), dense)

    def _record(self, folder: Path, asked: Asked) -> list[Step]:
        """The steps that are finished; where there is no record yet, the first process makes one before others look."""
        from_first(lambda: len(read_rows(folder, asked)))
        return read_rows(folder, asked)

    def _measured(self, number: int, model: nn.Module, plan: Plan, dense: ChannelGraph) -> Step:
        """The row of a step whose training is still to come."""
        now = sizes(graph_of(model, self.example_inputs))
        widths = {row.name: row.after for row in layer_rows(dense, plan.kept(dense))}
        cut = None
        if self.val_loader is not None and self.tuning.get("metric") is None:
            objective = Objective(self.tuning.get("loss_fn"), self.tuning.get("forward_loss"))
            with own_randomness(next((p.device for p in model.parameters()), torch.device("cpu"))):
                cut = evaluate(model, self.val_loader, objective)
        counts = now["filters"], now["max_macs"], now["max_params"]
        return Step(number, *counts, history=(), best_epoch=0, widths=widths, cut=cut)

    def _last_begun(self) -> int:
        """The last step whose training has begun; 0 if none has."""
        if self.directory is None:
            return 0
        folder = self.directory
        begun = [n for n in range(1, len(self.goals) + 1) if (folder / f"step-{n}" / FILE).exists()]
        return from_first(lambda: max(begun, default=0))

    def _load(self, number: int, nothing: Plan) -> tuple[nn.Module, Plan]:
        """The model as it was when the step's training began."""
        assert self.directory is not None
        path = self.directory / f"step-{number}-cut.safetensors"
        plan = read_header(path).plan
        small = load(path, lambda: copied(self.dense, {}), example_inputs=self.example_inputs)
        device = next((p.device for p in self.dense.parameters()), torch.device("cpu"))
        return small.to(device), dataclasses.replace(plan, inputs=nothing.inputs)

    def _cut(
        self, number: int, goal: Mapping[str, float], before: nn.Module, plan: Plan, tuned: Tuned | None
    ) -> tuple[nn.Module, Plan, torch.optim.Optimizer | None]:
        """The model after the step's cut, all cuts so far as one plan, and the optimizer for it."""
        budget = self._budget(goal, before, number)
        optimizer = tuned.optimizer if tuned is not None and self.carry_optimizer else None
        small = before if tuned is not None or budget else copied(before, {})
        if budget:
            loader = self.options["dataloader"]
            with own_randomness(next((p.device for p in before.parameters()), torch.device("cpu"))):
                seed_epoch(loader, self.seed + number, 0)
                result = prune(before, self.example_inputs, seed=self.seed, progress=self.progress, **budget,
                               **self.options)  # fmt: skip
                small = result.model
                if self.after_cut is not None:
                    self.after_cut(small, before, result.plan)
            fitted = fit(before, result.plan, self.example_inputs)
            plan = compose(self.dense, plan, fitted, self.example_inputs)
            plan = dataclasses.replace(plan, budget=result.plan.budget, criterion=result.plan.criterion)
            optimizer = None if optimizer is None else rewrite_optimizer(optimizer, fitted, before, small)
            if self.rewind is not None:
                early = rewrite(self.rewind, dataclasses.replace(plan, fitted=None), self.example_inputs)
                small.load_state_dict(early.state_dict())
        if self.directory is not None and first():
            save(self.directory / f"step-{number}-cut.safetensors", small, plan, self.origin)
        return small, plan, optimizer

    def _budget(self, goal: Mapping[str, float], model: nn.Module, number: int) -> dict[str, Any]:
        """What the step still has to cut, for :func:`surgeon.prune`; empty if it is there already."""
        before = self.goals[number - 2] if number > 1 else {}
        return remaining(goal, before, self.sizes, sizes(graph_of(model, self.example_inputs)))

    def _tune(self, number: int, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Tuned:
        last = number == len(self.goals)
        given = dict(self.tuning) | ({} if optimizer is None else {"optimizer": optimizer})
        if isinstance(given.get("lr"), list | tuple):
            given["lr"] = given["lr"][number - 1]
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = given["lr"]  # of an optimizer that there is, its own rate counts
        folder = None if self.directory is None else self.directory / f"step-{number}"
        return tune(
            model, self.train_loader, self.val_loader, epochs=self.epochs_per_step + (self.final_epochs if last else 0),
            resume_dir=folder, seed=self.seed + number, progress=self.progress, **given,
        )  # fmt: skip
