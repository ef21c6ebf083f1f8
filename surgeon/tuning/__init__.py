"""Tuning: training and fine-tuning, resumable after every epoch, and everything around a cut that needs a gradient."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.criteria.gradients import ForwardLoss
from surgeon.errors import ModelError, TuningError
from surgeon.exclusive import ONE_AT_A_TIME
from surgeon.files import locked
from surgeon.processes import length
from surgeon.tracing import in_mode, outside_inference_mode, unwrap
from surgeon.tuning.averaging import Average
from surgeon.tuning.evaluation import Validation, evaluate
from surgeon.tuning.hardware import hardware, surroundings
from surgeon.tuning.objectives import Distillation, Objective, distillation_loss
from surgeon.tuning.optimizers import OptimizerLike, make_optimizer, rewrite_optimizer
from surgeon.tuning.order import own_randomness
from surgeon.tuning.penalties import GroupPenalty, Penalty, ScalePenalty
from surgeon.tuning.rates import rate
from surgeon.tuning.recipe import Epoch, Recipe, Tuned
from surgeon.tuning.sharded import Spread, is_sharded
from surgeon.tuning.state import Run, read_state, write_state
from surgeon.tuning.training import Loop, Metric, on_device

__all__ = [
    "Epoch", "GroupPenalty", "Metric", "OptimizerLike", "Penalty", "Recipe", "ScalePenalty", "Tuned", "Validation",
    "distillation_loss", "evaluate", "rate", "rewrite_optimizer", "tune",
]  # fmt: skip


@outside_inference_mode
def tune(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *,
    epochs: int,
    optimizer: OptimizerLike = "sgd",
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    warmup_epochs: float = 0.0,
    label_smoothing: float = 0.0,
    teacher: nn.Module | None = None,
    temperature: float = 4.0,
    teacher_weight: float = 0.5,
    ema: float | None = None,
    mixed_precision: str | None = None,
    clip: float | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    metric: Metric | None = None,
    penalty: Penalty | None = None,
    sharded: bool | None = None,
    resume_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    on_epoch: Callable[[tuple[Epoch, ...]], None] | None = None,
    before_saving: Callable[[int], None] | None = None,
) -> Tuned:
    """Train `model` in place, and leave it with the weights that did best on the validation data.

    Every epoch's random numbers follow from `seed` and the epoch's number. On the CPU a run that was interrupted at
    any moment and taken up again with the same arguments therefore ends, bit for bit, as one that wasn't, if it goes on
    with as many threads and the same versions and kind of processor (otherwise `Tuned.notes` says so). For that, the
    loaders must give the same data in the same order under the same seeds: a ``DataLoader`` does, its generator and
    those of its samplers are seeded here (so a shuffle that a generator of yours began is not continued), also with
    workers, unless they are persistent and draw random numbers. Any other iterable is taken as it comes and must be
    good for one pass per epoch. State that a model keeps outside its parameters and buffers is not saved.

    Parameters
    ----------
    model:
        Any module with a parameter that requires a gradient. Every module of it trains in train mode and has its own
        mode again afterwards; it comes back on the device on which it was.
    train_loader, val_loader:
        Batches ``(inputs, targets)``; `inputs` is a tensor or a tuple of arguments. `val_loader` chooses the epoch
        whose weights stay: never give it the data that you report on. Of several processes each trains on its part of
        every batch of a ``DataLoader``, and batch norms take their statistics over the whole batch: together they do
        what one would. Any other iterable (also a ``DataLoader`` with a ``DistributedSampler``, or of an
        ``IterableDataset``) is each process's own; a batch of all is then as many times larger.
    epochs:
        How many passes over `train_loader`; 0 trains nothing.
    optimizer:
        ``"sgd"``, ``"adamw"``, a function of the parameters, or an optimizer that holds them (from
        :func:`rewrite_optimizer`); with the last two, its own `lr` of each group counts.
    lr:
        Peak learning rate; default 0.01 for SGD and 0.001 for AdamW.
    momentum, weight_decay:
        Of SGD, and of both.
    schedule, warmup_epochs:
        How the rate goes: ``"cosine"``, ``"one-cycle"`` or ``"constant"``, see :func:`~surgeon.tuning.rate`; it is set
        for the middle of each step. In a loader without a length it changes once per epoch.
    label_smoothing:
        Share of the targets that is spread over all classes (cross entropy only).
    teacher, temperature, teacher_weight:
        Distillation, usually from the dense model: see :func:`~surgeon.tuning.distillation_loss`.
    ema:
        Decay of a moving average of the weights, which is then what is validated and kept.
    mixed_precision:
        None (what ``accelerate launch`` says, else ``"no"``), ``"no"``, ``"bf16"`` or ``"fp16"``. Where a CPU computes
        in bf16, that and a channels-last model together halve the time of a convolutional network, or better.
    clip:
        Greatest l2 norm of the gradient of all parameters together.
    loss_fn, forward_loss:
        As in :func:`surgeon.score`; per-example losses are averaged. Default: cross entropy.
    metric:
        ``metric(model)``, in eval mode, greater is better; replaces `val_loader`'s loss and accuracy.
    penalty:
        ``penalty(model)``, added to the loss: :class:`~surgeon.tuning.GroupPenalty`, ``ScalePenalty``, or your own.
    sharded:
        Of several processes each holds a part of the weights, gradients and optimizer (FSDP2), for models whose
        training doesn't fit on one device; each holds the whole model on the CPU besides. None: what ``accelerate
        launch`` says. Not together with `penalty` or fp16.
    resume_dir:
        Folder for the run's state, saved after every epoch, from which an interrupted run goes on.
    device:
        Where to train; default: where the model is, or if that is the CPU, what accelerate finds. Under ``accelerate
        launch`` every process has its own.
    progress:
        Called as ``progress("tune", steps done, steps in all)``; 0 in all where the loader has no length.
    on_epoch:
        Called when an epoch is finished and saved, with the rows of all so far, those before an interruption included.
    before_saving:
        Called with an epoch's number when it is finished and about to be saved in `resume_dir`: what this writes is
        there if the epoch is. A run that is interrupted in it repeats the epoch.

    Raises
    ------
    ModelError
        If `model` is no module.
    TuningError
        For an option out of range, or data that the loss can't use.
    DivergenceError
        If the loss is not finite any more.
    CheckpointError
        If `resume_dir` holds another run, or a damaged one.
    BusyError
        If another run is at work there.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    recipe = Recipe(
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        temperature=temperature if teacher is not None else None,
        teacher_weight=teacher_weight if teacher is not None else None,
        ema=ema,
        mixed_precision=mixed_precision,
        clip=clip,
        seed=seed,
    )
    _check_loss(recipe, teacher, loss_fn, forward_loss)
    module = unwrap(model)
    chosen = make_optimizer(optimizer, module, lr=lr, momentum=momentum, weight_decay=weight_decay)
    distillation = None if teacher is None else Distillation(teacher, temperature, teacher_weight)
    objective = Objective(loss_fn, forward_loss, label_smoothing, distillation)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(torch.enable_grad())
        accelerator, place = stack.enter_context(hardware(module, mixed_precision, device))
        stack.enter_context(own_randomness(place))
        spreads = is_sharded(sharded, accelerator.mixed_precision, penalty, accelerator.num_processes)
        stack.enter_context(on_device(module, torch.device("cpu") if spreads else place, chosen))
        stack.enter_context(_teaching(teacher, place))
        stack.enter_context(_peaks(chosen))
        asked = _asked(recipe, chosen, train_loader) | {"mixed_precision": accelerator.mixed_precision}
        run = Run(asked, module, chosen, penalty=penalty, scaler=accelerator.scaler)
        run.average = Average(module, ema) if ema is not None else None
        stack.enter_context(locked(resume_dir if accelerator.is_main_process else None))
        here = surroundings(accelerator, place, wrapped=model is not module, sharded=spreads)
        _take_up(run, resume_dir, epochs, accelerator, here)
        spread = Spread(run, place) if spreads else None
        trains = run if spread is None else spread.run
        wraps = accelerator.num_processes > 1 and spread is None
        call = accelerator.prepare_model(module, device_placement=False) if wraps else model
        Loop(
            run=trains,
            recipe=recipe,
            objective=objective,
            accelerator=accelerator,
            device=place,
            call=call if spread is None else trains.model,
            stepper=accelerator.prepare_optimizer(trains.optimizer, device_placement=False),
            loader=train_loader,
            val_loader=val_loader,
            metric=metric,
            penalty=penalty,
            folder=resume_dir,
            progress=progress or (lambda *_: None),
            on_epoch=on_epoch or (lambda _: None),
            before_saving=before_saving or (lambda _: None),
            spread=spread,
        ).finish()
        if wraps:
            accelerator.unwrap_model(call, keep_fp32_wrapper=False)
        return Tuned(model, tuple(run.history), run.best_epoch, chosen, run.notes)


def _take_up(run: Run, folder: Any, epochs: int, accelerator: Any, here: dict[str, Any]) -> None:
    """Go on with the run that `folder` holds, on what is `here`, or begin it there; without a folder, just begin."""
    found = folder is not None and read_state(folder, run)
    accelerator.wait_for_everyone()
    if len(run.history) < epochs:
        run.goes_on(here)
    if folder is not None and not found and accelerator.is_main_process:
        # A run that is interrupted in its first epoch starts from the same weights again, whatever has become of the
        # model in memory.
        write_state(folder, run)


def _check_loss(recipe: Recipe, teacher: nn.Module | None, loss_fn: Any, forward_loss: Any) -> None:
    """What excludes each other."""
    if recipe.label_smoothing and (loss_fn is not None or forward_loss is not None):
        raise TuningError("label_smoothing belongs to cross entropy: leave loss_fn out, or smooth in it")
    if teacher is not None and forward_loss is not None:
        raise TuningError("a teacher needs the model's outputs, which forward_loss keeps to itself: distil in it")


def _asked(recipe: Recipe, optimizer: torch.optim.Optimizer, loader: Iterable[Any]) -> dict[str, Any]:
    """What a run must agree in to be taken up again."""
    peaks = [group["peak_lr"] for group in optimizer.param_groups]
    return {**recipe.to_dict(), "optimizer": type(optimizer).__name__, "rates": peaks, "batches": length(loader)}


@contextlib.contextmanager
def _teaching(teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    """The teacher in eval mode on the device; as it was afterwards."""
    if teacher is None:
        yield
        return
    with in_mode(teacher, False), on_device(teacher, device):
        yield


@contextlib.contextmanager
def _peaks(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Each group remembers its peak rate while the rates follow the schedule, and has it back afterwards."""
    for group in optimizer.param_groups:
        group["peak_lr"] = float(group["lr"])
    try:
        yield
    finally:
        for group in optimizer.param_groups:
            group["lr"] = group.pop("peak_lr")
