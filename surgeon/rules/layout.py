"""What becomes of the labels of one value: placed on other axes, moved, merged along a window, summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.rules import reasons
from surgeon.rules.marks import Ledger, Marked, Plane, Summed, compact, replace, spread
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
        stretched=_still_stretched(value, func, args, kwargs),
    )


def _still_stretched(value: Marked, func: Callable[..., Any], args: Any, kwargs: Any) -> frozenset[int]:
    """The axes of what `func` makes of `value` along which one place is repeated: they hold nothing but such axes."""
    if not value.stretched or 0 in value.shape:
        return frozenset()
    own = [1 if axis in value.stretched else size for axis, size in enumerate(value.shape)]
    moved: Tensor = func(torch.arange(math.prod(own)).view(own).expand(value.shape), *args, **kwargs)
    _, varied = compact(moved)
    return frozenset(axis for axis, size in enumerate(moved.shape) if size > 1 and axis not in varied)


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


def slide_outer(ledger: Ledger, value: Marked, axes: frozenset[int]) -> Marked:
    """Before a sum over `axes`: where the last axis of a plane stays, its places must be the same in all rows."""
    outer = [p for p in value.planes if p.axes & axes and max(p.axes) not in axes]
    if not outer:
        return value
    joined = [
        slide(ledger, replace(value, planes=(p,)), sorted(axes)).planes if p in outer else (p,) for p in value.planes
    ]
    return replace(value, planes=tuple(plane for planes in joined for plane in planes))


def mix(ledger: Ledger, value: Marked, axes: Sequence[int]) -> Marked:
    """An operator whose results along `axes` depend on each other (softmax, sort): what varies there goes as one."""
    return replace(slide(ledger, value, axes), value=None, free=False)


def note_summed(ledger: Ledger, value: Marked, operand: int, axes: Sequence[int]) -> None:
    """Record that operand number `operand` of the running call is summed over `axes`."""
    for plane in value.planes:
        if plane.axes & frozenset(axes) and not plane.example:
            ledger.summed.append(Summed(ledger.node, operand, plane, value.constant))


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


def opaque(ledger: Ledger, args: Sequence[Any], results: int) -> Any:
    """An operator each of whose numbers depends on all that flows in: it stays, and is followed no further."""
    values = [a for a in args if isinstance(a, Marked)]
    for value in values:
        ledger.pin(value.planes, reasons.mixes(ledger.node))
    result = Marked((), (), constant=all(value.constant for value in values))
    return result if "shape" in ledger.node.meta else [result] * results
