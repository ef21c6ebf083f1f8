"""``prune_and_tune``: cut a little, train, cut again; what an interruption leaves is taken up where it was."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.checkpoint import load, read_header, save
from surgeon.composition import compose
from surgeon.errors import CheckpointError, ModelError, TuningError
from surgeon.files import locked
from surgeon.planning import Plan
from surgeon.planning.steps import BUDGETS, goals_of, remaining
from surgeon.processes import fingerprint, first, from_first, start, together
from surgeon.pruning import prune
from surgeon.report import layer_rows, sizes
from surgeon.rewriting import fit, rewrite
from surgeon.tracing import Inputs, check_model, named_tensors, outside_inference_mode, trace
from surgeon.tuning import Tuned, evaluate, rewrite_optimizer, tune
from surgeon.tuning.objectives import Objective
from surgeon.tuning.order import own_randomness, seed_epoch
from surgeon.tuning.record import Asked, Step, plain, read_rows, write_rows
from surgeon.tuning.state import FILE

__all__ = ["PrunedAndTuned", "Step", "prune_and_tune"]

_log = logging.getLogger("surgeon")
#: Called as ``after_cut(small, before, plan)``; changes the small model in place.
AfterCut = Callable[[nn.Module, nn.Module, Plan], None]
#: Called as ``on_step(step, small)``.
OnStep = Callable[[Step, nn.Module], None]
Sizes = dict[str, int]


@dataclass(frozen=True)
class PrunedAndTuned:
    """What :func:`prune_and_tune` gives back: the model, all cuts as one plan for the dense model, and the steps.

    `dense` is the row of the model before the first cut, number 0.
    """

    model: nn.Module
    plan: Plan
    steps: tuple[Step, ...]
    dense: Step


@outside_inference_mode
def prune_and_tune(
    model: nn.Module,
    example_inputs: Any,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *,
    steps: int = 5,
    epochs_per_step: int = 1,
    final_epochs: int = 0,
    schedule: str | None = None,
    tuning: Mapping[str, Any] | None = None,
    after_cut: AfterCut | None = None,
    carry_optimizer: bool = True,
    rewind: nn.Module | None = None,
    directory: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> PrunedAndTuned:
    """Reach a budget in several cuts with training after each; `model` is left as it is.

    With a `directory`, a run that was interrupted at any moment and is called again with the same arguments goes on
    from the last finished epoch or cut, and on the CPU ends as one that was not interrupted (see :func:`surgeon.tune`
    for what that asks of the loaders). Other weights and other plain options are refused. Of several processes all must
    see the `directory`. The small models are saved there with all cuts so far as one plan:
    ``step-N-cut.safetensors`` before training, ``step-N.safetensors`` after it; :func:`surgeon.load` opens them.

    Parameters
    ----------
    model, example_inputs:
        As in :func:`surgeon.prune`.
    train_loader, val_loader:
        As in :func:`surgeon.tune`; `train_loader` also ranks the channels, unless ``dataloader`` is given.
    steps, schedule:
        How many cuts, and how far each goes: ``"linear"``, ``"cubic"``, ``"equal-ratio"`` and ``"one-shot"`` reach the
        budget in so many steps, ``"per-step"`` removes `filters` in every one. Default: the latter for `filters` (512
        in each of 5 steps are 2,560), ``"linear"`` for the other budgets; see :mod:`surgeon.planning.steps`.
    epochs_per_step, final_epochs:
        Training after each cut, and that much more after the last one.
    tuning:
        Further arguments of :func:`surgeon.tune`; `lr` may hold one rate per step. The learning rate's schedule runs
        anew after each cut.
    after_cut:
        Called as ``after_cut(small, before, plan)`` before training, to heal the small model in place; it must give the
        same for the same models.
    carry_optimizer:
        Take the optimizer's state along through the cuts (:func:`surgeon.rewrite_optimizer`), or start it anew after
        each.
    rewind:
        The dense model as it was early in its training (:func:`surgeon.train` keeps such weights), after Frankle et al.
        2020 (arXiv 1912.05671): what a cut leaves is trained from these weights again, with an optimizer of its own.
    directory, origin:
        Where to save, and where `model` came from, as in :func:`surgeon.save`.
    about:
        What else makes the run the one it is (JSON-able): the data and its split, how images are changed, how
        `after_cut` heals. It can't be seen from the loaders and functions; a `directory` whose run was about something
        else is refused.
    on_step:
        Called as ``on_step(step, small)`` when a step is finished and saved.
    options:
        Of :func:`surgeon.prune`: the budget, always counted from the dense model (a sequence holds one target per
        step), the criterion and the rest.

    Raises
    ------
    TuningError, CheckpointError, BusyError
        As :func:`surgeon.tune`.
    ModelError, InputError, BudgetError, SelectionError, NothingToCutError, ScoreError, VerificationError
        As :func:`surgeon.prune`.
    """
    _check(steps, epochs_per_step, final_epochs, options)
    start()
    _check_tuning(steps, tuning or {}, after_cut, rewind)
    module = check_model(model)
    budget = {name: options.pop(name) for name in BUDGETS if options.get(name) is not None}
    dense = _graph(module, example_inputs)
    amounts = sizes(dense)
    goals = goals_of(budget, schedule, steps, amounts)
    options = {"dataloader": train_loader, **options, "ignored_layers": _names(module, options.get("ignored_layers"))}
    options["units"] = _names(module, options.get("units"))
    given = {k: options[k] for k in ("loss_fn", "forward_loss") if k in options} | dict(tuning or {})
    asked = {"goals": goals, "epochs": epochs_per_step, "final": final_epochs, "carry": carry_optimizer, "seed": seed}
    asked |= plain({**options, **given}) | {"after_cut": after_cut is not None}
    asked |= {"weights": _digest(module), "rewind": None if rewind is None else _digest(rewind)}
    run = _Run(
        module, amounts, example_inputs, train_loader, val_loader, goals, options, given, epochs_per_step, final_epochs,
        after_cut, carry_optimizer and rewind is None, rewind, None if directory is None else Path(directory), origin,
        on_step or (lambda *_: None), seed, progress or (lambda *_: None),
    )  # fmt: skip
    with together("pruning and tuning"), locked(directory if first() else None):
        return run.finish(Asked.of(asked, about), dense)


def _check(steps: Any, epochs_per_step: Any, final_epochs: Any, options: Mapping[str, Any]) -> None:
    for name, value, least in (
        ("steps", steps, 1), ("epochs_per_step", epochs_per_step, 0), ("final_epochs", final_epochs, 0),
    ):  # fmt: skip
        if type(value) is not int or value < least:
            raise TuningError(f"{name}={value!r}: expected a whole number, {least} or more")
    if options.get("inplace") or options.get("as_graph"):
        raise ModelError("cutting in steps makes new models: leave inplace and as_graph out (a graph can be passed)")


def _check_tuning(steps: int, tuning: Mapping[str, Any], after_cut: AfterCut | None, rewind: nn.Module | None) -> None:
    rates = tuning.get("lr")
    if isinstance(rates, list | tuple) and len(rates) != steps:
        raise TuningError(f"lr lists {len(rates)} rates for {steps} steps: give one for each, or one for all")
    if rewind is not None and after_cut is not None:
        raise TuningError("rewind gives the small model early weights, so nothing can be healed: leave after_cut out")


def _graph(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    return channel_graph(trace(model, Inputs.of(example_inputs)))


def _digest(model: nn.Module) -> str:
    return fingerprint(named_tensors(model))


def _names(model: nn.Module, layers: Iterable[nn.Module | str] | None) -> list[nn.Module | str]:
    """Layers by name: every step has modules of its own."""
    names = {part: name for name, part in model.named_modules()}
    return [names.get(layer, layer) if isinstance(layer, nn.Module) else layer for layer in layers or ()]


@dataclass
class _Run:
    """A run of :func:`prune_and_tune`: its arguments, the dense model's sizes, and the targets of each step."""

    dense: nn.Module
    sizes: Sizes
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
        """All steps that are still to come."""
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
        now = sizes(_graph(model, self.example_inputs))
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
        small = load(path, lambda: copy.deepcopy(self.dense), example_inputs=self.example_inputs)
        device = next((p.device for p in self.dense.parameters()), torch.device("cpu"))
        return small.to(device), dataclasses.replace(plan, inputs=nothing.inputs)

    def _cut(
        self, number: int, goal: Mapping[str, float], before: nn.Module, plan: Plan, tuned: Tuned | None
    ) -> tuple[nn.Module, Plan, torch.optim.Optimizer | None]:
        """The model after the step's cut, all cuts so far as one plan, and the optimizer for it."""
        budget = self._budget(goal, before, number)
        optimizer = tuned.optimizer if tuned is not None and self.carry_optimizer else None
        small = before if tuned is not None else copy.deepcopy(before)
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
                early = rewrite(self.rewind, dataclasses.replace(plan, fitted=None))
                small.load_state_dict(early.state_dict())
        if self.directory is not None and first():
            save(self.directory / f"step-{number}-cut.safetensors", small, plan, self.origin)
        return small, plan, optimizer

    def _budget(self, goal: Mapping[str, float], model: nn.Module, number: int) -> dict[str, Any]:
        """What the step still has to cut, for :func:`surgeon.prune`; empty if it is there already."""
        before = self.goals[number - 2] if number > 1 else {}
        return remaining(goal, before, self.sizes, sizes(_graph(model, self.example_inputs)))

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
