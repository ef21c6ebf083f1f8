"""Data movement: the very operator runs on the labels. Only what makes places or reads indices needs a rule."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.layout import lift, move
from surgeon.rules.marks import Ledger, Marked, compact, replace
from surgeon.rules.registry import rule


def reshape(labels: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    """The labels in another shape. Where they don't vary nothing is copied: a picture has far more places than axes."""
    sizes = list(torch.empty(labels.shape, device="meta").view([s or 1 for s in size]).shape)
    narrow, wanted = labels, list(sizes)
    for old, new in _runs(labels.shape, sizes):
        if all(labels.shape[axis] == 1 or labels.stride(axis) == 0 for axis in old):
            for axis in old:
                narrow = narrow.narrow(axis, 0, 1)
            wanted[new.start : new.stop] = [1] * len(new)
    return narrow.reshape(wanted).expand(sizes)


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of axes of two shapes that hold equally many places: each is reshaped on its own."""
    ours, theirs = (list(itertools.accumulate(shape, operator.mul, initial=1)) for shape in (old, new))
    i = j = 0
    for places in sorted(set(ours) & set(theirs)):
        first, other = i, j
        i, j = (bisect.bisect(counts, places) - 1 for counts in (ours, theirs))  # with all axes of size 1 that follow
        yield range(first, i), range(other, j)


@rule("view", "_unsafe_view", "_reshape_alias")
def view(ledger: Ledger, value: Marked, size: Sequence[int], *_: Any) -> Marked:
    result = move(ledger, reshape, value, size)
    for old, new in zip(value.planes, result.planes, strict=True):
        labels, axes = compact(new.labels)
        if len(axes) > len(old.axes) and not new.example:
            first = min(axes)
            ledger.tie([labels.select(first, i) for i in range(labels.shape[first])])
    return result


@rule("view.dtype")
def view_as_type(ledger: Ledger, value: Marked, *_: Any) -> Marked:
    """The same bits as another type: one of the same width makes one number of each, any other several, or a part."""
    source = ledger.dense.all_input_nodes[0]
    if ledger.dense.meta["dtype"].itemsize == source.meta["dtype"].itemsize:
        return replace(value, value=None)
    ledger.pin(value.planes, reasons.mixes(ledger.node))
    return Marked((), (), constant=value.constant)


def _mover(name: str) -> None:
    packet = getattr(torch.ops.aten, name)

    def run(ledger: Ledger, value: Marked, *args: Any, **kwargs: Any) -> Marked:
        return move(ledger, packet, value, *args, **kwargs)

    rule(name)(run)


@rule("expand")
def expand(ledger: Ledger, value: Marked, size: Sequence[int], **_: Any) -> Marked:
    offset = len(size) - len(value.shape)
    own = [1] * offset + list(value.span)
    stretched = frozenset(axis for axis in range(len(size)) if own[axis] == 1)
    result = move(ledger, Tensor.expand, value, [s or 1 for s in size])
    return replace(result, stretched=stretched)


@rule("repeat")
def repeat(ledger: Ledger, value: Marked, repeats: Sequence[int]) -> Marked:
    offset = len(repeats) - len(value.shape)
    result = move(ledger, Tensor.repeat, value, repeats)
    # as in `expand`, a single place that is repeated stays one; copies of several places follow each other
    single = {axis for axis, size in enumerate([1] * offset + list(value.span)) if size == 1}
    return replace(result, stretched=frozenset(axis for axis in single if repeats[axis] > 1) | result.stretched)


for _name in """permute transpose t squeeze unsqueeze flip roll select rot90
                pixel_unshuffle unfold""".split():
    _mover(_name)


@rule("pixel_shuffle")
def pixel_shuffle(ledger: Ledger, x: Marked, factor: int) -> Marked:
    """Filters whose results lie side by side in the picture are one channel: no layer tells its places apart."""
    picture = [len(x.shape) - 2, len(x.shape) - 1]
    moved = move(ledger, torch.ops.aten.pixel_shuffle, x, factor)
    told = [bool(plane.axes & set(picture)) or plane.example for plane in x.planes]
    rest = tuple(plane for plane, apart in zip(moved.planes, told, strict=True) if apart)
    filters = tuple(plane for plane, apart in zip(moved.planes, told, strict=True) if not apart)
    return replace(moved, planes=(*rest, *layout.slide(ledger, replace(moved, planes=filters), picture).planes))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ledger: Ledger, value: Marked, groups: int) -> Marked:
    for plane in value.planes:
        if 1 in plane.axes and not plane.example:
            ledger.tie(plane.labels.chunk(groups, 1))
    return move(ledger, torch.ops.aten.channel_shuffle, value, groups)


@rule("slice")
def slice_(
    ledger: Ledger, x: Marked, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Marked:
    size = x.shape[dim]
    first, last, _ = slice(start, end, step).indices(size)
    source = ledger.node.args[0]
    moved = move(ledger, torch.ops.aten.slice, x, dim, start, end, step)
    for plane in x.planes:
        if dim % len(x.shape) in plane.axes and step == 1 and not plane.example and last - first < size:
            part = plane.labels.narrow(dim, first, last - first)
            ledger.keep_part(part)
            seen = ledger.slices.setdefault((source, dim % len(x.shape)), [])  # type: ignore[arg-type]
            seen.append((first, last, part, ledger.node))
    return moved


@rule("split", "split_with_sizes", "unbind", "unsafe_split")
def split(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> list[Marked]:
    packet = ledger.node.target.overloadpacket  # type: ignore[union-attr]
    parts = layout.move_many(ledger, packet, x, *args, **kwargs)
    for index, plane in enumerate(x.planes):
        labels = [part.planes[index].labels for part in parts]
        sized = len({tuple(part.shape) for part in labels}) == 1
        # picking single places (unbind) is no tie: which place is which is fixed then
        compacted = [compact(part) for part in labels]
        if plane.example or len(parts) < 2 or torch.equal(compacted[0][0], compacted[-1][0]):
            continue
        if sized and compacted[0][1]:
            ledger.tie([part for part, _ in compacted])
        for number, (part, _) in enumerate(compacted):
            ledger.keep_part(part, number)
    return parts


@rule("cat")
def cat(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    # torch skips empty one-dimensional tensors here, a leftover from before zero-size axes
    parts = [t for t in tensors if t.shape != (0,)] or list(tensors)
    dim %= len(parts[0].shape)
    full = [number for number, part in enumerate(parts) if part.shape[dim]] or range(len(parts))
    # a part without places along `dim` (what rotary embeddings of whole heads leave out) gives none there
    joint = algebra.assemble(
        ledger, parts, dim, lambda labels: torch.cat([labels[number] for number in full], dim), whole=True
    )
    same = len(set(ledger.dense.args[0])) == 1 and parts[0].span[dim] == 1  # type: ignore[arg-type]  # a list of nodes
    return replace(joint, stretched=parts[0].stretched | {dim}) if same and not joint.covers(dim) else joint


@rule("stack")
def stack(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    ndim = len(tensors[0].shape) + 1
    dim %= ndim
    places = {a: a + (a >= dim) for a in range(ndim - 1)}
    return algebra.assemble(ledger, [lift(t, places, ndim) for t in tensors], dim, lambda parts: torch.cat(parts, dim))


@rule("_pack_padded_sequence")
def pack(ledger: Ledger, x: Marked, *_: Any) -> list[Marked]:
    """Examples and steps, the first two axes, become one axis; the second result says how many go on at each step."""
    flat = replace(
        x,
        shape=(1, *x.shape[2:]),
        span=(1, *x.span[2:]),
        planes=tuple(
            replace(p, labels=p.labels.flatten(0, 1), axes=frozenset(axis - 1 for axis in p.axes))
            for p in layout.slide(ledger, x, [0, 1]).planes
        ),
        value=None,
        free=False,
    )
    return [flat, Marked((), ())]


@rule("constant_pad_nd")
def constant_pad_nd(ledger: Ledger, x: Marked, pad: Sequence[int], value: Any = 0) -> Marked:
    # Only padding along a labelled axis makes places without a channel; elsewhere the border belongs to its channel.
    ndim = len(x.shape)
    planes = []
    for plane in x.planes:
        amounts = [0] * (2 * ndim)
        for axis in plane.axes:
            position = 2 * (ndim - 1 - axis)
            amounts[position : position + 2] = list(pad[position : position + 2]) or [0, 0]
        labels = torch.constant_pad_nd(plane.labels, amounts, 0)
        planes.append(replace(plane, labels=labels))
    return replace(x, planes=tuple(planes), free=False)


@rule("embedding")
def embedding(ledger: Ledger, weight: Marked, indices: Marked, *_: Any, **__: Any) -> Marked:
    rows = [p for p in weight.planes if 0 in p.axes]
    ledger.pin(rows, reasons.mixes(ledger.node))
    ndim = len(indices.shape) + 1
    kept = replace(weight, planes=tuple(p for p in weight.planes if 0 not in p.axes))
    ledger.produced += [(p.labels, False) for p in kept.planes if not p.example]
    places = {a: a for a in range(ndim - 1)}
    looked_up = lift(replace(kept, shape=(1, *kept.shape[1:]), span=(1, *kept.span[1:])), {0: 0, 1: ndim - 1}, ndim)
    if ndim == 1:
        return looked_up
    return algebra.join(ledger, [looked_up, replace(lift(indices, places, ndim), value=None)])
