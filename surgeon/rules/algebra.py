"""The few ways in which labels combine. Every rule of the table is written with these."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.rules import reasons
from surgeon.rules.marks import FIXED, Ledger, Marked, Plane, Summed, replace, spread
from surgeon.tracing import operator_name


def running(ledger: Ledger) -> str:
    """The running operator's name, for reasons."""
    return operator_name(ledger.node)


def lift(value: Marked, places: Mapping[int, int], ndim: int) -> Marked:
    """`value` in a space of `ndim` axes, its axis i at ``places[i]``; axes that aren't placed must be unlabelled."""
    if ndim == len(value.shape) == len(places) and all(a == b for a, b in places.items()):
        return replace(value, stretched=frozenset()) if value.stretched else value

    def arrange(sizes: Sequence[int]) -> list[int]:
        out = [1] * ndim
        for source, target in places.items():
            out[target] = sizes[source]
        return out

    order = sorted(places, key=places.__getitem__)
    rest = [axis for axis in range(len(value.shape)) if axis not in places]
    planes = []
    for plane in value.planes:
        labels = plane.labels.permute(*rest, *order)
        labels = labels.reshape(arrange(plane.labels.shape))
        planes.append(Plane(labels, frozenset(places[a] for a in plane.axes), plane.example))
    shape, span = tuple(arrange(value.shape)), tuple(arrange(value.span))
    return replace(value, shape=shape, span=span, planes=tuple(planes), stretched=frozenset())


def on_axis(vector: Marked, axis: int, ndim: int) -> Marked:
    """A per-channel vector `(C,)` as a value that varies along `axis` alone."""
    return lift(vector, {0: axis}, ndim)


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
    shape, span = _broadcast([v.shape for v in values]), _broadcast([v.span for v in values])
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

    An increment `(B @ A).view(weight.shape)` of a convolution's weight has such labels: one for each column of A.
    """
    found = list(values)
    for (index, value), (_, other) in itertools.permutations(enumerate(values), 2):
        if (met := _slab_of(value, other)) is not None:
            plane, axes = met
            slabs = slide(ledger, replace(value, planes=(plane,)), sorted(plane.axes - axes)).planes
            rest = (p for p in found[index].planes if p is not plane)
            found[index] = replace(found[index], planes=(*rest, *slabs))
    return found


def _slab_of(value: Marked, other: Marked) -> tuple[Plane, frozenset[int]] | None:
    """The plane of `value` that lies along more axes than the one of `other` that it meets, and the latter's axes."""
    if other.free:
        return None
    for plane in value.planes:
        if plane.example or len(plane.axes) == 1 or any(other.span[axis] == 1 for axis in plane.axes):
            continue
        own = [p for p in value.planes if not p.example and p.axes & plane.axes]
        met = [p for p in other.planes if not p.example and p.axes & plane.axes]
        if len(own) == len(met) == 1 and met[0].axes < plane.axes and not _is_row(met[0], plane):
            return plane, met[0].axes
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


def note_summed(ledger: Ledger, value: Marked, operand: int, axes: Sequence[int]) -> None:
    """Record that operand number `operand` of the running call is summed over `axes`."""
    for plane in value.planes:
        if plane.axes & frozenset(axes) and not plane.example:
            ledger.summed.append(Summed(ledger.node, operand, plane, value.constant))


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


def drop_axis(value: Marked, axis: int) -> Marked:
    """Remove an axis that no plane labels."""
    places = {a: a - (a > axis) for a in range(len(value.shape)) if a != axis}
    return lift(value, places, len(value.shape) - 1)


def move(ledger: Ledger, func: Callable[..., Any], value: Marked, *args: Any, **kwargs: Any) -> Marked:
    """Data movement: run the very operator on the labels."""
    try:
        planes = [(plane, func(spread(plane, value.shape), *args, **kwargs)) for plane in value.planes]
    except RuntimeError:
        if 0 not in value.shape:
            raise
        ledger.pin(value.planes, reasons.mixes(ledger.node))  # nothing is there to tell where they would go
        planes = []
    return replace(
        value,
        shape=(),
        planes=tuple(Plane(labels, frozenset(range(labels.ndim)), p.example) for p, labels in planes),
        value=None,
        stretched=frozenset(),
    )


def move_many(ledger: Ledger, func: Callable[..., Any], value: Marked, *args: Any, **kwargs: Any) -> list[Marked]:
    """Data movement with several results (split, unbind)."""
    runs = [(plane, func(spread(plane, value.shape), *args, **kwargs)) for plane in value.planes]
    probe = func(torch.empty(value.shape, device="meta"), *args, **kwargs)
    return [
        replace(
            value,
            shape=(),
            planes=tuple(Plane(out[i], frozenset(range(out[i].ndim)), p.example) for p, out in runs),
            value=None,
            stretched=frozenset(),
        )
        for i in range(len(probe))
    ]


def assemble(
    ledger: Ledger, parts: Sequence[Marked], dim: int, combine: Callable[[list[Tensor]], Tensor], *, whole: bool = False
) -> Marked:
    """Put `parts` together along `dim` (cat, slice_scatter): labels follow along it and couple along other axes.

    `whole`: each part is there as a whole; one that the forward makes may yet take channels (a state's first value).
    """
    keys = list(dict.fromkeys(plane.key for part in parts for plane in part.planes if dim in plane.axes))
    if whole and not keys and len({part.free for part in parts}) > 1:
        keys = [(False, frozenset({dim}))]
    planes = []
    for example, axes in keys:
        labels = []
        for part in parts:
            own = [p for p in part.planes if p.key == (example, axes)]
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


def _unlabelled(ledger: Ledger, part: Marked, axes: frozenset[int]) -> Plane:
    """A part without labels of its own; one that the forward makes takes the size of what it meets."""
    if not part.free or len(axes) > 1:
        return Plane(torch.full([1] * len(part.shape), FIXED, dtype=torch.int64), axes)
    (axis,) = axes
    shape = [-1 if a == axis else 1 for a in range(len(part.shape))]
    return Plane(ledger.fresh(part.shape[axis]).view(shape), axes)


def _one(sizes: Sequence[int], dim: int) -> tuple[int, ...]:
    return tuple(1 if axis == dim else size for axis, size in enumerate(sizes))


def slide(ledger: Ledger, value: Marked, axes: Sequence[int]) -> Marked:
    """A window slides over `axes`: labels that vary there become one channel per remaining coordinate."""
    window = frozenset(axes)
    planes = []
    for plane in value.planes:
        if plane.axes & window:
            flat = plane.labels
            for axis in sorted(plane.axes & window):
                flat = flat.narrow(axis, 0, 1)
            rest = replace(plane, labels=flat, axes=plane.axes - window)
            ledger.couple(plane, rest)
            if rest.axes:
                planes.append(rest)
            else:
                ledger.pin([plane], reasons.mixes(ledger.node))
        else:
            planes.append(plane)
    return replace(value, planes=tuple(planes))


def mix(ledger: Ledger, value: Marked, axes: Sequence[int]) -> Marked:
    """An operator whose results along `axes` depend on each other (softmax, sort): what varies there goes as one."""
    return replace(slide(ledger, value, axes), value=None, free=False)


def slide_outer(ledger: Ledger, value: Marked, axes: frozenset[int]) -> Marked:
    """Before a sum over `axes`: where the last axis of a plane stays, its places must be the same in all rows."""
    outer = [p for p in value.planes if p.axes & axes and max(p.axes) not in axes]
    if not outer:
        return value
    joined = [
        slide(ledger, replace(value, planes=(p,)), sorted(axes)).planes if p in outer else (p,) for p in value.planes
    ]
    return replace(value, planes=tuple(plane for planes in joined for plane in planes))


def opaque(ledger: Ledger, args: Sequence[Any], results: int) -> Any:
    """An operator each of whose numbers depends on all that flows in: it stays, and is followed no further."""
    values = [a for a in args if isinstance(a, Marked)]
    for value in values:
        ledger.pin(value.planes, reasons.mixes(ledger.node))
    result = Marked((), (), constant=all(value.constant for value in values))
    return result if "shape" in ledger.node.meta else [result] * results


def reduce(ledger: Ledger, value: Marked, axes: Sequence[int], keepdim: bool) -> Marked:
    """A sum over `axes`: removed channels add zero, so labels that vary there end here."""
    gone = frozenset(axes)
    value = slide_outer(ledger, value, gone)
    note_summed(ledger, value, 0, axes)
    for plane in value.planes:
        if plane.axes & gone:
            ledger.anchor(plane, plane.axes - gone, "summed")
    planes = [p for p in value.planes if not p.axes & gone]
    if not keepdim:
        left = [a for a in range(len(value.shape)) if a not in gone]
        planes = [
            replace(p, labels=p.labels.squeeze(tuple(gone)), axes=frozenset(left.index(a) for a in p.axes))
            for p in planes
        ]
    return replace(value, planes=tuple(planes), value=None, free=False)
