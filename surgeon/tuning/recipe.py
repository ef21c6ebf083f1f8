"""What a training run is asked to do, and what it reports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from surgeon.errors import TuningError
from surgeon.tuning.hardware import PRECISIONS
from surgeon.tuning.rates import RATES

__all__ = ["Epoch", "Recipe", "Tuned", "check_history"]


@dataclass(frozen=True)
class Recipe:
    """The plain options of :func:`surgeon.tune`, checked.

    Raises
    ------
    TuningError
        If one is out of its range.
    """

    epochs: int
    lr: float | None
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: float
    label_smoothing: float
    temperature: float | None
    teacher_weight: float | None
    ema: float | None
    mixed_precision: str | None
    clip: float | None
    seed: int

    def __post_init__(self) -> None:
        for name in ("epochs", "seed"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 0, name, value, "a whole number, 0 or more")
        for name, low, high, text in _RANGES:
            value = getattr(self, name)
            fits = value is None or (_is_number(value) and low <= value < high)
            _require(fits, name, value, text)
        for name in ("lr", "temperature", "ema", "clip"):
            _require(getattr(self, name) != 0, name, 0, "a number above 0")
        _require(self.schedule in RATES, "schedule", self.schedule, f"one of {', '.join(map(repr, RATES))}")
        wanted = f"one of {', '.join(map(repr, PRECISIONS))}"
        _require(self.mixed_precision in PRECISIONS, "mixed_precision", self.mixed_precision, wanted)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what an interrupted run must agree in to be taken up again."""
        return dataclasses.asdict(self)


_INFINITE = math.inf
#: Name, least value, first value above, and how to say it.
_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("lr", 0, _INFINITE, "a number above 0"),
    ("momentum", 0, 1, "a number from 0 to below 1"),
    ("weight_decay", 0, _INFINITE, "a number, 0 or more"),
    ("warmup_epochs", 0, _INFINITE, "a number of epochs, 0 or more"),
    ("label_smoothing", 0, 1, "a number from 0 to below 1"),
    ("temperature", 0, _INFINITE, "a number above 0"),
    ("teacher_weight", 0, 1 + 1e-12, "a number from 0 to 1"),
    ("ema", 0, 1, "a decay above 0 and below 1, such as 0.999"),
    ("clip", 0, _INFINITE, "the greatest norm of the gradient, above 0"),
)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise TuningError(f"{name}={value!r}: expected {expected}")


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes
    ----------
    number:
        1 for the first.
    lr:
        Learning rate of the last step, of the first parameter group.
    train_loss:
        Mean over the examples of what was minimised, without the penalty, while the weights changed.
    val_loss, val_accuracy:
        On the validation loader; accuracy is the share of right answers (None where nothing can be right).
    val_top5:
        Share whose answer is among the five highest scores; None where there are no more than five classes.
    val_metric:
        What the user's own metric says.
    seconds:
        Wall-clock time, validation included.
    """

    number: int
    lr: float
    train_loss: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_metric: float | None = None
    seconds: float = 0.0
    val_top5: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: the metric or else the accuracy, then the loss."""
        first = self.val_metric if self.val_metric is not None else self.val_accuracy
        return _or_least(first if first is not None else 0.0), _or_least(-(self.val_loss or 0.0))


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def check_history(history: Sequence[Epoch], best_epoch: int) -> None:
    """Refuse rows that aren't those of one run.

    Raises
    ------
    ValueError
        If they aren't numbered from 1 on, or the best epoch isn't among them (0: none is).
    """
    if [row.number for row in history] != list(range(1, len(history) + 1)):
        raise ValueError("its epochs aren't numbered from 1 on")
    if not 0 <= best_epoch <= len(history):
        raise ValueError(f"its best epoch, {best_epoch}, is none of its {len(history)}")


@dataclass(frozen=True)
class Tuned:
    """What :func:`surgeon.tune` gives back.

    Attributes
    ----------
    model:
        The model that was passed, trained: with the weights of `best_epoch`.
    history:
        One row per epoch.
    best_epoch:
        Number of the epoch whose weights the model has: the best one on the validation loader (accuracy, or the given
        metric, then loss; the first of equals), or the last one where there is no validation loader. 0: no epoch.
    optimizer:
        As it stood after the last epoch; :func:`surgeon.rewrite_optimizer` takes it through a further cut.
    notes:
        Where an interrupted run went on with another number of threads, device or version: it rounds differently there.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    best_epoch: int
    optimizer: torch.optim.Optimizer
    notes: tuple[str, ...] = ()
