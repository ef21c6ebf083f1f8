"""``prune_and_tune``: cut a little, train, cut again; what an interruption leaves is taken up where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.errors import ModelError, TuningError
from surgeon.files import locked
from surgeon.iteration.running import AfterCut, OnStep, PrunedAndTuned, Run, graph_of
from surgeon.planning import names_of_layers, plain_amounts
from surgeon.planning.steps import BUDGETS, goals_of
from surgeon.processes import fingerprint, first, repeatable, start, together
from surgeon.report import sizes
from surgeon.tracing import check_model, named_tensors, outside_inference_mode
from surgeon.tuning.record import Asked, Step, plain

__all__ = ["PrunedAndTuned", "Step", "prune_and_tune"]


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
    seed:
        For everything that draws, in cuts and in training.
    progress:
        Called as ``progress(stage, done, total)``; of the stage ``"steps"`` with the steps done and in all.
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
    budget = plain_amounts({name: options.pop(name, None) for name in BUDGETS})
    dense = graph_of(module, example_inputs)
    if rewind is not None:
        _check_rewind(check_model(rewind), module)
    amounts = sizes(dense)
    goals = goals_of(budget, schedule, steps, amounts)
    options = {"dataloader": train_loader, **options}
    options |= {name: names_of_layers(module, options.get(name)) for name in ("ignored_layers", "units")}
    given = {k: options[k] for k in ("loss_fn", "forward_loss") if k in options} | dict(tuning or {})
    asked = {"goals": goals, "epochs": epochs_per_step, "final": final_epochs, "carry": carry_optimizer, "seed": seed}
    asked |= plain({**options, **given}) | {"after_cut": after_cut is not None}
    asked |= {"weights": _digest(module), "rewind": None if rewind is None else _digest(rewind)}
    run = Run(
        dense=module,
        sizes=amounts,
        example_inputs=example_inputs,
        train_loader=train_loader,
        val_loader=val_loader,
        goals=goals,
        options=options,
        tuning=given,
        epochs_per_step=epochs_per_step,
        final_epochs=final_epochs,
        after_cut=after_cut,
        carry_optimizer=carry_optimizer and rewind is None,
        rewind=rewind,
        directory=None if directory is None else Path(directory),
        origin=origin,
        on_step=on_step or (lambda *_: None),
        seed=seed,
        progress=progress or (lambda *_: None),
    )
    with together("pruning and tuning"), locked(directory if first() else None):
        for name in ("dataloader", "calibration"):  # every step goes through them
            if run.options.get(name) is not None:
                run.options[name] = repeatable(run.options[name])
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


def _check_rewind(early: nn.Module, model: nn.Module) -> None:
    """Whether these can be early weights of the model; it would be found out after the first cut."""
    theirs, ours = ({n: list(t.shape) for n, t in named_tensors(one).items()} for one in (early, model))
    for name in (*ours, *theirs):
        if theirs.get(name) != ours.get(name):
            raise TuningError(
                f"rewind: {name} has shape {theirs.get(name)} there and {ours.get(name)} in the model; pass the dense "
                "model itself, with the weights that it had early in its training"
            )


def _digest(model: nn.Module) -> str:
    return fingerprint(named_tensors(model))
