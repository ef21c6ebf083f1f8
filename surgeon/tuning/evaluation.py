"""Validation: mean loss and accuracy, in eval mode and without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import TuningError
from surgeon.tracing import in_mode
from surgeon.tuning.objectives import Objective, Outcome, count_examples, scores_of

__all__ = ["Validation", "evaluate", "moved"]


@dataclass(frozen=True)
class Validation:
    """Mean loss over the examples, and the share of right answers (None where the outputs are no class scores)."""

    loss: float
    accuracy: float | None


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device, and fit for autograd."""

    def move(tensor: Tensor) -> Tensor:
        plain = tensor.clone() if tensor.is_inference() else tensor
        return plain.to(device, non_blocking=True)

    return pytree.tree_map_only(Tensor, move, batch)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    objective: Objective | None = None,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Validation:
    """Mean loss and accuracy of `model` on `loader`, on the device that the model is on.

    Parameters
    ----------
    loader:
        Batches ``(inputs, targets)``, or whatever `objective` takes.
    objective:
        The loss; default: cross entropy.
    autocast:
        Makes the context for reduced precision.

    Raises
    ------
    TuningError
        If the loader gives no batch, or one of another form.
    """
    objective = objective or Objective()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loss, examples, right, asked = 0.0, 0, 0, 0
    with in_mode(model, False):
        for given in loader:
            batch = moved(given, device)
            with autocast():
                outcome = objective(model, batch)
            count = count_examples(batch)
            loss, examples = loss + float(outcome.loss) * count, examples + count
            hits, of = _hits(outcome)
            right, asked = right + hits, asked + of
    if not examples:
        raise TuningError("the validation loader gave no batch; pass one that can be iterated again every epoch")
    return Validation(loss / examples, right / asked if asked else None)


def _hits(outcome: Outcome) -> tuple[int, int]:
    """Right answers and questions; none where the targets are no class numbers."""
    targets = outcome.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return 0, 0
    try:
        chosen = scores_of(outcome.outputs).argmax(1)
    except TuningError:
        return 0, 0
    if chosen.shape != targets.shape:
        return 0, 0
    return int((chosen == targets).sum()), targets.numel()
