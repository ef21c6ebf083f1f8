"""What becomes of a layer's output: what it is added to, and what an activation lets through of it.

Where ``y = r + s * c`` (a residual add behind a batch norm or a layer scale), ``c``'s target becomes
``c_dense + (r_dense - r_small) / s``: the layer may also make up for what the shortcut is off by. And where an
activation such as ReLU forgets how far below zero ``y`` is, any ``c`` that ends there is as good as the target.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from surgeon.products import MOVES, find_part, is_fixed_norm, moved, norm_scale, norm_shift
from surgeon.tracing import Trace, operator_name
from surgeon.trial import Fit

#: Scales this much smaller than the largest carry no correction: it would have to be huge.
_LEAST_SCALE = 0.05


class Goal(NamedTuple):
    """What a layer should give: `wanted`, or whatever lies between `least` and `most`; without these, just that."""

    wanted: Tensor
    least: Tensor | None = None
    most: Tensor | None = None

    def nearest(self, given: Tensor) -> Tensor:
        """Of all values that are as good as the wanted ones, those nearest to the given ones."""
        if self.least is None or self.most is None:
            return self.wanted
        return given.clamp(self.least, self.most)

    def map(self, change: Callable[[Tensor], Tensor]) -> Goal:
        """The same with every part changed."""
        ends = (None if end is None else change(end) for end in (self.least, self.most))
        return Goal(change(self.wanted), *ends)

    @staticmethod
    def joined(goals: Sequence[Goal]) -> Goal:
        """Rows of several that have ends."""
        wanted, least, most = (
            torch.cat([part for part in parts if part is not None], 1) for parts in zip(*goals, strict=True)
        )
        return Goal(wanted, least, most)


@dataclass(frozen=True, eq=False)
class Outlook:
    """Behind the layer: ``scale * output[index] + shift``, what is added to it, and the limits of the activation then.

    Attributes
    ----------
    shape:
        Of the end.
    index:
        Flat numbers of the layer's output elements, in the shape of the end; None where all stand in their places.
    scale, shift:
        Of each on the way; they broadcast with the end.
    least:
        Scales up to here carry no correction, and set no limit.
    small, dense:
        What is added, by its nodes in both recordings.
    limits:
        What is below or above has the same effect as the limit itself.
    """

    shape: torch.Size
    index: Tensor | None
    scale: Tensor
    shift: Tensor
    least: float
    small: fx.Node | None = None
    dense: fx.Node | None = None
    limits: tuple[float, float] | None = None

    def goals(
        self, wanted: Tensor, added: tuple[Tensor, Tensor] | None, pick: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor], Goal]:
        """The goal of chosen rows alone, as ``pick(tensor, chosen)`` picks them of what has the output's shape.

        Of a large map few rows are looked at; where all stand in their places, only these are worked out.
        """
        if self.index is not None or (added is None and self.limits is None):
            whole = self.goal(wanted, added)
            return lambda chosen: whole.map(lambda part: pick(part, chosen))
        scale, shift = (part.to(wanted).expand(self.shape) for part in (self.scale, self.shift))

        def goal(chosen: Tensor) -> Goal:
            near = replace(self, scale=pick(scale, chosen), shift=pick(shift, chosen))
            given = None if added is None else (pick(added[0], chosen), pick(added[1], chosen))
            return near.goal(pick(wanted, chosen), given)

        return goal

    def goal(self, wanted: Tensor, added: tuple[Tensor, Tensor] | None) -> Goal:
        """The target and what is as good; `added` is what the dense and the small model add to the layer's result."""
        scale, rest = self.scale.to(wanted), self.shift.to(wanted)
        wide = scale.abs() > self.least
        if added is not None:  # the layer makes up for what the shortcut is off by
            change = torch.where(wide, (added[0] - added[1]) / torch.where(wide, scale, 1.0), 0.0)
            wanted, rest = wanted + self._back(change, 0.0, wanted), rest + added[1]
        if self.limits is None:
            return Goal(wanted)
        ends = [torch.where(wide, (limit - rest) / scale, math.nan) for limit in self.limits]
        low, high = torch.where(scale > 0, ends[0], ends[1]), torch.where(scale > 0, ends[1], ends[0])
        low, high = (self._back(end, math.nan, wanted) for end in (low, high))
        below, above = wanted <= low, wanted >= high  # false where there is no end
        return Goal(
            wanted,
            torch.where(below, -math.inf, torch.where(above, high, wanted)),
            torch.where(below, low, torch.where(above, math.inf, wanted)),
        )

    def _back(self, values: Tensor, otherwise: float, like: Tensor) -> Tensor:
        """Values at the end as such of the layer's output."""
        if self.index is None:
            return values
        onto = like.new_full(like.shape, otherwise)
        onto.view(-1)[self.index.to(onto.device).reshape(-1)] = values.expand(self.index.shape).reshape(-1)
        return onto


@dataclass(frozen=True, eq=False)
class _Way:
    """How far a value has come: at `last` it is ``scale * output[index] + shift``; without index, in its place."""

    last: fx.Node
    shape: torch.Size
    index: Tensor | None
    scale: Tensor
    shift: Tensor

    def outlook(self, **end: Any) -> Outlook:
        """From here."""
        least = _LEAST_SCALE * float(self.scale.abs().max()) if self.scale.numel() else 0.0
        return Outlook(self.shape, self.index, self.scale, self.shift, least, **end)


def find_outlook(fitted: Fit, node: fx.Node, tensors: Mapping[str, Tensor]) -> Outlook:
    """What becomes of `node`'s result (of the small recording), as far as it goes one way only.

    `tensors`: the parameters and buffers that norms on the way are to be read with.
    """
    trace = fitted.small.labels.trace
    way = _follow(node, trace, tensors)
    end, small, dense = way.last, None, None
    add = _only_user(end)
    other = _other(add, end) if add is not None and _is_add(add) else None
    if add is not None and other is not None and find_part(other, trace) is None:
        dense = fitted.nodes.get(other)
        if dense is None or trace.order[other] > trace.order[node] or other.meta["shape"] != way.shape:
            return way.outlook()
        end, small = add, other
    return way.outlook(small=small, dense=dense, limits=_limits(_only_user(end)))


def _follow(node: fx.Node, trace: Trace, tensors: Mapping[str, Tensor]) -> _Way:
    shape: torch.Size = node.meta["shape"]
    one = torch.ones([1] * len(shape), dtype=torch.float64)
    way: _Way | None = _Way(node, shape, None, one, one - 1)
    while way is not None:
        known, user = way, _only_user(way.last)
        way = None if user is None else _step(user, known, trace, tensors)
    return known


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_add(node: fx.Node) -> bool:
    return operator_name(node) == "add" and not node.kwargs


def _other(user: fx.Node, last: fx.Node) -> fx.Node | None:
    operands = user.args[:2]
    if len(operands) < 2 or operands[0] is operands[1]:
        return None
    other = operands[1] if operands[0] is last else operands[0]
    return other if isinstance(other, fx.Node) else None


def _step(user: fx.Node, way: _Way, trace: Trace, tensors: Mapping[str, Tensor]) -> _Way | None:
    """Behind one more call; None where it does anything else than move, shift or scale."""
    last, scale, shift = way.last, way.scale, way.shift
    if user.target is operator.getitem:
        return replace(way, last=user) if user.args[1] == 0 and is_fixed_norm(last) else None
    if is_fixed_norm(user) and user.args[0] is last:
        factor, constant = norm_scale(user, trace, tensors), norm_shift(user, trace, tensors)
        if factor is None or constant is None:
            return None
        factor, constant = (part.cpu().view(1, -1, *[1] * (len(way.shape) - 2)) for part in (factor, constant))
        return replace(way, last=user, scale=scale * factor, shift=shift * factor + constant)
    if operator_name(user) == "mul" or _is_add(user):
        constant = _constant(user, last, trace, tensors)
        if constant is None or user.meta["shape"] != way.shape:
            return None
        if _is_add(user):
            return replace(way, last=user, shift=shift + constant)
        return replace(way, last=user, scale=scale * constant, shift=shift * constant)
    if operator_name(user) in MOVES and len(user.all_input_nodes) == 1:
        return _moved(user, way)
    return None


def _moved(user: fx.Node, way: _Way) -> _Way | None:
    """Behind a move; None where the value comes apart."""
    index = torch.arange(way.shape.numel()).view(way.shape) if way.index is None else way.index
    places, *factors = (moved(user, part.expand(way.shape)) for part in (index, way.scale, way.shift))
    return _Way(user, places.shape, places, *factors) if isinstance(places, Tensor) else None


def _constant(user: fx.Node, last: fx.Node, trace: Trace, tensors: Mapping[str, Tensor]) -> Any:
    """The other operand, if it is a number or made of parameters; None of any other."""
    other = user.args[1] if user.args[0] is last else user.args[0]
    if isinstance(other, int | float):
        return other
    part = find_part(other, trace) if other is not last else None
    return None if part is None else part.of(tensors).double().cpu()  # where the way is worked out


def _limits(user: fx.Node | None) -> tuple[float, float] | None:
    """Between what an activation tells values apart."""
    if user is None or user.kwargs:
        return None
    if operator_name(user) == "relu":
        return 0.0, math.inf
    if operator_name(user) not in ("hardtanh", "clamp", "clamp_min"):
        return None
    usual = (-1.0, 1.0) if operator_name(user) == "hardtanh" else (None, None)
    given: list[Any] = [*user.args[1:3], *usual][:2] if len(user.args) != 2 else [user.args[1], usual[1]]
    ends = (-math.inf if given[0] is None else given[0], math.inf if given[1] is None else given[1])
    return ends if all(isinstance(end, int | float) for end in ends) else None
