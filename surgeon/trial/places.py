"""Which dense place stands at each place of a small value, in the order in which the small one has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgeon.channels import Structure
from surgeon.channels.structure import Ints, rows
from surgeon.rules import Marked, Plane

#: Axes of a value, and for each small place along them (flat) the dense place (flat); the small sizes of the axes.
Places = list[tuple[list[int], Ints, list[int]]]


def find_places(dense: Structure, small: Structure, channel: Ints, theirs: Marked, ours: Marked) -> Places | None:
    """Match the places of a dense and a small value by their channels; None if they can't be the same.

    Parameters
    ----------
    dense, small:
        The channels of both recordings.
    channel:
        Dense channel of each small one.
    theirs, ours:
        The marks of the dense and of the small value.
    """
    pairs = list(zip(theirs.planes, ours.planes, strict=True))
    found: Places = []
    for axes in dict.fromkeys(plane.axes for plane in theirs.planes):
        along = [(d, s) for d, s in pairs if d.axes == axes]
        columns = [_columns(dense, small, channel, d, s) for d, s in along]
        index = _in_order(dense, channel, columns)
        if index is None:
            index = _match(*_keys(columns))
        if index is None:
            return None
        ordered = sorted(axes)
        found.append((ordered, index, [along[0][1].labels.shape[a] for a in ordered]))
    return found


def _columns(dense: Structure, small: Structure, channel: Ints, theirs: Plane, ours: Plane) -> tuple[Ints, Ints]:
    """The dense channel at each dense and at each small place."""
    slots = small.of(ours.labels)
    return dense.of(theirs.labels), np.where(slots >= 0, channel[slots], -1)


def _in_order(dense: Structure, channel: Ints, columns: Sequence[tuple[Ints, Ints]]) -> Ints | None:
    """The dense places whose channels are kept, if these are the small ones in their order, as nearly always."""
    stays = np.zeros(dense.count + 1, dtype=bool)
    stays[channel] = stays[-1] = True  # the last entry is for places without a channel
    kept = np.flatnonzero(np.logical_and.reduce([stays[theirs] for theirs, _ in columns]))
    same = all(len(kept) == len(ours) and bool((theirs[kept] == ours).all()) for theirs, ours in columns)
    return kept if same else None


def _keys(columns: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """One number per dense and per small place: equal where all planes have the same channels."""
    if len(columns) == 1:
        return columns[0]
    numbers = rows(np.concatenate([np.stack(side, axis=1) for side in zip(*columns, strict=True)]))
    size = len(columns[0][0])
    return numbers[:size], numbers[size:]


def _match(theirs: Ints, ours: Ints) -> Ints | None:
    """For each of our keys the place of the same key among theirs, equal ones in order."""
    kept = np.flatnonzero(np.isin(theirs, ours))
    kept = kept[np.argsort(theirs[kept], kind="stable")]
    order = np.argsort(ours, kind="stable")
    if len(kept) != len(order) or (theirs[kept] != ours[order]).any():
        return None
    index = np.empty(len(order), dtype=np.int64)
    index[order] = kept
    return index
