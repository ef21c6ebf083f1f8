"""What a layer's output is added to: the layer may also make up for what that is off by.

Where ``y = r + s * c`` (a residual add behind a batch norm or a layer scale), ``c``'s target becomes
``c_dense + (r_dense - r_small) / s``.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from surgeon.products import MOVES, find_part, is_fixed_norm, moved, norm_scale
from surgeon.tracing import Trace, operator_name
from surgeon.trial import Fit

#: Scales this much smaller than the largest carry no correction: it would have to be huge.
_LEAST_SCALE = 0.05


@dataclass(frozen=True, eq=False)
class Shortcut:
    """The other operand of the add, and for each of its places the element of the layer's output and its scale.

    Attributes
    ----------
    small, dense:
        The other operand.
    index:
        Flat numbers of the layer's output elements, in the shape of the sum.
    scale:
        What each is multiplied by on the way; broadcasts with `index`.
    """

    small: fx.Node
    dense: fx.Node
    index: Tensor
    scale: Tensor

    def correction(self, dense: Tensor, small: Tensor, shape: torch.Size) -> Tensor:
        """What to add to the layer's target, in the shape of the layer's output."""
        scale = self.scale.to(small).expand(self.index.shape)
        wide = scale.abs() > _LEAST_SCALE * scale.abs().max()
        change = torch.where(wide, (dense - small) / torch.where(wide, scale, 1.0), 0.0)
        flat = small.new_zeros(shape.numel())
        flat[self.index.to(small.device).reshape(-1)] = change.reshape(-1)
        return flat.view(shape)


def find_shortcut(fitted: Fit, node: fx.Node) -> Shortcut | None:
    """The add that `node`'s result (of the small recording) goes into and nothing else, if the other part is ready."""
    trace = fitted.small.labels.trace
    index: Tensor = torch.arange(node.meta["shape"].numel()).view(node.meta["shape"])
    scale, last = torch.ones([1] * index.ndim, dtype=torch.float64), node
    while len(last.users) == 1:
        (user,) = last.users
        other = _other(user, last) if operator_name(user) == "add" and not user.kwargs else None
        if other is not None and find_part(other, trace) is None:
            return _shortcut(fitted, node, other, index, scale)
        step = _step(user, last, other, trace, index, scale)
        if step is None:
            return None
        index, scale = step
        last = user
    return None


def _shortcut(fitted: Fit, node: fx.Node, other: fx.Node, index: Tensor, scale: Tensor) -> Shortcut | None:
    order, partner = fitted.small.labels.trace.order, fitted.nodes.get(other)
    if partner is None or order[other] > order[node] or other.meta["shape"] != index.shape:
        return None
    return Shortcut(other, partner, index, scale)


def _other(user: fx.Node, last: fx.Node) -> fx.Node | None:
    operands = user.args[:2]
    if len(operands) < 2 or operands[0] is operands[1]:
        return None
    other = operands[1] if operands[0] is last else operands[0]
    return other if isinstance(other, fx.Node) else None


def _step(
    user: fx.Node, last: fx.Node, other: fx.Node | None, trace: Trace, index: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Index and scale behind one more call; None where it does anything else than move, shift or scale."""
    if user.target is operator.getitem:
        return (index, scale) if user.args[1] == 0 and is_fixed_norm(last) else None
    if other is not None:  # a constant is added: nothing moves
        return (index, scale) if user.meta["shape"] == index.shape else None
    if is_fixed_norm(user) and user.args[0] is last:
        factor = norm_scale(user, trace)
        return None if factor is None else (index, scale * factor.view(1, -1, *[1] * (index.ndim - 2)))
    if operator_name(user) == "mul":
        return _scaled(user, last, trace, index, scale)
    if operator_name(user) in MOVES and len(user.all_input_nodes) == 1:
        places, factors = moved(user, index), moved(user, scale.expand(index.shape))
        return (places, factors) if isinstance(places, Tensor) else None  # not where it comes apart
    return None


def _scaled(user: fx.Node, last: fx.Node, trace: Trace, index: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
    other = user.args[1] if user.args[0] is last else user.args[0]
    if isinstance(other, int | float):
        return index, scale * other
    part = find_part(other, trace)
    if part is None or user.meta["shape"] != index.shape:
        return None
    return index, scale * part.of(trace.tensors).double()
