"""Compare two recordings node by node at the kept places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels.structure import Ints
from surgeon.tracing import Call, Inputs, Replay, operator_name, plain_call
from surgeon.trial import Fit, partners
from surgeon.verification.noise import Noise
from surgeon.verification.twin import as_wide, by_default, in_dtype

#: How many times what one operand is uncertain by a result may be: roundings of a long sum add up.
_TERMS = 64


@dataclass
class Outcome:
    """What came out of one run of both models.

    Attributes
    ----------
    worst:
        Largest relative error over all nodes.
    nodes:
        How many nodes were compared.
    failure:
        The first dense node beyond the tolerance, with its error.
    unproven:
        Dense nodes whose comparison says nothing: zero, not finite, or not aligned.
    stopped:
        What ended the run early; empty where nothing did.
    """

    worst: float = 0.0
    nodes: int = 0
    failure: tuple[fx.Node, float] | None = None
    unproven: list[fx.Node] = field(default_factory=list)
    stopped: str = ""

    def add(self, node: fx.Node, error: float, tolerance: float) -> None:
        """Take in the comparison of one node."""
        if math.isnan(error):
            self.unproven.append(node)
            return
        self.nodes += 1
        self.worst = max(self.worst, error)
        if error > tolerance and self.failure is None:
            self.failure = (node, error)


def run_side_by_side(
    fitted: Fit,
    silenced: Call,
    dense: Mapping[str, Tensor],
    small: Mapping[str, Tensor],
    dtype: torch.dtype,
    tolerance: float,
    inputs: Inputs | None = None,
) -> Outcome:
    """Run the silenced dense recording and the small one side by side on these tensors.

    Each tensor is asked for when its turn comes, and not kept. `inputs`: default are those that were recorded.
    """
    dense_trace, small_trace = fitted.graph.trace, fitted.small.labels.trace
    given = _in(inputs or dense_trace.inputs, dtype), _in(inputs or small_trace.inputs, dtype)
    partner = partners(fitted.nodes)
    noise = Noise(partner, fitted.graph.structure.labels.marks)
    calls = [in_dtype(noise.shared(call), dtype) for call in (silenced, plain_call)]
    run = Replay(dense_trace, _Cast(dense, dense_trace.tensors, dtype), calls[0]).steps(given[0])
    ours = Replay(small_trace, _Cast(small, small_trace.tensors, dtype), calls[1]).steps(given[1])
    result, waiting = Outcome(), _Waiting(ours)
    seen, nothing = set[fx.Node](), set[fx.Node]()
    rounding = _Rounding()
    try:
        with torch.no_grad(), by_default(dtype):
            for node, value in run:
                if _says_something(fitted, node, value):
                    match = partner.get(node)
                    other = None if match is None else waiting.value(match)
                    scale, difference = _apart(fitted, node, match, value, other)
                    error = difference / scale if scale > 0 else math.nan
                    if error > tolerance and dtype is torch.float64 and rounding.explains(node, difference):
                        error = math.nan
                    rounding.note(node, scale, difference)
                    if math.isnan(error) and _nothing_flows(fitted, node, value, other, nothing):
                        nothing.add(node)
                    else:
                        result.add(node, error, tolerance)
                if result.failure is not None:
                    break
                seen.add(node)
    except (RuntimeError, IndexError, ValueError) as problem:
        # a recording that other numbers can't run through (an index computed from them, a type without a kernel)
        left = [n for n in dense_trace.graph.nodes if n.op == "call_function" and n not in seen]
        result.unproven += left
        where = f"{operator_name(left[0])} in {left[0].meta.get('site')}: " if left else ""
        result.stopped = f"{where}{type(problem).__name__}: {problem}"
    return result


def _says_something(fitted: Fit, node: fx.Node, value: Any) -> bool:
    """Whether a dense value is one to compare: numbers, not made in the size that is needed."""
    if node.op != "call_function" or not isinstance(value, Tensor) or not value.numel():
        return False
    result = any(user.op == "output" for user in node.users)
    number = value.is_floating_point() or value.is_complex() or result
    return bool(number) and not fitted.graph.structure.labels.marks[node].free


def _nothing_flows(fitted: Fit, node: fx.Node, dense: Tensor, small: Any, nothing: set[fx.Node]) -> bool:
    """Whether a call is on zeros that the forward made (a first state), or on what came of them, `nothing` either.

    A product with those is zero whatever the weights are.
    """
    marks = fitted.graph.structure.labels.marks
    made = any(n in nothing or (n in marks and marks[n].free) for n in node.all_input_nodes)
    return made and isinstance(small, Tensor) and not bool(dense.any()) and not bool(small.any())


class _Waiting:
    """Values of the other run, as far as it got, each until it is asked for."""

    def __init__(self, steps: Iterator[tuple[fx.Node, Any]]) -> None:
        self._steps, self._values = steps, dict[fx.Node, Any]()

    def value(self, node: fx.Node) -> Any:
        while node not in self._values:
            found = next(self._steps, None)
            if found is None:
                return None
            if found[0].op == "call_function":
                self._values[found[0]] = found[1]
        return self._values.pop(node)


class _Cast(Mapping[str, Tensor]):
    """Tensors in another type; those that nobody gives (numbers that the forward makes) as they were recorded."""

    def __init__(self, tensors: Mapping[str, Tensor], recorded: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._tensors, self._recorded, self._dtype = tensors, recorded, dtype

    def __getitem__(self, name: str) -> Tensor:
        tensor = (self._tensors if name in self._tensors else self._recorded)[name]
        return tensor.detach().to(as_wide(tensor.dtype, self._dtype))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors or name in self._recorded

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _in(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return inputs.map(torch.Tensor.detach).to(dtype=dtype)


class _Rounding:
    """What rounding can make of a value whose terms cancel: the mean of what was normalised is nothing else."""

    def __init__(self) -> None:
        self._seen: dict[fx.Node, float] = {}

    def note(self, node: fx.Node, scale: float, difference: float) -> None:
        """Remember how uncertain the values of `node` are: `difference` apart, and rounded."""
        if math.isfinite(scale) and math.isfinite(difference):
            self._seen[node] = difference + scale * torch.finfo(torch.float64).eps

    def explains(self, node: fx.Node, difference: float) -> bool:
        """Whether `difference` is no more than what its operands are uncertain by."""
        return difference <= _TERMS * max((self._seen.get(n, 0.0) for n in node.all_input_nodes), default=0.0)


def _apart(fitted: Fit, node: fx.Node, match: fx.Node | None, dense: Tensor, small: Any) -> tuple[float, float]:
    """The node's own scale and the largest difference at the kept places; not numbers where nothing can be said."""
    if match is None or not isinstance(small, Tensor):
        return math.nan, math.nan
    kept = kept_places(fitted, node, match, dense)
    if kept is None or kept.shape != small.shape:
        return 1.0, math.inf
    if not kept.numel():
        return math.nan, math.nan
    kept, small = _finite(in_double(kept), in_double(small))
    scale = float(kept.abs().max())
    difference = float((kept - small).abs().max())
    return (scale, difference) if math.isfinite(scale) and math.isfinite(difference) else (math.nan, math.nan)


def _finite(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the places where they are the same infinity: what a mask of scores holds, beside the scores."""
    if one.is_complex() or not one.isinf().any():
        return one, other
    same = one.isinf() & (one == other)
    return one.masked_fill(same, 0.0), other.masked_fill(same, 0.0)


def in_double(value: Tensor) -> Tensor:
    """In double precision, complex numbers as such."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def kept_places(fitted: Fit, node: fx.Node, match: fx.Node, dense: Tensor) -> Tensor | None:
    """The dense value at the places that the small value has, in its order; None if they can't be the same channels."""
    theirs = fitted.graph.structure.labels.marks.get(node)
    ours = fitted.small.labels.marks.get(match)
    for fold in fitted.folds:
        if node in fold.path:
            factor = fold.scale(fitted.graph, node)
            dense = dense * (factor.to(dense) if isinstance(factor, Tensor) else factor)
    if theirs is None or ours is None:
        return dense
    found = fitted.matching.places(theirs, ours)
    if found is None:
        return None
    for axes, index, sizes in found:
        dense = _take(dense, axes, index, sizes)
    for axis in theirs.stretched:  # one place, repeated as often as was asked for
        if dense.shape[axis] > match.meta["shape"][axis]:
            dense = dense.narrow(axis, 0, match.meta["shape"][axis])
    return dense


def _take(dense: Tensor, axes: list[int], index: Ints, sizes: list[int]) -> Tensor:
    """Pick places along these axes together."""
    ends = list(range(-len(axes), 0))
    moved = dense.movedim(axes, ends).flatten(-len(axes))
    if len(index) == moved.shape[-1] and (index == np.arange(len(index))).all():
        return dense
    picked = moved.index_select(-1, torch.from_numpy(index).to(dense.device))
    result: Tensor = picked.reshape(*picked.shape[:-1], *sizes).movedim(ends, axes)
    return result
