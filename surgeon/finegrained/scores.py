"""How much single weights matter: by their size, or by what the loss says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.criteria.gradients import ForwardLoss, check_losses
from surgeon.errors import ScoreError, SelectionError
from surgeon.finegrained.layers import Weight
from surgeon.tracing import in_mode
from surgeon.tuning.evaluation import moved
from surgeon.tuning.objectives import Objective

__all__ = ["Data", "score_weights"]


@dataclass(frozen=True)
class Data:
    """What a score by gradient needs: batches, and the loss as in :func:`surgeon.tune`."""

    batches: Iterable[Any] | None = None
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    forward_loss: ForwardLoss | None = None

    def __post_init__(self) -> None:
        check_losses(self.loss_fn, self.forward_loss)


def score_weights(model: nn.Module, weights: Sequence[Weight], by: str, data: Data) -> list[Tensor]:
    """A score of every weight, in the shape of its tensor: greater is more useful.

    Raises
    ------
    SelectionError
        If there is no such score.
    ScoreError
        If it needs data and gets none, or the loss is not finite.
    """
    if by not in _SCORES:
        raise SelectionError(f"by={by!r}: there are {', '.join(_SCORES)}")
    return _SCORES[by](model, weights, data)


def _magnitude(_model: nn.Module, weights: Sequence[Weight], _data: Data) -> list[Tensor]:
    """``|w|`` (Han et al. 2015, arXiv 1506.02626)."""
    return [weight.value().abs() for weight in weights]


def _gradient(model: nn.Module, weights: Sequence[Weight], data: Data) -> list[Tensor]:
    """``|w dL/dw|``, to first order what the loss changes by when w goes (Molchanov et al. 2017, section 2.2).

    The absolute value is taken in each batch, so that batches don't cancel: the mean over the batches.
    """
    if data.batches is None:
        raise ScoreError("by='gradient' needs data: pass dataloader=, or rank by='magnitude'")
    tensors = [weight.places[0].parameter for weight in weights]
    sums = [torch.zeros_like(weight.value()) for weight in weights]
    objective, number = Objective(data.loss_fn, data.forward_loss), 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with in_mode(model, False), torch.enable_grad(), _trainable(tensors):
        for number, batch in enumerate(data.batches, 1):
            loss = objective(model, moved(batch, device)).loss
            if not bool(torch.isfinite(loss)):
                raise ScoreError(f"the loss of batch {number} is not finite ({loss.item()}); check the data")
            slopes = torch.autograd.grad(loss, [t for t in tensors if t is not None], allow_unused=True)
            for total, weight, slope in zip(sums, weights, slopes, strict=True):
                if slope is not None:
                    total += (slope * weight.value()).abs()
    if not number:
        raise ScoreError("the dataloader gave no batch; pass one that yields (inputs, targets)")
    return [total / number for total in sums]


class _trainable:  # noqa: N801  # used as a function
    """Frozen tensors take part in the pass as well."""

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        self._frozen = [t for t in tensors if t is not None and not t.requires_grad]

    def __enter__(self) -> None:
        for tensor in self._frozen:
            tensor.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for tensor in self._frozen:
            tensor.requires_grad_(False)


_SCORES: Mapping[str, Callable[[nn.Module, Sequence[Weight], Data], list[Tensor]]] = {
    "magnitude": _magnitude,
    "gradient": _gradient,
}
