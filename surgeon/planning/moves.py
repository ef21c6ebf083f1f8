"""Moves: the order in which channels would go. A bundle is a staircase of moves; a plan takes the first few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgeon.channels import Bundle, ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria import Scores
from surgeon.criteria.gradients import Floats


@dataclass(frozen=True)
class Staircase:
    """The moves of one bundle in their order; a plan takes the first few. One entry of each array for each move.

    Attributes
    ----------
    levels:
        Steps of the bundle that are taken after the move.
    filters, channels:
        Convolution filters and channels that it removes.
    scores:
        Mean score of what it removes.
    ranked:
        The channels of each group, the least useful first.
    gone:
        How many of each group are gone after the move: a row for each move, a column for each group.
    """

    levels: Ints
    filters: Ints
    channels: Ints
    scores: Floats
    ranked: tuple[Ints, ...]
    gone: Ints

    def __len__(self) -> int:
        return len(self.levels)

    def removed(self, moves: int) -> list[Ints]:
        """The channels of each group that are gone after so many moves."""
        counts = self.gone[moves - 1].tolist() if moves else [0] * len(self.ranked)
        return [order[:count] for order, count in zip(self.ranked, counts, strict=True)]


@dataclass(frozen=True)
class Moves:
    """Moves of all bundles in one order; arrays of equal length.

    Attributes
    ----------
    bundles:
        Whose move it is.
    counts:
        How many of its bundle's moves are taken with it.
    levels, filters, channels:
        As in :class:`Staircase`.
    """

    bundles: Ints
    counts: Ints
    levels: Ints
    filters: Ints
    channels: Ints

    def __len__(self) -> int:
        return len(self.bundles)

    def arranged(self, order: Ints) -> Moves:
        """The same moves in another order."""
        columns = (self.bundles, self.counts, self.levels, self.filters, self.channels)
        return Moves(*(column[order] for column in columns))

    def first(self, count: int) -> Taken:
        """What is taken with the first `count` moves."""
        return dict(zip(self.bundles[:count].tolist(), self.counts[:count].tolist(), strict=True))


#: Index of a bundle -> how many of its moves are taken.
Taken = dict[int, int]


#: Widths that a bundle can't have: name of its first group -> levels.
Blocked = dict[str, set[int]]


@dataclass(frozen=True)
class Steps:
    """Where a staircase may stop: widths that `round_to` divides, at least `min_channels`, none that is blocked.

    `own`: what divides the number of channels of single groups, by name, where a kernel asks for it.
    """

    round_to: int
    min_channels: int
    blocked: Blocked
    own: Mapping[str, int] = field(default_factory=dict)


def staircases(graph: ChannelGraph, scores: Scores, steps: Steps) -> list[Staircase]:
    """The moves of every bundle, in the order in which they must be taken."""
    return [_staircase(bundle, scores, _stops(graph, bundle, steps)) for bundle in graph.bundles]


def _stops(graph: ChannelGraph, bundle: Bundle, steps: Steps) -> Ints:
    """Levels at which every layer that makes the bundle's channels has a width that is wanted and possible."""
    levels = np.arange(1, bundle.steps)
    for index, group in enumerate(bundle.groups):
        if group.name in steps.own:
            levels = levels[(group.size - bundle.gone(levels)[:, index]) % steps.own[group.name] == 0]
    blocked = steps.blocked.get(bundle.groups[0].name)
    if blocked:
        levels = levels[~np.isin(levels, list(blocked))]
    if bundle.exact:
        sizes = np.array([group.size for group in bundle.groups])
        levels = levels[((sizes - bundle.gone(levels)) >= steps.min_channels).all(axis=1)]
        if steps.round_to == 1:
            return levels
    for width, places in _lead_widths(graph, bundle):
        left = width - _places_gone(bundle, places, levels)
        roomy = bundle.exact or left >= steps.min_channels
        levels = levels[roomy & (left % steps.round_to == 0)]
    return levels


def _lead_widths(graph: ChannelGraph, bundle: Bundle) -> list[tuple[int, Ints]]:
    """Of each axis that makes the bundle's channels: its width, and the places there of a channel of each group."""
    structure = graph.structure
    space = structure.labels.space
    numbers = np.concatenate([g.numbers for g in bundle.groups])
    labels = np.flatnonzero(np.isin(structure.channel, numbers) & structure.produced)
    places = space.place_of(labels)
    found = []
    for place in np.unique(places):
        own = structure.channel[labels[places == place]]
        each = np.array([int((own == group.numbers[0]).sum()) for group in bundle.groups])
        found.append((space.sizes[place], each))
    return found


def _places_gone(bundle: Bundle, places: Ints, levels: Ints) -> Ints:
    """Places that an axis loses (`places` of a channel of each group); shares of a width are whole on every axis."""
    if bundle.exact:
        exactly: Ints = bundle.gone(levels) @ places
        return exactly
    return int(places @ [group.size for group in bundle.groups]) * levels // bundle.steps


def _staircase(bundle: Bundle, scores: Scores, stops: Ints) -> Staircase:
    values = [scores.normalised[group.numbers] for group in bundle.groups]
    order = [np.argsort(value, kind="stable") for value in values]
    gone = bundle.gone(stops)
    counts = np.concatenate([np.zeros((1, len(order)), dtype=np.int64), gone])
    channels = np.diff(counts.sum(axis=1))
    worth = np.zeros(len(stops))
    for value, ranks, count in zip(values, order, counts.T, strict=True):
        worth += np.diff(np.concatenate([[0.0], np.cumsum(value[ranks])])[count])
    filters = np.diff(np.concatenate([[0], _filters(bundle, stops)]))
    ranked = tuple(group.numbers[ranks] for group, ranks in zip(bundle.groups, order, strict=True))
    return Staircase(stops, filters, channels, worth / np.maximum(channels, 1), ranked, gone)


def _filters(bundle: Bundle, stops: Ints) -> Ints:
    """Convolution filters that are gone at each stop."""
    return _places_gone(bundle, np.array([group.filters for group in bundle.groups]), stops)


def in_order(stairs: Sequence[Staircase]) -> Moves:
    """All moves, the least useful first, each bundle's in its own order."""
    bundles = np.repeat(np.arange(len(stairs)), [len(stair) for stair in stairs])
    counts = _joined([np.arange(1, len(stair) + 1) for stair in stairs])
    columns = [_joined([getattr(stair, name) for stair in stairs]) for name in ("levels", "filters", "channels")]
    # a move waits for those before it in its bundle: it is as late as the latest of them
    due = _joined([np.maximum.accumulate(stair.scores) for stair in stairs])
    return Moves(bundles, counts, *columns).arranged(np.lexsort((counts, bundles, due)))


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
