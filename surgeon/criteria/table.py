"""The criterion table: one function per criterion."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from surgeon.channels import ChannelGraph
from surgeon.criteria.gates import GatedModel
from surgeon.errors import ScoreError
from surgeon.tracing import Inputs

Floats = NDArray[np.float64]
#: ``forward_loss(model, batch)`` gives per-example losses ``(N,)`` or their mean.
ForwardLoss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Request:
    """What a criterion may use.

    Attributes
    ----------
    graph:
        The channel graph.
    batches:
        The user's batches, or None.
    forward_loss:
        The loss of one batch.
    seed:
        For criteria that draw.
    progress:
        Called as ``progress(stage, done, total)``; total is 0 where it isn't known.
    """

    graph: ChannelGraph
    batches: Iterable[Any] | None
    forward_loss: ForwardLoss
    seed: int
    progress: Callable[[str, int, int], None]


@dataclass(frozen=True)
class Criterion:
    """A named criterion: scores of all channels, higher is more useful."""

    score: Callable[[Request], Floats]
    needs_data: bool


CRITERIA: dict[str, Criterion] = {}


def criterion(name: str, *, needs_data: bool) -> Callable[[Callable[[Request], Floats]], Callable[[Request], Floats]]:
    """Enter a criterion into the table."""

    def enter(function: Callable[[Request], Floats]) -> Callable[[Request], Floats]:
        if name in CRITERIA:
            raise ValueError(f"two criteria called {name!r}")
        CRITERIA[name] = Criterion(function, needs_data)
        return function

    return enter


@criterion("taylor", needs_data=True)
def taylor(request: Request) -> Floats:
    """Mean over the examples of ``abs(g[n, c])``: Molchanov et al. 2017 (arXiv 1611.06440), equation 8.

    The absolute value is taken per example, before the mean, so examples don't cancel.
    """
    total, count = np.zeros(request.graph.structure.count), 0
    for gates in _gates(request):
        total += gates.abs().sum(0).numpy()
        count += len(gates)
    return total / count


def _gates(request: Request) -> Iterable[Tensor]:
    """``g[n, c]`` of each batch in turn, ``(N, channels)``."""
    assert request.batches is not None
    model = request.graph.trace.model
    gated = GatedModel(request.graph.structure, model)
    total = len(request.batches) if isinstance(request.batches, Sized) else 0
    number = 0
    for number, batch in enumerate(request.batches, 1):
        loss = request.forward_loss(gated, batch)
        _check(loss, number)
        (loss.sum() if loss.ndim else loss * len(gated.gates)).backward()  # type: ignore[no-untyped-call]
        yield gated.gates
        request.progress("score", number, total)
    if not number:
        raise ScoreError("the dataloader gave no batch; pass one that yields (inputs, targets)")


def _check(loss: Any, number: int) -> None:
    if not isinstance(loss, Tensor) or loss.ndim > 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ScoreError(f"the loss of batch {number} is {shape}; expected one number, or one per example")
    if not bool(torch.isfinite(loss).all()):
        raise ScoreError(
            f"the loss of batch {number} is not finite ({loss.detach().flatten()[0].item()}); "
            "check the data and the targets, or rank with criterion='magnitude', which needs none"
        )
    if not loss.requires_grad:
        raise ScoreError(f"the loss of batch {number} doesn't depend on the model's outputs")


def _norms(request: Request, order: int) -> Floats:
    """Mean over a channel's filters of the mean absolute weight (order 1) or the root mean square (order 2)."""
    structure = request.graph.structure
    space = structure.labels.space
    total, count = np.zeros(structure.count), np.zeros(structure.count)
    for (name, axis), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        tensor = request.graph.trace.tensors[name]
        if not structure.produced[start] or tensor.ndim < 2:
            continue
        other = [a for a in range(tensor.ndim) if a != axis]
        if size != tensor.shape[axis]:
            continue  # a transposed grouped convolution: its filters are (group, out-channel)
        norms = torch.linalg.vector_norm(tensor.detach().double(), order, dim=other)
        norms /= math.prod(tensor.shape[a] for a in other) ** (1 / order)
        channels = structure.channel[start : start + size]
        np.add.at(total, channels, norms.cpu().numpy())
        np.add.at(count, channels, 1)
    return total / np.maximum(count, 1)


@criterion("magnitude", needs_data=False)
def magnitude(request: Request) -> Floats:
    """Root mean square of the filter's weights (l2), averaged over the filters of a coupled channel."""
    return _norms(request, 2)


@criterion("magnitude-l1", needs_data=False)
def magnitude_l1(request: Request) -> Floats:
    """Mean absolute weight of the filter (Li et al. 2017, section 3.1), averaged over coupled filters."""
    return _norms(request, 1)


@criterion("random", needs_data=False)
def random(request: Request) -> Floats:
    """Uniform numbers: the control that every criterion must beat."""
    return np.random.default_rng(request.seed).random(request.graph.structure.count)


def default_forward_loss(loss_fn: Callable[[Any, Any], Tensor] | None) -> ForwardLoss:
    """The loss of a batch ``(inputs, targets)``; cross entropy per example where no loss is given."""

    def forward_loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ScoreError(
                f"the dataloader gave a {type(batch).__name__}; expected (inputs, targets), "
                "or pass forward_loss(model, batch) for other batches"
            )
        given, targets = batch
        device = next((p.device for p in model._inner[0].parameters()), torch.device("cpu"))  # type: ignore[index, union-attr]
        inputs = Inputs.of(tuple(given) if isinstance(given, list) else given).map(_trackable).to(device)
        outputs = model(*inputs.args, **inputs.kwargs)
        targets = _trackable(targets).to(device) if isinstance(targets, Tensor) else targets
        return (loss_fn or _cross_entropy)(outputs, targets)

    return forward_loss


def _trackable(tensor: Tensor) -> Tensor:
    """A loader that runs in inference mode gives tensors that autograd refuses; a copy is a plain one."""
    return tensor.clone() if tensor.is_inference() else tensor


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    if isinstance(outputs, dict):
        outputs = outputs.get("out", next(iter(outputs.values())))
    elif isinstance(outputs, tuple | list):
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise ScoreError(
            "cross entropy needs class scores (N, classes, ...); pass loss_fn or forward_loss for this model"
        )
    half = outputs.dtype in (torch.float16, torch.bfloat16)
    losses = F.cross_entropy(outputs.float() if half else outputs, targets, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses
