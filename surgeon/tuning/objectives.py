"""What is minimised: the loss of a batch, with label smoothing and distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.criteria.gradients import ForwardLoss, check_losses, class_scores
from surgeon.errors import ScoreError, TuningError
from surgeon.tracing import Inputs

__all__ = ["Distillation", "Objective", "Outcome", "count_examples", "distillation_loss", "scores_of"]


#: The target that torch's cross entropy passes over, unless it is told another one.
_IGNORED = -100


@dataclass(frozen=True)
class Outcome:
    """The loss of one batch (a scalar), and what it was computed from where that is known.

    Attributes
    ----------
    asked:
        Which of the targets the loss looks at (bool, of their shape); None where they are no class numbers.
    mean_of_asked:
        Whether the loss is the mean over these, and not over the examples.
    """

    loss: Tensor
    outputs: Any = None
    targets: Any = None
    asked: Tensor | None = None
    mean_of_asked: bool = False


@dataclass(frozen=True)
class Distillation:
    """A teacher, the temperature that softens its scores, and the weight of its part of the loss (0 to 1)."""

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 0.5


def distillation_loss(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(scores / T))``, the mean over all but the class axis 1.

    Hinton, Vinyals & Dean 2015 (arXiv 1503.02531, section 2); T^2 keeps the gradient's size when T changes.
    """
    ours = F.log_softmax(scores.float() / temperature, 1)
    theirs = F.log_softmax(teacher.float() / temperature, 1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean() * temperature**2


class Objective:
    """The loss of a batch.

    Parameters
    ----------
    loss_fn:
        ``loss_fn(outputs, targets)``: per-example losses ``(N,)`` or their mean. Default: cross entropy.
    forward_loss:
        ``forward_loss(model, batch)`` in place of it, for dict batches and detectors.
    label_smoothing:
        Share of the target that is spread over all classes (Szegedy et al. 2016, section 7); cross entropy only.
    distillation:
        The teacher, if any: ``(1 - weight) * loss + weight * distillation_loss``.

    Raises
    ------
    TuningError
        If two losses are given.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        forward_loss: ForwardLoss | None = None,
        label_smoothing: float = 0.0,
        distillation: Distillation | None = None,
    ) -> None:
        check_losses(loss_fn, forward_loss, TuningError)
        self._loss_fn, self._forward_loss = loss_fn, forward_loss
        self._smoothing, self._distillation = label_smoothing, distillation

    def plain(self) -> Objective:
        """Without smoothing and teacher: what validation measures."""
        return Objective(self._loss_fn, self._forward_loss)

    def __call__(self, model: nn.Module, batch: Any) -> Outcome:
        """The loss of one batch, whose tensors are on the model's device.

        Raises
        ------
        TuningError
            If the batch or the outputs have a form that the loss can't use.
        """
        if self._forward_loss is not None:
            return Outcome(_scalar(self._forward_loss(model, batch)))
        inputs, targets = _unpacked(batch)
        outputs = model(*inputs.args, **inputs.kwargs)
        if self._loss_fn is not None:
            loss = _scalar(self._loss_fn(outputs, targets))
        else:
            loss = F.cross_entropy(_half_to_float(scores_of(outputs)), targets, label_smoothing=self._smoothing)
        if self._distillation is not None:
            loss = self._taught(self._distillation, loss, inputs, scores_of(outputs))
        asked = self._asked(targets)
        return Outcome(loss, outputs, targets, asked, asked is not None and self._means_asked)

    def _asked(self, targets: Any) -> Tensor | None:
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        return targets != getattr(self._loss_fn, "ignore_index", _IGNORED)

    @property
    def _means_asked(self) -> bool:
        """As torch's cross entropy does, by itself or as the user's `loss_fn`."""
        given = self._loss_fn
        return given is None or (hasattr(given, "ignore_index") and getattr(given, "reduction", None) == "mean")

    @staticmethod
    def _taught(given: Distillation, loss: Tensor, inputs: Inputs, scores: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = scores_of(given.teacher(*inputs.args, **inputs.kwargs))
        if wanted.shape != scores.shape:
            raise TuningError(
                f"the teacher's scores are {tuple(wanted.shape)}, the model's {tuple(scores.shape)}; "
                "pass the dense model that the model was cut from"
            )
        return (1 - given.weight) * loss + given.weight * distillation_loss(scores, wanted, given.temperature)


def scores_of(outputs: Any) -> Tensor:
    """The class scores ``(N, classes, ...)`` among a model's outputs: those that rank its channels as well.

    Raises
    ------
    TuningError
        If there are none.
    """
    try:
        return class_scores(outputs)
    except ScoreError as problem:
        raise TuningError(str(problem)) from None


def count_examples(batch: Any) -> int:
    """How many examples a batch holds: the length of its first tensor that has one, else 1."""
    return next((len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim), 1)


def _unpacked(batch: Any) -> tuple[Inputs, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise TuningError(
            f"the loader gave a {type(batch).__name__}; expected (inputs, targets), "
            "or pass forward_loss(model, batch) for other batches"
        )
    inputs, targets = batch
    return Inputs.of(tuple(inputs) if isinstance(inputs, list) else inputs), targets


def _half_to_float(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim > 1:
        came = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TuningError(f"the loss of a batch is {came}; expected one number, or one per example")
    return loss.mean()
