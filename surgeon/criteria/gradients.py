"""One pass over the data for all gradient criteria: what is summed over it, and the loss that is differentiated.

Each batch runs forward and backward once. Its gate gradients (and, where asked for, its weight gradients) are handed to
every statistic in turn, so a further criterion costs no further pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from surgeon.channels import ChannelGraph
from surgeon.criteria.filters import filters, producing, total
from surgeon.criteria.gates import GatedModel
from surgeon.criteria.pieces import pieces
from surgeon.errors import ScoreError, SurgeonError
from surgeon.processes import count, length, own_batches, seed_of
from surgeon.processes import total as total_of_all
from surgeon.tracing import Inputs

Floats = NDArray[np.float64]
#: ``forward_loss(model, batch)`` gives per-example losses ``(N,)`` or their mean.
ForwardLoss = Callable[[nn.Module, Any], Tensor]
#: Called as ``progress(stage, done, total)``; total is 0 where it isn't known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Gradients:
    """What one backward pass gives; of the losses' sum over the batch.

    Attributes
    ----------
    gates:
        ``g[n, c]``, ``(N, channels)``: the derivative of example n's loss by the gate of channel c.
    weights:
        ``(channels,)``: sum over the weights w of the channel's filters of ``w * dL/dw``, L being the batch's loss;
        zeros unless some statistic asks for it.
    """

    gates: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)  # a key of dicts: one statistic is itself alone
class Statistic:
    """A number per channel that is averaged over the data.

    Attributes
    ----------
    of:
        What one batch adds, ``(channels,)``.
    per_batch:
        Average over the batches; else over the examples.
    weights:
        It reads :attr:`Gradients.weights`, which take longer than the gates alone.
    """

    of: Callable[[Gradients], Tensor]
    per_batch: bool = False
    weights: bool = False


def means(
    graph: ChannelGraph,
    statistics: Iterable[Statistic],
    batches: Iterable[Any],
    forward_loss: ForwardLoss,
    progress: Progress,
    micro_batch: int | None = None,
) -> Mapping[Statistic, Floats]:
    """The mean of every statistic, ``(channels,)`` each, from one pass over the batches.

    Of several processes each goes through its share of the batches. With a `micro_batch` no more than so many examples
    are run at once; a statistic sees whole batches all the same.

    Channels that the loss doesn't depend on (auxiliary heads, which eval mode skips) get the median of those that may
    be removed: the data says nothing of them, so they are neither the first to go nor the last.

    Raises
    ------
    ScoreError
        If there is no batch, or a loss is not finite or depends on nothing.
    """
    sums = {statistic: torch.zeros(graph.structure.count, dtype=torch.float64) for statistic in statistics}
    wanted = producing(graph.structure) if any(statistic.weights for statistic in sums) else []
    gated = GatedModel(graph.structure, graph.trace.model, wanted)
    examples = number = 0
    for found in _passes(graph, gated, batches, forward_loss, progress, micro_batch):
        number += 1
        examples += len(found.gates)
        for statistic, summed in sums.items():
            summed += statistic.of(found)
    counts, reached, *summed_up = total_of_all(torch.tensor([number, examples]), gated.reached, *sums.values())
    number, examples = (int(value) for value in counts)
    if not number:
        raise ScoreError("the dataloader gave no batch; pass one that yields (inputs, targets)")
    results = {}
    for statistic, summed in zip(sums, summed_up, strict=True):
        results[statistic] = summed.numpy() / (number if statistic.per_batch else examples)
        _fill(results[statistic], graph.removable, reached.numpy() > 0)
    return results


def _fill(values: Floats, removable: NDArray[np.int64], reached: NDArray[np.bool_]) -> None:
    seen = reached[removable]
    if seen.any():
        values[removable[~seen]] = np.median(values[removable[seen]])


def _passes(
    graph: ChannelGraph, gated: GatedModel, batches: Iterable[Any], forward_loss: ForwardLoss, progress: Progress,
    micro_batch: int | None,
) -> Iterator[Gradients]:  # fmt: skip
    """The gradients of each batch in turn; of this process's."""
    size = length(batches) or 0
    for index, batch in own_batches(batches):
        gates = []
        for piece in pieces(batch, micro_batch):
            loss = forward_loss(gated, piece)
            _check(loss, index + 1)
            (loss.sum() if loss.ndim else loss * len(gated.gates)).backward()  # type: ignore[no-untyped-call]
            gates.append(gated.gates)
        yield Gradients(torch.cat(gates), _times_weights(graph, gated.leaves))
        progress("score", min(index + count(), size) if size else index + 1, size)


def _times_weights(graph: ChannelGraph, leaves: Mapping[str, Tensor]) -> Tensor:
    """Sum of weight times gradient over each channel's filters, ``(channels,)``; forgets the gradients."""
    products = {}
    for name, leaf in leaves.items():
        if leaf.grad is None:
            continue
        value, slope = leaf.detach(), leaf.grad
        if value.dtype in (torch.float16, torch.bfloat16):
            value, slope = value.float(), slope.float()
        products[name] = (value.conj() * slope).real  # of a complex number the part that the loss follows
        leaf.grad = None
    return torch.from_numpy(total(graph, filters(graph, products), lambda rows: rows.sum(1, dtype=torch.float64)))


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
        raise ScoreError(
            f"the loss of batch {number} doesn't depend on the model's outputs: compute it from them, without detach() "
            "or no_grad()"
        )


def check_losses(loss_fn: Any, forward_loss: Any, error: type[SurgeonError] = ScoreError) -> None:
    """Refuse two losses where one of them would go without effect.

    Raises
    ------
    ScoreError
        If both are given; or another `error`.
    """
    if loss_fn is not None and forward_loss is not None:
        raise error("loss_fn and forward_loss exclude each other: give one")


def default_forward_loss(
    loss_fn: Callable[[Any, Any], Tensor] | None, like: Inputs, inputs_of: Callable[[Any], Any] | None = None
) -> ForwardLoss:
    """The loss of a batch ``(inputs, targets)``; cross entropy per example where no loss is given.

    `like`: what the model takes; `inputs_of`: how it is got of a batch, if not as its first part.

    Raises
    ------
    ScoreError
        When it is called: for a batch that is no pair.
    """

    def forward_loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ScoreError(
                f"the dataloader gave a {type(batch).__name__}; expected (inputs, targets), "
                "or pass forward_loss(model, batch) for other batches"
            )
        given, targets = batch
        device = _device_of(model)
        inputs = Inputs.taken(given, like) if inputs_of is None else Inputs.of(inputs_of(batch))
        inputs = inputs.map(_trackable).to(device)
        outputs = model(*inputs.args, **inputs.kwargs)
        targets = _trackable(targets).to(device) if isinstance(targets, Tensor) else targets
        return (loss_fn or _cross_entropy)(outputs, targets)

    return forward_loss


def has_targets(batch: Any, like: Inputs) -> bool:
    """Whether :func:`default_forward_loss` takes it: ``(inputs, targets)`` of a model that takes `like`."""
    return like.has_targets_in(batch) and batch[1] is not None


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def expected_loss(like: Inputs, seed: int, inputs_of: Callable[[Any], Any] | None = None) -> ForwardLoss:
    """Cross entropy of labels drawn from what the model itself says, so that its mean square is Fisher's information.

    For batches without targets; `like` and `inputs_of` say what the model takes of them. What is drawn for an example
    depends on `seed` and its own numbers, not on those beside it in the batch.
    """

    def forward_loss(model: nn.Module, batch: Any) -> Tensor:
        device = _device_of(model)
        inputs = Inputs.from_batch(batch, like, inputs_of).map(_trackable).to(device)
        scores = class_scores(model(*inputs.args, **inputs.kwargs))
        chances = scores.detach().float().softmax(1).movedim(1, -1)
        return _cross_entropy(scores, _drawn(chances.cpu(), inputs, seed).to(device))

    return forward_loss


def _drawn(chances: Tensor, inputs: Inputs, seed: int) -> Tensor:
    """A class for each place of each example, ``(N, ...)``, from their chances ``(N, ..., classes)``."""
    first = next(leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor) and leaf.ndim)
    drawn = []
    for own, numbers in zip(chances, first.detach().cpu(), strict=True):
        digest = numbers.contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex()
        generator = torch.Generator().manual_seed(seed_of(seed, digest))
        drawn.append(torch.multinomial(own.reshape(-1, own.shape[-1]), 1, generator=generator).view(own.shape[:-1]))
    return torch.stack(drawn)


def _trackable(tensor: Tensor) -> Tensor:
    """A loader that runs in inference mode gives tensors that autograd refuses; a copy is a plain one."""
    return tensor.clone() if tensor.is_inference() else tensor


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    outputs = class_scores(outputs)
    half = outputs.dtype in (torch.float16, torch.bfloat16)
    losses = F.cross_entropy(outputs.float() if half else outputs, targets, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def class_scores(outputs: Any) -> Tensor:
    """The class scores ``(N, classes, ...)`` among a model's outputs: those called "out" or "logits", else the first.

    Raises
    ------
    ScoreError
        If there are none.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs.get("out", outputs.get("logits", next(iter(outputs.values()), None)))
    elif isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ScoreError(
            f"cross entropy and distillation need class scores (N, classes, ...), the model gave {came}; "
            "pass loss_fn or forward_loss for this model"
        )
    return outputs
