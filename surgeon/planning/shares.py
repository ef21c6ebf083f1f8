"""Bundles that are cut by shares: a trial settles how many channels each of their groups has at a width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgeon.channels import Bundle, ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.criteria import Scores
from surgeon.planning.moves import Blocked, Move
from surgeon.trial import Misfit, settle, widths_of


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
        self._known: dict[tuple[tuple[str, ...], int], dict[str, int] | None] = {}

    def settle(self, graph: ChannelGraph, scores: Scores, moves: Sequence[Move], kept: Flags) -> Flags:
        """The flags with the exact numbers of channels, one bundle at a time.

        Raises
        ------
        NoSuchWidthError
            Where a bundle can't have the width; it is blocked from then on.
        Misfit
            Where the forward doesn't follow for another reason.
        """
        levels = {m.bundle: m.level for m in moves if graph.bundles[m.bundle].takes is None}
        found = {index: self._counts(graph, graph.bundles[index], level) for index, level in levels.items()}
        if None in found.values():
            raise NoSuchWidthError
        kept = kept.copy()
        for index, counts in found.items():
            for group in graph.bundles[index].groups if counts is not None else ():
                ranked = group.numbers[np.argsort(scores.normalised[group.numbers], kind="stable")]
                kept[group.numbers] = True
                kept[ranked[: group.size - counts[group.name]]] = False  # type: ignore[index]  # not None here
        return kept

    def _counts(self, graph: ChannelGraph, bundle: Bundle, level: int) -> dict[str, int] | None:
        """Channels of each group when the bundle alone has lost `level` of its steps; None if it can't."""
        key = (tuple(group.name for group in bundle.groups), level)
        if key not in self._known:
            self._known[key] = _try(graph, bundle, level)
            if self._known[key] is None:
                self.blocked.setdefault(bundle.groups[0].name, set()).add(level)
        return self._known[key]


def _try(graph: ChannelGraph, bundle: Bundle, level: int) -> dict[str, int] | None:
    alone = np.ones(graph.structure.count, dtype=bool)
    for group, gone in zip(bundle.groups, bundle.gone(np.array([level]))[0].tolist(), strict=True):
        alone[group.numbers[:gone]] = False
    try:
        return settle(graph, _widths(graph, bundle, level), alone)
    except Misfit as misfit:
        if misfit.followed:
            return None
        raise


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
