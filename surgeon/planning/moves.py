"""Moves: the order in which channels would go. A bundle is a staircase of moves; a plan takes the first few."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from surgeon.channels import Bundle, ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria import Scores


@dataclass(frozen=True)
class Move:
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


def _stops(graph: ChannelGraph, bundle: Bundle, steps: Steps) -> list[int]:
    """Levels at which every layer that makes the bundle's channels has a width that is wanted and possible."""
    blocked = steps.blocked.get(bundle.groups[0].name, ())
    levels = [level for level in range(1, bundle.steps) if level not in blocked]
    if bundle.takes is not None:
        levels = [n for n in levels if _fewest(bundle, n) >= steps.min_channels]
        if steps.round_to == 1:
            return levels
    widths = _lead_widths(graph, bundle)

    def fits(level: int) -> bool:
        left = [width - step * level // bundle.steps for width, step in widths]
        roomy = bundle.takes is not None or min(left) >= steps.min_channels
        return roomy and all(w % steps.round_to == 0 for w in left)

    return [level for level in levels if fits(level)]


def _fewest(bundle: Bundle, level: int) -> int:
    return min(group.size - gone for group, gone in zip(bundle.groups, bundle.gone(level), strict=True))


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


def _staircase(index: int, bundle: Bundle, scores: Scores, stops: Sequence[int]) -> list[Move]:
    ranked = [group.numbers[np.argsort(scores.normalised[group.numbers], kind="stable")] for group in bundle.groups]
    worth = [np.concatenate([[0.0], np.cumsum(scores.normalised[order])]) for order in ranked]
    moves: list[Move] = []
    taken = (0,) * len(ranked)
    for level in stops:
        counts = bundle.gone(level)
        gone = [order[a:b] for order, a, b in zip(ranked, taken, counts, strict=True)]
        removed = gone[0] if len(gone) == 1 else np.concatenate(gone)
        filters = _filters(bundle, level) - _filters(bundle, moves[-1].level if moves else 0)
        total = sum(float(w[b] - w[a]) for w, a, b in zip(worth, taken, counts, strict=True))
        moves.append(Move(index, level, removed, filters, len(removed), total / max(len(removed), 1)))
        taken = counts
    return moves


def _filters(bundle: Bundle, level: int) -> int:
    """Convolution filters that are gone after `level` steps; shares of a width are whole on every axis."""
    if bundle.takes is None:
        return sum(group.filters * group.size for group in bundle.groups) * level // bundle.steps
    return sum(group.filters * gone for group, gone in zip(bundle.groups, bundle.gone(level), strict=True))


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
