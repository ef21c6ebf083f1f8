"""Gates: the exact derivative of silencing a channel, for each example of a batch, from one backward pass.

A gate ``m`` stands on a channel wherever a contraction of another channel reads it: at the inputs of its consumers.
With ``a`` what the consumer reads, ``g = dL/dm = sum over consumers and places of a * dL/da`` (Molchanov et al. 2017,
section 2.2, where the gate stands on the feature map; at the consumers it stays exact behind any activation, residual
add or squeeze-excite). A depth-wise convolution passes its channel on and is no consumer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from surgeon.channels import Labels, Structure, label
from surgeon.channels.structure import Ints
from surgeon.rules import Plane, Summed
from surgeon.tracing import Inputs, Recent, Replay, Trace, plain_call, record


class _Tap(torch.autograd.Function):
    """Identity that hands its input and the gradient of its output to a callback."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sink: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(value)
        ctx.sink = sink
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        ctx.sink(value, gradients[0])
        return gradients[0], None


class GatedModel(nn.Module):
    """Runs like the model it was made from and collects gate gradients on the backward pass.

    Parameters
    ----------
    structure:
        The channels of the dense model.
    model:
        The model to run.
    weights:
        Names of weights whose gradients are wanted as well.

    Attributes
    ----------
    gates:
        After a backward pass the tensor ``(N, channels)`` of ``g[n, c]``, float64, on the CPU.
    reached:
        Flags ``(channels,)``: a gradient has come to some gate of the channel, in any pass so far.
    leaves:
        The weights by name, as leaves of their own: ``leaf.grad`` sums over all passes, and the model's own
        gradients stay as they are.
    """

    def __init__(self, structure: Structure, model: nn.Module, weights: Iterable[str] = ()) -> None:
        super().__init__()
        self._structure = structure
        self._inner = [model]  # in a list: the model is not a child, its mode and hooks are its own business
        self._recordings: Recent[tuple[Trace, Labels, Ints]] = Recent()
        self.gates = torch.zeros(0, structure.count, dtype=torch.float64)
        self.reached = torch.zeros(structure.count, dtype=torch.bool)
        tensors = structure.labels.trace.tensors
        self.leaves = {name: tensors[name].detach().requires_grad_() for name in weights}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own result; the graph of this very batch carries the taps."""
        inputs = Inputs(args, kwargs)
        trace, labels, channel = self._recording(inputs)
        batch = next(leaf.shape[0] if leaf.ndim else 1 for leaf in inputs.leaves() if isinstance(leaf, Tensor))
        self.gates = torch.zeros(batch, self._structure.count, dtype=torch.float64)
        taps = _by_node(labels)

        def call(node: fx.Node, values: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            fact = taps.get(node)
            if fact is not None:
                source: Any = node.args[fact.operand]
                examples = [p for p in labels.marks[source].planes if p.example]
                tapped = self._tap(values[fact.operand], channel[fact.plane.labels.numpy()], examples)
                values = (*values[: fact.operand], tapped, *values[fact.operand + 1 :])
            return plain_call(node, values, keywords)

        with torch.enable_grad():
            return Replay(trace, self.leaves, call).forward(inputs)

    def __getattr__(self, name: str) -> Any:
        """Whatever else a loss function asks of the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_inner"][0], name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the model: a loss function may ask for its device."""
        return self._inner[0].named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of the model."""
        return self._inner[0].named_buffers(*args, **kwargs)

    def _recording(self, inputs: Inputs) -> tuple[Trace, Labels, Ints]:
        """One recording for each of the last shapes, as long as the data doesn't steer the forward; its channels."""
        found = self._recordings.get(inputs.key)
        if found is None:
            trace = record(self._inner[0], inputs)
            labels = label(trace, examples=True)
            found = trace, labels, _channels(self._structure, labels)
            if trace.reusable:
                self._recordings.keep(inputs.key, found)
        return found

    def _tap(self, value: Tensor, channel: Ints, examples: list[Plane]) -> Tensor:
        if not value.requires_grad:
            value = value.detach().requires_grad_()
        labels = torch.from_numpy(channel)
        example = examples[0].labels if examples else None

        def sink(activation: Tensor, gradient: Tensor) -> None:
            self._collect(activation, gradient, labels, example)

        result: Tensor = _Tap.apply(value, sink)
        return result

    def _collect(self, activation: Tensor, gradient: Tensor, channel: Tensor, example: Tensor | None) -> None:
        self.reached[channel[channel >= 0]] = True
        product = (activation.detach().conj() * gradient).real  # of a complex number the part that the loss follows
        if product.dtype in (torch.float16, torch.bfloat16):
            product = activation.detach().float() * gradient.float()
        rows = torch.zeros([1] * product.ndim, dtype=torch.int64) if example is None else -1 - example
        gone = [a for a in range(product.ndim) if channel.shape[a] == 1 and rows.shape[a] == 1 and product.shape[a] > 1]
        if gone:
            product = product.sum(gone, keepdim=True)
        product = product.double().cpu()
        index = (rows * (self._structure.count + 1) + channel.where(channel >= 0, self._structure.count)).expand_as(
            product
        )
        table = torch.zeros(len(self.gates) * (self._structure.count + 1), dtype=torch.float64)
        table.index_add_(0, index.reshape(-1), product.reshape(-1))
        self.gates += table.view(len(self.gates), -1)[:, :-1]


def _channels(structure: Structure, labels: Labels) -> Ints:
    """The dense channel of each label; a batch may run the layers in another order, or others, than the example did."""
    found = np.full(labels.space.total, -1, dtype=np.int64)
    known = structure.labels.space.index
    for place, start, size in zip(labels.space.places, labels.space.starts, labels.space.sizes, strict=True):
        if place in known and structure.labels.space.sizes[known[place]] == size:
            found[start : start + size] = structure.along(*place)
    return found


def _by_node(labels: Labels) -> dict[fx.Node, Summed]:
    """The operand to gate at each consumer: the first one that depends on the data."""
    found: dict[fx.Node, Summed] = {}
    for fact in labels.ledger.summed:
        if not fact.constant and (fact.node not in found or fact.operand < found[fact.node].operand):
            found[fact.node] = fact
    return found
