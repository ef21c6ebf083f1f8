"""Norms and distances: sums of powers, to which a silenced channel adds nothing."""

from __future__ import annotations

from typing import Any

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.algebra import product_sum
from surgeon.rules.layout import lift, note_summed
from surgeon.rules.marks import Ledger, Marked, replace
from surgeon.rules.registry import rule
from surgeon.rules.statistics import axes_of, note_statistics


@rule("linalg_vector_norm", "norm")
def vector_norm(ledger: Ledger, x: Marked, p: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    axes = axes_of(x, dim)
    if p is not None and p < 0:  # a minimum, or a sum of reciprocals: zero would count
        x = layout.mix(ledger, x, axes)
    return layout.reduce(ledger, x, axes, keepdim)


@rule("dist")
def dist(ledger: Ledger, one: Marked, other: Marked, p: Any = 2) -> Marked:
    joint = algebra.join(ledger, [one, other])
    if p < 0:
        ledger.pin(joint.planes, reasons.mixes(ledger.node))
    for operand, value in enumerate((one, other)):
        note_summed(ledger, value, operand, range(len(value.shape)))
    return Marked((), (), constant=joint.constant)


@rule("_cdist_forward", "_euclidean_dist")
def cdist(ledger: Ledger, one: Marked, other: Marked, *_: Any) -> Marked:
    """Rows `one (..., p, m)` against rows `other (..., r, m)`: differences are zero where both are silenced."""
    ndim = max(len(one.shape), len(other.shape)) + 1
    sides: list[Marked] = []
    for operand, value in enumerate((one, other)):
        own = len(value.shape)
        note_summed(ledger, value, operand, [own - 1])
        places = {axis: axis + ndim - 1 - own for axis in range(own - 2)}
        sides.append(lift(value, {**places, own - 2: ndim - 3 + operand, own - 1: ndim - 1}, ndim))
    return layout.drop_axis(product_sum(ledger, sides[0], sides[1], ndim - 1), ndim - 1)


@rule("_pdist_forward")
def pdist(ledger: Ledger, x: Marked, *_: Any) -> Marked:
    """Every two rows: the rows stay, the sum runs over what they hold."""
    rows = layout.mix(ledger, x, [0])
    return layout.reduce(ledger, rows, [1], keepdim=False)


@rule("renorm")
def renorm(ledger: Ledger, x: Marked, p: Any, dim: int, *_: Any) -> Marked:
    note_statistics(ledger, x, [axis for axis in range(len(x.shape)) if axis != dim % len(x.shape)])
    return replace(x, value=None)
