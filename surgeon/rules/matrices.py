"""Matrices as such: diagonals, products of three, decompositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.contraction import addmm
from surgeon.rules.layout import lift, note_summed, running
from surgeon.rules.marks import FIXED, Ledger, Marked, Plane, replace
from surgeon.rules.registry import rule


@rule("_trilinear")
def trilinear(
    ledger: Ledger, one: Marked, two: Marked, three: Marked, *added_and_summed: Sequence[int], **_: Any
) -> Marked:
    """The sum over some axes of the product of three tensors, each widened by axes of its own (``nn.Bilinear``)."""
    *added, summed = added_and_summed[:4]
    ndim = len(one.shape) + len(added[0])
    sides = []
    for operand, (value, new) in enumerate(zip((one, two, three), added, strict=True)):
        places = dict(enumerate(axis for axis in range(ndim) if axis not in new))
        note_summed(ledger, value, operand, [a for a, place in places.items() if place in summed])
        sides.append(lift(value, places, ndim))
    joint = algebra.join(ledger, sides)
    _note_roles(ledger, sides, frozenset(summed))
    left = replace(joint, planes=tuple(p for p in joint.planes if not p.axes & frozenset(summed)), free=False)
    for axis in sorted(summed, reverse=True):
        left = layout.drop_axis(left, axis)
    return left


def _note_roles(ledger: Ledger, values: Sequence[Marked], summed: frozenset[int]) -> None:
    """Weights consume what they sum over and produce the rest."""
    for value in values:
        for plane in value.planes:
            if plane.axes & summed:
                ledger.anchor(plane, plane.axes - summed, "summed")
            if value.constant and plane.axes & summed:
                ledger.consumed.append(plane.labels)
            elif value.constant and not plane.example:
                ledger.produced.append((plane.labels, False))


@rule("addbmm")
def addbmm(ledger: Ledger, bias: Marked, a: Marked, b: Marked, **_: Any) -> Marked:
    """The sum of all products of a batch: a removed one is zero with either of its factors."""
    for operand, value in ((1, a), (2, b)):
        note_summed(ledger, value, operand, [0])
    product = addmm(ledger, _in_front(bias), a, b)
    left = replace(product, planes=tuple(p for p in product.planes if 0 not in p.axes))
    return layout.drop_axis(left, 0)


def _in_front(value: Marked) -> Marked:
    return lift(value, {axis: axis + 1 for axis in range(len(value.shape))}, len(value.shape) + 1)


@rule("addmv")
def addmv(ledger: Ledger, bias: Marked, a: Marked, b: Marked, **_: Any) -> Marked:
    for operand, value, axis in ((1, a, 1), (2, b, 0)):
        note_summed(ledger, value, operand, [axis])
    joint = algebra.product_sum(ledger, a, lift(b, {0: 1}, 2), 1)
    return algebra.join(ledger, [layout.drop_axis(joint, 1), bias])


@rule("addr")
def addr(ledger: Ledger, bias: Marked, a: Marked, b: Marked, **_: Any) -> Marked:
    return algebra.join(ledger, [bias, lift(a, {0: 0}, 2), lift(b, {0: 1}, 2)])


@rule("linalg_cross")
def cross(ledger: Ledger, a: Marked, b: Marked, *, dim: int = -1) -> Marked:
    return algebra.join(ledger, [layout.mix(ledger, value, [dim % len(value.shape)]) for value in (a, b)])


@rule("diagonal", "diagonal_copy")
def diagonal(ledger: Ledger, x: Marked, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Marked:
    """Place i belongs to row i and to column i, which go together."""
    pair = [axis % len(x.shape) for axis in (dim1, dim2)]
    rows, columns = ([p for p in x.planes if axis in p.axes and not p.example] for axis in pair)
    result = layout.move(ledger, torch.diagonal, x, offset, *pair)
    if offset or len(rows) != 1 or len(columns) != 1 or rows == columns:
        ledger.pin([*rows, *columns], reasons.mixes(ledger.node))
        return result
    row, column = (result.planes[x.planes.index(plane)] for plane in (*rows, *columns))
    ledger.couple(row, column)
    return replace(result, planes=tuple(p for p in result.planes if p is not column))


@rule("trace")
def trace(ledger: Ledger, x: Marked) -> Marked:
    found: Marked = diagonal(ledger, x)
    note_summed(ledger, x, 0, [0, 1])
    return Marked((), (), constant=found.constant)


@rule("diag_embed")
def diag_embed(ledger: Ledger, x: Marked, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Marked:
    """Row i and column i belong to place i; what stands off the diagonal is zero."""
    ndim = len(x.shape) + 1
    last, pair = len(x.shape) - 1, (dim1 % ndim, dim2 % ndim)
    rest = [axis for axis in range(ndim) if axis not in pair]
    if offset:
        moved = [p for p in x.planes if last in p.axes]
        ledger.pin(moved, reasons.mixes(ledger.node))
        x = replace(x, planes=tuple(p for p in x.planes if p not in moved))
    sides = [lift(x, {**dict(enumerate(rest)), last: axis}, ndim) for axis in pair]
    rows, columns = sides
    own = [p for p, old in zip(columns.planes, x.planes, strict=True) if last in old.axes]
    return replace(x, shape=(), planes=(*rows.planes, *own), value=None, free=False)


@rule("block_diag")
def block_diag(ledger: Ledger, blocks: Sequence[Marked]) -> Marked:
    """Rows stand below rows and columns beside columns; the rest is zero."""
    planes = []
    for axis in (0, 1):
        labels = [_along(block, axis) for block in blocks]
        shape = [-1 if a == axis else 1 for a in (0, 1)]
        planes.append(Plane(torch.cat(labels).view(shape), frozenset({axis})))
    return Marked((), (), tuple(p for p in planes if p.labels.any()), constant=all(b.constant for b in blocks))


def _along(block: Marked, axis: int) -> torch.Tensor:
    """A block's labels along one axis; it must have no others."""
    for plane in block.planes:
        if plane.axes == {axis} and not plane.example:
            return plane.labels.reshape(-1)
    return torch.full((block.shape[axis],), FIXED)


@rule("_linalg_check_errors")
def check_errors(ledger: Ledger, *_: Any, **__: Any) -> Marked:
    """Raises, or does nothing."""
    return Marked((), ())


@rule("as_strided")
def strided(ledger: Ledger, *args: Any, **_: Any) -> Any:
    """Places are picked by where they lie in memory."""
    return layout.opaque(ledger, args, 1)


@rule("linalg_qr", "linalg_householder_product", "linalg_matrix_exp", "_linalg_solve_ex", "linalg_solve_triangular",
      "linalg_inv_ex", "linalg_cholesky_ex", "linalg_lstsq", "linalg_pinv", "linalg_eig",
      "linalg_lu_factor_ex", "_linalg_svd", "_linalg_eigh", "_linalg_det", "_linalg_slogdet", "cholesky_solve",
      "cholesky_inverse", "linalg_ldl_factor_ex")  # fmt: skip
def whole(ledger: Ledger, *args: Any, **_: Any) -> Any:
    """Every number of a result depends on the whole matrix; axes in front of the last two number matrices."""
    values = [a for a in args if isinstance(a, Marked)]
    vectors = running(ledger) == "linalg_householder_product"
    own = [1 if vectors and number else 2 for number in range(len(values))]
    batches = {len(value.shape) - axes for value, axes in zip(values, own, strict=True)}
    if len(batches) > 1:
        return layout.opaque(ledger, args, _MOST_RESULTS)
    joint = algebra.join(ledger, [_in_front_of(ledger, v, axes) for v, axes in zip(values, own, strict=True)])
    shapes = {0: ledger.node.meta.get("shape"), **{u.args[1]: u.meta["shape"] for u in ledger.node.users if u.args[1:]}}
    results = [_of_each(joint, shapes.get(number)) for number in range(_MOST_RESULTS)]
    return results[0] if "shape" in ledger.node.meta else results


#: More than any decomposition gives.
_MOST_RESULTS = 4


def _in_front_of(ledger: Ledger, value: Marked, own: int) -> Marked:
    """What there is along all but the last `own` axes, whose places depend on each other."""
    batch = len(value.shape) - own
    mixed = layout.mix(ledger, value, range(batch, batch + own))
    return lift(mixed, {axis: axis for axis in range(batch)}, batch)


def _of_each(joint: Marked, shape: Sequence[int] | None) -> Marked:
    """A result that has the axes in front, and others of its own behind them."""
    batch = len(joint.shape)
    fits = shape is not None and len(shape) >= batch and tuple(shape[:batch]) == tuple(joint.shape)
    return lift(joint, {axis: axis for axis in range(batch)}, len(shape)) if fits else Marked((), ())  # type: ignore[arg-type]
