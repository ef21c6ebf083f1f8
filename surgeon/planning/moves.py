"""Moves: the order in which channels would go. A bundle is a staircase of moves; a plan takes the first few."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from surgeon.channels import Bundle, ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria import Scores


class Move(NamedTuple):
    """One step down the staircase of a bundle.

    Attributes
    ----------
    bundle:
        Index of the bundle.
    level:
        Steps taken after this move.
    removed:
        Channels that go with it.
    filters, channels:
        Convolution filters and channels that it removes.
    score:
        Mean score of the removed channels.
    """

    bundle: int
    level: int
    removed: Ints
    filters: int
    channels: int
    score: float


#: Widths that a bundle can't have: name of its first group -> levels.
Blocked = dict[str, set[int]]


@dataclass(frozen=True)
class Steps:
    """Where a staircase may stop: widths that `round_to` divides, at least `min_channels`, none that is blocked."""

    round_to: int
    min_channels: int
    blocked: Blocked


def staircases(graph: ChannelGraph, scores: Scores, steps: Steps) -> list[list[Move]]:
    """The moves of every bundle, in the order in which they must be taken."""
    return [
        _staircase(index, bundle, scores, _stops(graph, bundle, steps)) for index, bundle in enumerate(graph.bundles)
    ]


def _stops(graph: ChannelGraph, bundle: Bundle, steps: Steps) -> Ints:
    """Levels at which every layer that makes the bundle's channels has a width that is wanted and possible."""
    levels = np.arange(1, bundle.steps)
    blocked = steps.blocked.get(bundle.groups[0].name)
    if blocked:
        levels = levels[~np.isin(levels, list(blocked))]
    if bundle.takes is not None:
        sizes = np.array([group.size for group in bundle.groups])
        levels = levels[((sizes - bundle.gone(levels)) >= steps.min_channels).all(axis=1)]
        if steps.round_to == 1:
            return levels
    for width, taken in _lead_widths(graph, bundle):
        left = width - taken * levels // bundle.steps
        roomy = bundle.takes is not None or left >= steps.min_channels
        levels = levels[roomy & (left % steps.round_to == 0)]
    return levels


def _lead_widths(graph: ChannelGraph, bundle: Bundle) -> list[tuple[int, int]]:
    """Of each axis that makes the bundle's channels: its width, and what all the bundle's steps take from it."""
    structure = graph.structure
    space = structure.labels.space
    numbers = np.concatenate([g.numbers for g in bundle.groups])
    labels = np.flatnonzero(np.isin(structure.channel, numbers) & structure.produced)
    places = space.place_of(labels)
    found = []
    for place in np.unique(places):
        own = structure.channel[labels[places == place]]
        taken = len(own)
        if bundle.takes is not None:
            pairs = zip(bundle.groups, bundle.takes, strict=True)
            taken = bundle.steps * sum(take * int((own == g.numbers[0]).sum()) for g, take in pairs)
        found.append((space.sizes[place], taken))
    return found


def _staircase(index: int, bundle: Bundle, scores: Scores, stops: Ints) -> list[Move]:
    ranked = [group.numbers[np.argsort(scores.normalised[group.numbers], kind="stable")] for group in bundle.groups]
    counts = np.concatenate([np.zeros((1, len(ranked)), dtype=np.int64), bundle.gone(stops)])
    channels = np.diff(counts.sum(axis=1))
    worth = np.zeros(len(stops))
    for order, count in zip(ranked, counts.T, strict=True):
        worth += np.diff(np.concatenate([[0.0], np.cumsum(scores.normalised[order])])[count])
    scored = worth / np.maximum(channels, 1)
    filters = np.diff(np.concatenate([[0], _filters(bundle, stops, counts[1:])]))
    columns = (stops.tolist(), _removed(ranked, counts), filters.tolist(), channels.tolist(), scored.tolist())
    return [Move(index, *row) for row in zip(*columns, strict=True)]


def _removed(ranked: Sequence[Ints], counts: Ints) -> Iterator[Ints]:
    """Channels that go at each step."""
    for before, after in itertools.pairwise(counts.tolist()):
        gone = [order[a:b] for order, a, b in zip(ranked, before, after, strict=True)]
        yield gone[0] if len(gone) == 1 else np.concatenate(gone)


def _filters(bundle: Bundle, stops: Ints, counts: Ints) -> Ints:
    """Convolution filters that are gone at each stop; shares of a width are whole on every axis."""
    filters = np.array([group.filters for group in bundle.groups])
    if bundle.takes is None:
        return int(filters @ [group.size for group in bundle.groups]) * stops // bundle.steps
    found: Ints = counts @ filters
    return found


def in_order(stairs: Sequence[Sequence[Move]]) -> Iterator[Move]:
    """All moves, the least useful first, each bundle's in its own order."""
    heap = [(moves[0].score, index) for index, moves in enumerate(stairs) if moves]
    heapq.heapify(heap)
    position = [0] * len(stairs)
    while heap:
        _, index = heapq.heappop(heap)
        yield stairs[index][position[index]]
        position[index] += 1
        if position[index] < len(stairs[index]):
            heapq.heappush(heap, (stairs[index][position[index]].score, index))
