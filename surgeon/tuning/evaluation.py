"""Validation: mean loss and accuracy, in eval mode and without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.errors import TuningError
from surgeon.exclusive import one_at_a_time
from surgeon.processes import count, own_batches, rank, together, total
from surgeon.tracing import in_mode
from surgeon.tuning.objectives import Objective, Outcome, count_examples, scores_of
from surgeon.tuning.sharing import parts_of

__all__ = ["Validation", "evaluate", "moved"]

_FEW = 5


@dataclass(frozen=True)
class Validation:
    """Mean loss over the examples, and the share of right answers (None where the outputs are no class scores).

    Targets that cross entropy passes over (``ignore_index``), and those that are no class of the model's, are no
    questions: they count neither as right nor as wrong, and the mean loss of cross entropy is over the others.

    `top5` is the share whose answer is among the five highest scores; None where there are no more than five classes.
    """

    loss: float
    accuracy: float | None
    top5: float | None = None


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device, and fit for autograd."""

    def move(tensor: Tensor) -> Tensor:
        plain = tensor.clone() if tensor.is_inference() else tensor
        return plain.to(device, non_blocking=True)

    return pytree.tree_map_only(Tensor, move, batch)


@one_at_a_time
@torch.no_grad()
@together("evaluation")
def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    objective: Objective | None = None,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    evenly: bool = False,
) -> Validation:
    """Mean loss and accuracy of `model` on `loader`, on the device that the model is on.

    Of several processes each goes through its share, and all get the figures of the whole.

    Parameters
    ----------
    loader:
        Batches ``(inputs, targets)``, or whatever `objective` takes.
    objective:
        The loss; default: cross entropy.
    autocast:
        Makes the context for reduced precision.
    evenly:
        Every process calls the model as often as the others, as a model needs that is spread over them: each gets a
        part of every batch.

    Raises
    ------
    TuningError
        If the loader gives no batch, or one of another form.
    """
    objective = objective or Objective()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loss, examples, right, asked = 0.0, 0, torch.zeros(2, dtype=torch.int64), 0
    five = False
    with in_mode(model, False):
        for given, counts in _shared(loader, evenly):
            batch = moved(given, device)
            with autocast():
                outcome = objective(model, batch)
            if not counts:  # another process's example, to keep step
                continue
            if size := _size(outcome, batch):  # the mean of none is no number
                loss, examples = loss + float(outcome.loss) * size, examples + size
            hits, of = _hits(outcome)
            right, asked, five = right + hits, asked + of, five or _classes(outcome) > _FEW
    figures = torch.tensor([loss, examples, *right, asked, five], dtype=torch.float64)
    loss, examples, *hits_of_all, asked, five = total(figures)[0].tolist()
    if not examples:
        raise TuningError(
            "the validation loader gave no batch, or none with a target that counts; pass one that can be iterated "
            "again every epoch"
        )
    first, among = (hits / asked for hits in hits_of_all) if asked else (None, None)
    return Validation(loss / examples, first, among if five else None)


def _shared(loader: Iterable[Any], evenly: bool) -> Iterator[tuple[Any, bool]]:
    """Batches for this process, and whether they count."""
    if evenly:
        return ((batch, weight > 0) for batch, weight in parts_of(loader, rank(), count(), 0, 0))
    return ((batch, True) for _, batch in own_batches(loader))


def _size(outcome: Outcome, batch: Any) -> int:
    """Of how many the loss is the mean."""
    if outcome.mean_of_asked and outcome.asked is not None:
        return int(outcome.asked.sum())
    return count_examples(batch)


def _hits(outcome: Outcome) -> tuple[Tensor, int]:
    """Right answers, answers among the five best, and questions; none where the targets are no class numbers."""
    none = torch.zeros(2, dtype=torch.int64)
    targets = outcome.targets
    if outcome.asked is None:
        return none, 0
    try:
        scores = scores_of(outcome.outputs)
    except TuningError:
        return none, 0
    if scores.argmax(1).shape != targets.shape:
        return none, 0
    asked = outcome.asked & (targets >= 0) & (targets < scores.shape[1])
    first = asked & (scores.argmax(1) == targets)
    best = asked & (scores.topk(min(_FEW, scores.shape[1]), dim=1).indices == targets.unsqueeze(1)).any(1)
    hits = torch.stack([first.sum(), best.sum(), asked.sum()]).cpu()
    return hits[:2], int(hits[2])


def _classes(outcome: Outcome) -> int:
    try:
        return scores_of(outcome.outputs).shape[1]
    except TuningError:
        return 0
