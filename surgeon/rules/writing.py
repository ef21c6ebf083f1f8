"""Writing into a part of a tensor, or over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.rules import algebra
from surgeon.rules.layout import lift
from surgeon.rules.marks import Ledger, Marked, Plane, replace
from surgeon.rules.registry import rule
from surgeon.tracing import operator_name

#: Operators that make a tensor of one number, and that number; ``full`` is told it.
_FILLED = {"zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "new_ones": 1.0, "ones_like": 1.0}
#: What leaves a tensor of one number one of that number.
_MOVED = frozenset({
    "alias", "clone", "detach", "expand", "permute", "select", "slice", "squeeze", "t", "transpose", "unsqueeze",
    "view",
})  # fmt: skip


@rule("slice_scatter")
def slice_scatter(ledger: Ledger, x: Marked, source: Marked, dim: int = 0, *args: Any, **kwargs: Any) -> Marked:
    dim %= len(x.shape)

    def write(into: Tensor, part: Tensor) -> Tensor:
        written: Tensor = torch.ops.aten.slice_scatter(into, part, dim, *args, **kwargs)
        return written

    if _same_number(ledger, x, source):
        return x
    if x.free and not x.covers(dim):
        keys = {p.key: p for p in source.planes if dim in p.axes and not p.example}
        x = replace(x, planes=(*x.planes, *(_untouched(ledger, x, plane, dim, write) for plane in keys.values())))
    return algebra.assemble(ledger, [x, source], dim, lambda labels: write(*labels))


def _untouched(ledger: Ledger, x: Marked, source: Plane, dim: int, write: Callable[[Tensor, Tensor], Tensor]) -> Plane:
    """Labels for what the forward made itself, along the axes of those of what is written over a part of it.

    Places that are written over belong to nobody.
    """
    sizes = [x.shape[axis] if axis == dim else size for axis, size in enumerate(source.labels.shape)]
    labels = write(torch.ones(sizes, dtype=torch.int64), torch.zeros_like(source.labels))
    labels[labels > 0] = ledger.fresh(int(labels.sum()))
    return Plane(labels, source.axes)


@rule("select_scatter")
def select_scatter(ledger: Ledger, x: Marked, source: Marked, dim: int, index: int) -> Marked:
    dim %= len(x.shape)
    if _same_number(ledger, x, source):
        return x
    row = lift(source, {a: a + (a >= dim) for a in range(len(source.shape))}, len(x.shape))
    return algebra.assemble(
        ledger,
        [x, row],
        dim,
        lambda labels: torch.select_scatter(labels[0], labels[1].select(dim, 0), dim, index),
    )


def _same_number(ledger: Ledger, x: Marked, source: Marked) -> bool:
    """Whether a number is written over itself, as a state of zeros into a row of zeros: no place differs then."""
    if not (x.free and source.free) or x.planes or source.planes:
        return False
    numbers = [_number_in(node) for node in ledger.dense.all_input_nodes]
    return None not in numbers and len(set(numbers)) == 1


def _number_in(node: fx.Node) -> float | None:
    """The number that stands at every place of a value; None where that isn't known."""
    name = operator_name(node)
    if name in ("full", "full_like", "new_full"):
        filled = node.args[-1]
        return float(filled) if isinstance(filled, bool | int | float) else None
    if name in ("slice_scatter", "select_scatter", "copy"):
        return _number_in(node.args[1])  # type: ignore[arg-type]  # a node
    if name in _MOVED:
        return _number_in(node.args[0])  # type: ignore[arg-type]  # a node
    return _FILLED.get(name)


@rule("copy")
def copy(ledger: Ledger, target: Marked, source: Marked, *_: Any) -> Marked:
    # the numbers are the source's, the sizes the target's: its labels hold along axes where the source is broadcast
    return replace(algebra.join(ledger, [target, source]), constant=source.constant)
