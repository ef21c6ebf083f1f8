"""Which dense place stands at each place of a small value, in the order in which the small one has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.channels import Structure
from surgeon.channels.structure import Flags, Ints, flat, rows
from surgeon.rules import Marked, Plane

#: Axes of a value, and for each small place along them (flat) the dense place (flat); the small sizes of the axes.
Places = list[tuple[list[int], Ints, list[int]]]


@dataclass(frozen=True)
class Matching:
    """Which dense channel each label of a small recording stands for.

    Attributes
    ----------
    dense:
        The dense channels.
    arrived:
        Dense channel of each label of the small recording, -1 of :data:`FIXED`.
    stays:
        Flags of the dense channels that are kept, and True behind them, for places without a channel.
    """

    dense: Structure
    arrived: Ints
    stays: Flags

    @classmethod
    def of(cls, dense: Structure, small: Structure, channel: Ints, kept: Flags) -> Matching:
        """By the dense channel of each small one, and which of all dense ones these are."""
        return cls(dense, np.append(channel, -1)[small.channel], np.append(kept, True))

    def places(self, theirs: Marked, ours: Marked) -> Places | None:
        """Match the places of a dense and a small value by their channels; None if they can't be the same.

        Parameters
        ----------
        theirs, ours:
            The marks of the dense and of the small value.
        """
        pairs = list(zip(theirs.planes, ours.planes, strict=True))
        found: Places = []
        for axes in dict.fromkeys(plane.axes for plane in theirs.planes):
            if any(axes < plane.axes for plane in theirs.planes):
                continue  # told along with those: of a row of places others stay than of the next
            lead = next(pair for pair in pairs if pair[0].axes == axes)
            columns = [self._column(pair, lead) for pair in pairs if pair[0].axes <= axes]
            index = self._in_order(columns)
            if index is None:
                index = _match(*_keys(columns))
            if index is None:
                return None
            ordered = sorted(axes)
            found.append((ordered, index, [lead[1].labels.shape[a] for a in ordered]))
        return found

    def _column(self, pair: tuple[Plane, Plane], lead: tuple[Plane, Plane]) -> tuple[Ints, Ints]:
        """The channels of a dense plane and of the small one at all places of `lead`, which have all their axes."""
        theirs, ours = (own.labels.expand(of.labels.shape) for own, of in zip(pair, lead, strict=True))
        return self.dense.of(theirs), self.arrived[flat(ours)]

    def _in_order(self, columns: Sequence[tuple[Ints, Ints]]) -> Ints | None:
        """The dense places whose channels are kept, if these are the small ones in their order, as nearly always."""
        if all(np.array_equal(theirs, ours) for theirs, ours in columns):
            return np.arange(len(columns[0][0]))  # all of them
        kept = np.flatnonzero(np.logical_and.reduce([self.stays[theirs] for theirs, _ in columns]))
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
