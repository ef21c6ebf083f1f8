"""Parts of parameters: what an operand is made of, behind nothing but moves.

A weight may reach its product through views (``t()``, a slice of ``in_proj_weight``): which of the parameter's elements
it is made of is found by running these very views on the elements' numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.rules.statistics import BATCH_NORMS
from surgeon.tracing import Trace, operator_name

#: Calls that only move or pick elements.
MOVES = frozenset({
    "t", "transpose", "permute", "view", "_unsafe_view", "reshape", "slice", "select", "squeeze", "unsqueeze", "alias",
    "clone", "detach", "contiguous", "split", "split_with_sizes", "unbind", "chunk", "_to_copy", "lift_fresh_copy",
})  # fmt: skip
#: Where a batch norm's arguments hold weight, bias, running mean, running variance; epsilon comes last.
_GAMMA, _BETA, _MEAN, _VARIANCE = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Part:
    """Elements of a parameter or buffer, by their flat numbers: ``index`` has the shape in which they are used."""

    name: str
    index: Tensor

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Their values, in the shape of ``index``; `tensors` by name."""
        return tensors[self.name].reshape(-1)[self.index.to(tensors[self.name].device)]

    def written(self, tensor: Tensor, values: Tensor) -> Tensor:
        """The whole tensor with new values in these places."""
        flat = tensor.reshape(-1).clone()
        flat[self.index.reshape(-1).to(flat.device)] = values.reshape(-1).to(flat)
        return flat.view(tensor.shape)


def find_part(node: Any, trace: Trace) -> Part | None:
    """What `node` is made of, if it is a parameter or buffer behind nothing but moves."""
    if not isinstance(node, fx.Node):
        return None
    chain = [node]
    while chain[-1].op == "call_function":
        inputs = chain[-1].all_input_nodes
        if len(inputs) != 1 or not (chain[-1].target is operator.getitem or operator_name(chain[-1]) in MOVES):
            return None
        chain.append(inputs[0])
    name = str(chain[-1].target)
    if chain[-1].op != "get_attr" or name.startswith("_constant_"):
        return None
    shape = trace.tensors[name].shape
    value: Any = torch.arange(shape.numel()).view(shape)
    for step in reversed(chain[:-1]):
        value = moved(step, value)
    return Part(name, value)


def moved(node: fx.Node, value: Any) -> Any:
    """A move applied to other numbers."""
    target: Any = node.target
    if operator_name(node) == "_to_copy":
        return value
    if operator_name(node) in ("view", "_unsafe_view"):
        return value.reshape(node.args[1])
    return target(value, *node.args[1:], **node.kwargs)


def mean_behind(node: fx.Node, trace: Trace) -> Part | None:
    """The running mean of the batch norm that reads `node` and alone does so: an intercept can be taken from it."""
    norm = next(iter(node.users)) if len(node.users) == 1 else None
    if norm is None or not is_fixed_norm(norm) or norm.args[0] is not node:
        return None
    return find_part(norm.args[_MEAN], trace)


def is_fixed_norm(node: fx.Node) -> bool:
    """Whether this is a batch norm that uses its running statistics."""
    return operator_name(node) in BATCH_NORMS and not any(value is True for value in node.args)


def norm_scale(node: fx.Node, trace: Trace, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Of such a norm what it multiplies each channel by, ``(C,)``; None if that isn't made of parameters."""
    variance, gamma = (_argument(node, place, trace, tensors) for place in (_VARIANCE, _GAMMA))
    epsilon = node.args[-1]
    if variance is None or not isinstance(epsilon, float):
        return None
    scale = (variance.double() + epsilon).rsqrt()
    return scale if node.args[_GAMMA] is None else None if gamma is None else scale * gamma


def norm_shift(node: fx.Node, trace: Trace, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What it adds to each channel then, ``(C,)``; None if that isn't made of parameters."""
    scale = norm_scale(node, trace, tensors)
    mean, beta = (_argument(node, place, trace, tensors) for place in (_MEAN, _BETA))
    if scale is None or mean is None or (beta is None and node.args[_BETA] is not None):
        return None
    return -scale * mean if beta is None else beta - scale * mean


def _argument(node: fx.Node, place: int, trace: Trace, tensors: Mapping[str, Tensor]) -> Tensor | None:
    part = find_part(node.args[place], trace)
    return None if part is None else part.of(tensors)
