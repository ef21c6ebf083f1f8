"""How the labels of several values combine. Rules are written with these and with :mod:`surgeon.rules.layout`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.rules import reasons
from surgeon.rules.layout import lift, slide
from surgeon.rules.marks import FIXED, Ledger, Marked, Plane, replace, spread

#: Which planes describe the same axes in the same sense: :attr:`Plane.key`.
_Key = tuple[bool, frozenset[int]]


def align_right(values: Sequence[Marked]) -> list[Marked]:
    """Lift all values to the largest number of axes, as broadcasting does."""
    ndim = max(len(v.shape) for v in values)
    return [lift(v, {a: a + ndim - len(v.shape) for a in range(len(v.shape))}, ndim) for v in values]


def join(ledger: Ledger, values: Sequence[Marked]) -> Marked:
    """Combine values place by place, broadcasting: equal places are equal channels.

    Along an axis where a value is broadcast nothing is coupled. A vector along the last axis of a plane (the channels
    inside each head) couples with all its rows. Labels that meet a value with places but no labels are pinned; labels
    that meet one along only some of their axes are anchored there.
    """
    values = _slabs(ledger, align_right(values))
    merged: dict[Any, Plane] = {}
    for value in values:
        seen: Counter[Any] = Counter()
        for plane in value.planes:
            # an axis that merges two labelled ones has two planes: the first meets the first, the second the second
            key = (plane.key, seen[plane.key])
            seen[plane.key] += 1
            merged[key] = _merge(ledger, merged[key], plane) if key in merged else plane
    inner, held = set[Any](), set[Any]()
    if len({key for key, _ in merged}) > 1 or not all(value.planes for value in values):  # not all lie along one axis
        for plane, rows in _rows(values):
            ledger.couple(rows, plane)
            inner.add(plane.key)
        # what is pinned here stays everywhere: it needs no following any further
        pairs = itertools.permutations(values, 2)
        held = {p.key for value, other in pairs for p in value.planes if _held(ledger, p, other)}
    # what the forward makes takes the size of what it meets: it has no places of its own along the axes of the others
    given = [v for v in values if v.planes or not v.free] or values
    shape, span = _broadcast([v.shape for v in values]), _broadcast([v.span for v in given])
    return Marked(
        shape,
        span,
        tuple(plane for plane in merged.values() if plane.key not in inner | held),
        free=all(v.free for v in values),
        constant=all(v.constant for v in values),
        stretched=frozenset(axis for axis in range(len(span)) if span[axis] == 1),
    )


def _slabs(ledger: Ledger, values: Sequence[Marked]) -> list[Marked]:
    """The values; one with labels along several axes that meets one with labels along a part of these, and places along
    all: only whole slabs can go of both, so each slab is one channel.

    An increment `(B @ A).view(weight.shape)` of a convolution's weight has such labels: one for each column of A. Those
    of layers that mix rows with channels, and of layers that mix columns with channels, share the channels.
    """
    found = list(values)
    for (index, value), (_, other) in itertools.permutations(enumerate(values), 2):
        if (met := _slab_of(value, other)) is not None:
            plane, shared = met
            slabs = slide(ledger, replace(value, planes=(plane,)), sorted(plane.axes - shared)).planes
            rest = (p for p in found[index].planes if p is not plane)
            found[index] = replace(found[index], planes=(*rest, *slabs))
    return found


def _slab_of(value: Marked, other: Marked) -> tuple[Plane, frozenset[int]] | None:
    """A plane of `value` that has more axes than it shares with the one of `other` that it meets, and those."""
    if other.free:
        return None
    for plane in value.planes:
        if plane.example or len(plane.axes) == 1 or any(other.span[axis] == 1 for axis in plane.axes):
            continue
        own = [p for p in value.planes if not p.example and p.axes & plane.axes]
        met = [p for p in other.planes if not p.example and p.axes & plane.axes]
        if len(own) == len(met) == 1 and not plane.axes <= met[0].axes and not _is_row(met[0], plane):
            return plane, met[0].axes & plane.axes
    return None


def _rows(values: Sequence[Marked]) -> Iterator[tuple[Plane, Plane]]:
    """Planes that are like each row of a plane of another value, with that plane."""
    for value, other in itertools.permutations(values, 2):
        yield from ((p, q) for p in value.planes for q in other.planes if _is_row(p, q))


def _is_row(plane: Plane, of: Plane) -> bool:
    return not plane.example and not of.example and plane.axes < of.axes and max(of.axes) in plane.axes


def _broadcast(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The common shape of shapes of equal length (torch's own function takes twenty times as long)."""
    found = []
    for sizes in zip(*shapes, strict=True):
        varied = set(sizes) - {1}
        if len(varied) > 1:
            raise ValueError(f"shapes {', '.join(str(tuple(shape)) for shape in shapes)} don't fit each other")
        found.append(varied.pop() if varied else 1)
    return tuple(found)


def _merge(ledger: Ledger, one: Plane, other: Plane) -> Plane:
    ledger.couple(one, other)
    return replace(one, labels=torch.where(one.labels == FIXED, other.labels, one.labels))


def _held(ledger: Ledger, plane: Plane, other: Marked) -> bool:
    """Hold `plane` in place where `other` has places of its own along its axes; whether it is pinned by that."""
    if other.free or plane.example:
        return False
    if any(p.key == plane.key or _is_row(p, plane) or _is_row(plane, p) for p in other.planes):
        return False
    met = {axis for axis in plane.axes if other.span[axis] > 1}
    if met == plane.axes:
        ledger.pin([plane], reasons.constant(ledger.node))
    elif met:
        ledger.anchor(plane, met, "meets")
    return met == plane.axes


def pointwise(ledger: Ledger, *args: Any, **kwargs: Any) -> Marked:
    """Elementwise operators: all tensor arguments, broadcast against each other."""
    return join(ledger, [a for a in (*args, *kwargs.values()) if isinstance(a, Marked)])


def product_sum(ledger: Ledger, one: Marked, other: Marked, summed: int, *, filters: bool = False) -> Marked:
    """The sum over axis `summed` of the product of two values in one space.

    Planes along the summed axis are coupled and end here; the others go on. A weight's planes get their roles:
    consumed along the summed axis, produced elsewhere (`filters`: by a convolution).
    """
    joint = join(ledger, [one, other])
    for value in (one, other):
        for plane in value.planes:
            if plane.example:
                continue
            if summed in plane.axes:
                ledger.anchor(plane, plane.axes - {summed}, "summed")
            if value.constant and summed in plane.axes:
                ledger.consumed.append(plane.labels)
            elif value.constant:
                ledger.produced.append((plane.labels, filters))
    return replace(joint, planes=tuple(p for p in joint.planes if summed not in p.axes), free=False)


def assemble(
    ledger: Ledger, parts: Sequence[Marked], dim: int, combine: Callable[[list[Tensor]], Tensor], *, whole: bool = False
) -> Marked:
    """Put `parts` together along `dim` (cat, slice_scatter): labels follow along it and couple along other axes.

    `whole`: each part is there as a whole; one that the forward makes may yet take channels (a state's first value).
    """
    keys = list(dict.fromkeys(plane.key for part in parts for plane in part.planes if dim in plane.axes))
    if whole and not keys and len({part.free for part in parts}) > 1:
        keys = [(False, frozenset({dim}))]
    keys = [key for key in keys if not any(_widens(parts, key, wider) for wider in keys)]
    planes = []
    for example, axes in keys:
        labels = []
        for part in parts:
            own = [p for p in part.planes if p.key == (example, axes) or _widens(parts, p.key, (example, axes))]
            labels.append(spread(own[0] if own else _unlabelled(ledger, part, axes), part.shape))
        planes.append(Plane(combine(labels), axes, example))
    across = [
        replace(part, planes=tuple(p for p in part.planes if dim not in p.axes), shape=_one(part.shape, dim))
        for part in parts
    ]
    across = [replace(part, span=_one(part.span, dim)) for part in across]
    joint = join(ledger, across)
    # parts of other values: places differ, even where each part was made in the size that it needed
    return replace(joint, planes=(*planes, *joint.planes), shape=(), free=False, stretched=frozenset())


def _widens(parts: Sequence[Marked], key: _Key, wider: _Key) -> bool:
    """Whether what lies along the axes of `key` is told along those of `wider`, as other parts are.

    A key that all heads share, beside the keys of each head, is the same row of channels for every head; maps beside
    a picture that was put together of several filters are the same channel at each of its places.
    """
    if key[0] != wider[0] or not key[1] < wider[1]:
        return False
    met = ([p.key for p in part.planes if p.axes & key[1] and not p.example] for part in parts)
    return all(own == [key] for own in met if key in own)


def _unlabelled(ledger: Ledger, part: Marked, axes: frozenset[int]) -> Plane:
    """A part without labels of its own; one that the forward makes takes the size of what it meets."""
    if not part.free or len(axes) > 1:
        return Plane(torch.full([1] * len(part.shape), FIXED, dtype=torch.int64), axes)
    (axis,) = axes
    shape = [-1 if a == axis else 1 for a in range(len(part.shape))]
    return Plane(ledger.fresh(part.shape[axis]).view(shape), axes)


def _one(sizes: Sequence[int], dim: int) -> tuple[int, ...]:
    return tuple(1 if axis == dim else size for axis, size in enumerate(sizes))
