"""Contractions: sums of products. They couple the channels that meet in the sum and pass the others on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.algebra import product_sum
from surgeon.rules.layout import lift, note_summed, on_axis
from surgeon.rules.marks import Ledger, Marked, Plane, Work, replace
from surgeon.rules.registry import rule


@rule("convolution")
def convolution(
    ledger: Ledger, x: Marked, weight: Marked, bias: Marked | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Marked:  # fmt: skip
    counts: Any = (groups, ledger.dense.args[8])
    x, passing = _passing(x, weight, stride, padding)
    result = convolve(ledger, x, weight, bias, counts, transposed=transposed)
    return replace(result, planes=(*result.planes, *passing))


def _passing(x: Marked, weight: Marked, stride: Any, padding: Any) -> tuple[Marked, tuple[Plane, ...]]:
    """Planes along spatial axes on which the window is one step wide: each place is on its own there."""
    own = {
        axis + 2 for axis in range(len(x.shape) - 2)
        if weight.span[axis + 2] == 1 and stride[axis % len(stride)] == 1 and padding[axis % len(padding)] == 0
    }  # fmt: skip
    passing = tuple(p for p in x.planes if p.axes <= own)
    return replace(x, planes=tuple(p for p in x.planes if p not in passing)), passing


def convolve(
    ledger: Ledger,
    x: Marked,
    weight: Marked,
    bias: Marked | None,
    counts: tuple[int, int],
    *,
    transposed: bool = False,
) -> Marked:
    """A convolution of any kind; `counts` are its groups in this run and in the dense one."""
    ndim = len(x.shape)
    spatial = range(2, ndim)
    alike = 0 in weight.stretched or weight.free  # one filter, repeated, or made in the size that was asked for
    x, weight = layout.slide(ledger, x, spatial), layout.mix(ledger, weight, spatial)
    # Which kind of convolution this is stands in the dense shapes: a cut may leave a group with one channel.
    incoming = ledger.dense.args[1].meta["shape"][0]  # type: ignore[union-attr]  # a node
    per_group = incoming // counts[1] if transposed else weight.span[1]
    depthwise = per_group == 1 and counts[1] > 1
    if not depthwise:
        note_summed(ledger, x, 0, [1])
    # joint space: example, group, out-channel of the group, in-channel of the group
    left = lift(_unmerge(_flat(x), 1, counts), {0: 0, 1: 1, 2: 3}, 4)
    places = {0: 1, 1: 3, 2: 2} if transposed else {0: 1, 1: 2, 2: 3}
    right = lift(_unmerge(_flat(weight), 0, counts), places, 4)
    if depthwise and alike and weight.shape[0] == x.shape[1]:
        joint = replace(left, free=False)  # each channel passes by itself
    elif depthwise:
        joint = algebra.join(ledger, [_same_channel(ledger, left, right), right])
        ledger.produced += [(p.labels, True) for p in right.planes if not p.example]
    else:
        joint = product_sum(ledger, left, right, 3, filters=True)
    out = _merge_groups(joint)
    result = lift(out, {0: 0, 1: 1}, ndim)
    _count_convolution(ledger, x, weight, transposed)
    return result if bias is None else algebra.join(ledger, [result, on_axis(bias, 1, ndim)])


def _flat(value: Marked) -> Marked:
    """Without the spatial axes, which hold no labels by now."""
    return replace(
        value,
        shape=value.shape[:2],
        span=value.span[:2],
        planes=tuple(replace(p, labels=p.labels.reshape(p.labels.shape[:2])) for p in value.planes),
    )


def _unmerge(value: Marked, axis: int, counts: tuple[int, int]) -> Marked:
    """Split `axis` into (group, channel of the group); `counts` are the groups of this run and of the dense one."""

    def cut(sizes: Sequence[int], groups: int) -> tuple[int, ...]:
        return (*sizes[:axis], groups, sizes[axis] // groups, *sizes[axis + 1 :])

    span = cut(value.span, counts[1])
    planes = []
    for plane in value.planes:
        axes = {a + (a > axis) for a in plane.axes}
        labels = plane.labels
        if axis in plane.axes:
            labels = labels.reshape(cut(labels.shape, counts[0]))
            # an axis of one group, or of one channel per group, holds no labels of its own
            axes = axes - {axis} | {a for a in (axis, axis + 1) if span[a] > 1}
        else:
            labels = labels.reshape(_widen(labels, axis))
        if axis == 0 and plane.axes == {0, 1}:  # a grouped weight's second axis: alike for all rows of a group
            labels, axes = labels.narrow(1, 0, 1), axes - {1}
        planes.append(replace(plane, labels=labels, axes=frozenset(axes)))
    return replace(value, shape=cut(value.shape, counts[0]), span=span, planes=tuple(planes))


def _widen(labels: Tensor, axis: int) -> tuple[int, ...]:
    return (*labels.shape[:axis], 1, 1, *labels.shape[axis + 1 :])


def _merge_groups(joint: Marked) -> Marked:
    """From (example, group, out per group, 1) to (example, out)."""
    groups, out = joint.shape[1:3]
    planes = []
    for plane in joint.planes:
        labels = plane.labels
        if plane.axes & {1, 2}:
            labels = labels.expand(-1, groups, out, 1)
        kept = plane.axes - {1, 2} | ({1} if plane.axes & {1, 2} else set())
        planes.append(replace(plane, labels=labels.reshape(labels.shape[0], -1), axes=frozenset(kept)))
    span = (joint.span[0], joint.span[1] * joint.span[2])
    return replace(joint, shape=(joint.shape[0], groups * out), span=span, planes=tuple(planes))


def _same_channel(ledger: Ledger, left: Marked, right: Marked) -> Marked:
    """Depth-wise: each in-channel is one channel with all out-channels that it makes."""
    outs = [p for p in right.planes if p.axes & {1, 2}]
    incoming = [p for p in left.planes if not p.example and 1 in p.axes]
    for plane in incoming:
        for out in outs:
            ledger.couple(plane, out)
    if not incoming:
        ledger.pin(outs, reasons.constant(ledger.node))
    if not outs:
        ledger.pin(incoming, reasons.constant(ledger.node))
    return replace(left, planes=tuple(p for p in left.planes if p.example or 1 not in p.axes), free=True)


def _count_convolution(ledger: Ledger, x: Marked, weight: Marked, transposed: bool) -> None:
    shape = ledger.node.meta["shape"]
    places = math.prod(x.shape[2:] if transposed else shape[2:]) * shape[0]
    factors = tuple(p.labels for p in weight.planes if not p.example)
    ledger.work.append(Work(ledger.node, math.prod(weight.shape) * places, factors))


def _matmul(ledger: Ledger, a: Marked, b: Marked, operands: tuple[int, int] = (0, 1)) -> Marked:
    """`a (..., n, k) @ b (..., k, m)`, batch axes alike on both sides."""
    batch = len(a.shape) - 2
    note_summed(ledger, a, operands[0], [batch + 1])
    note_summed(ledger, b, operands[1], [batch])
    ndim, same = batch + 3, {i: i for i in range(batch)}
    left = lift(a, {**same, batch: batch, batch + 1: batch + 2}, ndim)
    right = lift(b, {**same, batch: batch + 2, batch + 1: batch + 1}, ndim)
    macs = math.prod(a.shape) * b.shape[-1]
    planes = [p for p in left.planes if batch + 2 in p.axes] or [p for p in right.planes if batch + 2 in p.axes]
    planes += [p for v in (left, right) for p in v.planes if p.axes and batch + 2 not in p.axes]
    ledger.work.append(Work(ledger.node, macs, tuple(p.labels for p in planes if not p.example)))
    joint = product_sum(ledger, left, right, batch + 2)
    return layout.drop_axis(joint, batch + 2)


@rule("mm", "bmm")
def mm(ledger: Ledger, a: Marked, b: Marked, *_: Any) -> Marked:
    return _matmul(ledger, a, b)


@rule("addmm", "baddbmm")
def addmm(ledger: Ledger, bias: Marked, a: Marked, b: Marked, **_: Any) -> Marked:
    return algebra.join(ledger, [_matmul(ledger, a, b, (1, 2)), bias])


@rule("mv")
def mv(ledger: Ledger, a: Marked, b: Marked) -> Marked:
    note_summed(ledger, a, 0, [1])
    note_summed(ledger, b, 1, [0])
    joint = product_sum(ledger, a, lift(b, {0: 1}, 2), 1)
    return layout.drop_axis(joint, 1)


@rule("dot")
def dot(ledger: Ledger, a: Marked, b: Marked) -> Marked:
    note_summed(ledger, a, 0, [0])
    note_summed(ledger, b, 1, [0])
    return layout.drop_axis(product_sum(ledger, a, b, 0), 0)
