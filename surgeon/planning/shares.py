"""Bundles that are cut by shares: a trial says how many channels each of their groups has at a width."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from surgeon.channels import Bundle, ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.criteria import Scores
from surgeon.planning.moves import Blocked
from surgeon.trial import Counts, Misfit, Strangers, counts_at, widths_of


class NoSuchWidthError(Exception):
    """A bundle that is cut by shares can't have this width: its channels would flow another way."""


class Shares:
    """What trials have said of such bundles so far.

    Attributes
    ----------
    blocked:
        Widths that a bundle can't have.
    """

    def __init__(self) -> None:
        self.blocked: Blocked = {}
        self._known: dict[tuple[tuple[str, ...], int], Counts | Strangers] = {}

    def with_exact_counts(self, graph: ChannelGraph, scores: Scores, levels: Mapping[int, int], kept: Flags) -> Flags:
        """`kept` with as many channels in each group as a trial finds there (`levels`: the steps that bundles lose).

        Raises
        ------
        NoSuchWidthError
            Where a bundle can't have the width; it is blocked from then on.
        Misfit
            Where the forward doesn't follow for another reason.
        """
        levels = {index: level for index, level in levels.items() if not graph.bundles[index].exact}
        found = {index: self._counts(graph, graph.bundles[index], level) for index, level in levels.items()}
        known = {index: counts for index, counts in found.items() if isinstance(counts, dict)}
        for index in found.keys() - known.keys():
            self._block(graph, graph.bundles[index], levels[index])
        if len(known) < len(found):
            raise NoSuchWidthError
        kept = kept.copy()
        for index, counts in known.items():
            for group in graph.bundles[index].groups:
                ranked = group.numbers[np.argsort(scores.normalised[group.numbers], kind="stable")]
                kept[group.numbers] = True
                kept[ranked[: group.size - counts[group.name]]] = False
        return kept

    def _counts(self, graph: ChannelGraph, bundle: Bundle, level: int) -> Counts | Strangers:
        """Channels of each group when the bundle alone has lost `level` of its steps; or why it can't."""
        key = (tuple(group.name for group in bundle.groups), level)
        if key not in self._known:
            self._known[key] = _try(graph, bundle, level)
        return self._known[key]

    def _block(self, graph: ChannelGraph, bundle: Bundle, level: int) -> None:
        """Block a level that can't be, and those around it that can't for the same reason."""
        reason = self._counts(graph, bundle, level)

        def refused(other: int) -> bool:
            try:
                return 0 < other < bundle.steps and self._counts(graph, bundle, other) == reason
            except Misfit:  # whatever it is there, nobody has asked for this width yet
                return False

        self.blocked.setdefault(bundle.groups[0].name, set()).update(_run(refused, level, bundle.steps))


def _run(refused: Callable[[int], bool], level: int, steps: int) -> range:
    """The levels around one that is refused that are so, too, up to the nearest on either side that isn't.

    Which ways there are changes with the powers of two in a width, so such levels lie together by the dozen, and end
    there as a rule. What lies between two of them isn't tried.
    """
    return range(_end(refused, level, steps, -1), _end(refused, level, steps, 1) + 1)


def _end(refused: Callable[[int], bool], level: int, steps: int, way: int) -> int:
    """The last level that is refused, from one that is, up (`way` 1) or down (-1)."""
    while True:
        edge = _edge(level, steps, way)
        if not refused(edge + way):
            return _last(refused, level, edge)
        level = edge + way


def _edge(level: int, steps: int, way: int) -> int:
    """The level furthest on at which what is left lies between the same two powers of two, the upper one included."""
    octave = (steps - level - 1).bit_length()
    return steps - (1 << octave >> 1) - 1 if way > 0 else max(steps - (1 << octave), 1)


def _last(refused: Callable[[int], bool], level: int, end: int) -> int:
    """The last level that is refused from one that is up to `end`."""
    if refused(end):
        return end
    while abs(end - level) > 1:
        middle = (level + end) // 2
        level, end = (middle, end) if refused(middle) else (level, middle)
    return level


def _try(graph: ChannelGraph, bundle: Bundle, level: int) -> Counts | Strangers:
    alone = np.ones(graph.structure.count, dtype=bool)
    for group, gone in zip(bundle.groups, bundle.gone(np.array([level]))[0].tolist(), strict=True):
        alone[group.numbers[:gone]] = False
    return counts_at(graph, _widths(graph, bundle, level), alone)


def _widths(graph: ChannelGraph, bundle: Bundle, level: int) -> dict[tuple[str, int], int]:
    """Widths of all axes when the bundle loses its share of every axis that it is on."""
    structure = graph.structure
    share = np.zeros(structure.count + 1)
    for group in bundle.groups:
        share[group.numbers] = level / bundle.steps
    widths = widths_of(graph, np.ones(structure.count, dtype=bool))
    space = structure.labels.space
    for place, start, size in zip(space.places, space.starts, space.sizes, strict=True):
        widths[place] -= round(float(share[structure.channel[start : start + size]].sum()))
    return widths
