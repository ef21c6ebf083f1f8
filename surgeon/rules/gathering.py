"""Reading and writing at places told by an index tensor: fine along axes that the index leaves alone.

Along the others where every number is known: from the data it may be another channel each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.layout import lift, move, on_axis
from surgeon.rules.marks import Ledger, Marked, Plane, replace
from surgeon.rules.registry import rule
from surgeon.tracing import MASKS


def _given(index: fx.Node | None) -> bool:
    """Whether an index is neither drawn nor worked out from weights: it holds the same numbers another time."""
    reached = {index}
    pending = [index] if index is not None else []
    while pending:
        node = pending.pop()
        if _changes(node):
            return False
        pending += [source for source in node.all_input_nodes if source not in reached]
        reached.update(node.all_input_nodes)
    return True


def _changes(node: fx.Node) -> bool:
    """Whether a node gives other numbers another time: a weight, or what is drawn."""
    if node.op == "get_attr":
        return bool(node.meta["dtype"].is_floating_point) and not str(node.target).startswith("_constant_")
    return "noise" in node.meta


@rule("index")
def index(ledger: Ledger, x: Marked, indices: Sequence[Marked | None]) -> Marked:
    nodes: Any = ledger.node.args[1]
    return _pick(ledger, x, indices, nodes)


def _pick(ledger: Ledger, x: Marked, indices: Sequence[Marked | None], nodes: Sequence[fx.Node | None]) -> Marked:
    values = [None if i is None else i.value for i in indices]
    axis = 0
    order = _order(ledger, x, indices, nodes)
    for marked, node in zip(indices, nodes, strict=True):
        mask = marked is not None and node is not None and node.meta["dtype"] in MASKS
        after = axis + (len(marked.shape) if marked is not None and mask else 1)
        if marked is not None and not (marked.constant and marked.value is not None and _given(node)):
            # which channel is where is for the data to say: they stay, and nobody behind can tell them apart
            picked = [p for p in x.planes if p.axes & set(range(axis, after))]
            ledger.pin(picked, reasons.mixes(ledger.node))
            x = replace(x, planes=tuple(p for p in x.planes if p not in picked))
        axis = after
    # what a mask picked in the dense run is picked in every other
    values = ledger.dense.meta.get("decision", values)
    if any(v is None and i is not None for v, i in zip(values, indices, strict=False)):
        ledger.pin(x.planes, reasons.mixes(ledger.node))
        return Marked((), ())
    places = [None if v is None else (v if v.numel() else v.new_zeros([s or 1 for s in v.shape])).cpu() for v in values]
    result = move(ledger, torch.ops.aten.index, x, places)
    if order is not None:
        for plane, moved in zip(x.planes, result.planes, strict=True):
            if order.axes <= plane.axes:
                ledger.couple(moved, order)
    return result


def _order(
    ledger: Ledger, x: Marked, indices: Sequence[Marked | None], nodes: Sequence[fx.Node | None]
) -> Plane | None:
    """The labels, along the axis of `x` that it orders, of a tensor of the model: its places go with theirs.

    Where it isn't as simple as that, the tensor stays whole.
    """
    labelled = {axis: marked for axis, marked in enumerate(indices) if marked is not None and marked.planes}
    if not labelled:
        return None
    axis, order = next(iter(labelled.items()))
    node, along = nodes[axis], [plane for plane in x.planes if axis in plane.axes]
    alone = sum(marked is not None for marked in indices) == 1 and len(order.shape) == 1
    if (
        node is not None
        and node.op == "get_attr"
        and node.meta["dtype"] not in MASKS
        and alone
        and [plane.axes for plane in along] == [{axis}]
    ):
        ledger.number_by(node, along[0].labels.flatten())
        return on_axis(order, axis, len(x.shape)).planes[0]
    ledger.pin([plane for marked in labelled.values() for plane in marked.planes], reasons.mixes(ledger.node))
    return None


@rule("index_select")
def index_select(ledger: Ledger, x: Marked, dim: int, chosen: Marked) -> Marked:
    indices: list[Marked | None] = [None] * len(x.shape)
    indices[dim] = chosen
    nodes: list[fx.Node | None] = [None] * len(x.shape)
    nodes[dim] = ledger.node.all_input_nodes[-1]
    return _pick(ledger, x, indices, nodes)


def _hold(ledger: Ledger, value: Marked, axes: Sequence[int]) -> Marked:
    """Pin what varies along `axes`, and leave those axes with a single place."""
    gone = frozenset(axes)
    ledger.pin([p for p in value.planes if p.axes & gone], reasons.mixes(ledger.node))

    def one(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(1 if axis in gone else size for axis, size in enumerate(sizes))

    left = tuple(p for p in value.planes if not p.axes & gone)
    return replace(value, shape=one(value.shape), span=one(value.span), planes=left, value=None)


def _along_others(ledger: Ledger, index: Marked, dim: int) -> Marked:
    """An index by the axes along which it varies: where all its numbers are alike it goes with any channel."""
    numbers = index.value
    held = _hold(ledger, index, [dim])
    if numbers is None:
        return held
    same = [axis for axis in range(numbers.ndim) if not index.covers(axis) and _alike(numbers, axis)]

    def one(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(1 if axis in same else size for axis, size in enumerate(sizes))

    return replace(held, shape=one(held.shape), span=one(held.span))


def _alike(numbers: Tensor, axis: int) -> bool:
    return numbers.stride(axis) == 0 or bool((numbers == numbers.narrow(axis, 0, 1)).all())


def _first(ledger: Ledger, value: Marked, index: Marked, dim: int) -> Marked:
    """An operand that is read or written at as many places as the index has, except along `dim`."""
    stretched = value.stretched | index.stretched
    axes = [a for a in range(len(value.shape)) if a != dim and a not in stretched]
    shorter = [a for a in axes if value.span[a] != index.span[a]]
    return _hold(ledger, value, [dim, *shorter])


@rule("gather")
def gather(ledger: Ledger, x: Marked, dim: int, index: Marked, **_: Any) -> Marked:
    if not x.shape:
        return replace(x, value=None)
    dim %= len(x.shape)
    return replace(algebra.join(ledger, [_first(ledger, x, index, dim), _along_others(ledger, index, dim)]), free=False)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(ledger: Ledger, x: Marked, dim: int, index: Marked, source: Any, *_: Any, **__: Any) -> Marked:
    if not x.shape:
        return replace(x, value=None)
    dim %= len(x.shape)
    parts = [_first(ledger, value, index, dim) for value in (x, source) if isinstance(value, Marked)]
    return replace(algebra.join(ledger, [*parts, _along_others(ledger, index, dim)]), free=False)


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(ledger: Ledger, x: Marked, dim: int, index: Marked, source: Any, *_: Any, **__: Any) -> Marked:
    _hold(ledger, index, range(len(index.shape)))
    if not x.shape:
        return replace(x, value=None)
    dim %= len(x.shape)
    parts = [x] if not isinstance(source, Marked) or not source.shape else [x, source]
    return replace(algebra.join(ledger, [_hold(ledger, value, [dim]) for value in parts]), free=False)


@rule("index_put", "_unsafe_index_put")
def index_put(ledger: Ledger, x: Marked, indices: Sequence[Marked | None], values: Marked, *_: Any) -> Marked:
    """Axes in front of the indexed ones and behind them keep their channels."""
    nodes: Any = ledger.node.args[1]
    masks = [node is not None and node.meta["dtype"] in MASKS for node in nodes]
    for index in indices:
        if index is not None:
            _hold(ledger, index, range(len(index.shape)))
    indexed, places = _indexed(indices, masks)
    target = _axes_behind(len(x.shape), indexed, places)
    offset = len(x.shape) - len(indexed) + places - len(values.shape)
    inside = {a: target[a + offset] for a in range(len(values.shape)) if a + offset in target}
    written = _hold(ledger, values, [a for a in range(len(values.shape)) if a not in inside])
    joint = algebra.join(ledger, [_hold(ledger, x, indexed), lift(written, inside, len(x.shape))])
    return replace(joint, free=False)


def _indexed(indices: Sequence[Marked | None], masks: Sequence[bool]) -> tuple[list[int], int]:
    """The axes that are indexed, a mask's several ones among them, and how many axes stand in their place."""
    axis, places = 0, 1
    indexed: list[int] = []
    for index, mask in zip(indices, masks, strict=True):
        width = len(index.shape) if index is not None and mask else 1
        if index is not None:
            indexed += range(axis, axis + width)
            places = max(places, 1 if mask else len(index.shape))
        axis += width
    return indexed, places


def _axes_behind(ndim: int, indexed: Sequence[int], places: int) -> dict[int, int]:
    """Axis of the tensor for each axis of what an index picks; indices that lie apart put their places in front."""
    together = list(indexed) == list(range(indexed[0], indexed[-1] + 1))
    front = indexed[0] if together else 0
    picked_axes = [a for a in range(ndim - len(indexed) + places) if not front <= a < front + places]
    return dict(zip(picked_axes, [a for a in range(ndim) if a not in indexed], strict=True))


@rule("nonzero", "nonzero_static", "masked_select", "masked_scatter", "take", "put", "_unique2", "unique_dim",
      "unique_consecutive", "bincount", "repeat_interleave")  # fmt: skip
def picked(ledger: Ledger, *args: Any, **_: Any) -> Any:
    """How many places there are, or which, is told by the numbers."""
    return layout.opaque(ledger, args, 3)


@rule("bucketize")
def bucketize(ledger: Ledger, x: Any, boundaries: Marked, **_: Any) -> Marked:
    _hold(ledger, boundaries, [0])
    return replace(x, value=None) if isinstance(x, Marked) else Marked((), (), constant=boundaries.constant)


@rule("searchsorted")
def searchsorted(ledger: Ledger, boundaries: Marked, x: Any, **_: Any) -> Marked:
    last = len(boundaries.shape) - 1
    rows = _hold(ledger, boundaries, [last])
    if not isinstance(x, Marked):
        return Marked((), (), constant=boundaries.constant)
    return replace(x, value=None) if last == 0 else algebra.join(ledger, [x, rows])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(ledger: Ledger, weight: Marked, *others: Any, **_: Any) -> list[Marked]:
    """Sums or means of rows that are picked by index; the other results are for the backward pass."""
    rows = _hold(ledger, weight, [0])
    for value in others:
        if isinstance(value, Marked):
            ledger.pin(value.planes, reasons.mixes(ledger.node))
    ledger.produced += [(p.labels, False) for p in rows.planes if not p.example]
    empty = Marked((), ())
    return [replace(rows, free=False), empty, empty, empty]
