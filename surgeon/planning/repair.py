"""What to do where the user's forward doesn't follow the widths: link groups that belong together, else pin."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from torch import fx

from surgeon.channels import ChannelGraph, Link
from surgeon.channels.structure import Flags, Ints
from surgeon.rules import reasons
from surgeon.trial import (
    Binding,
    Fit,
    Misfit,
    Search,
    calls_alike,
    channels_at,
    find_fit,
    find_links,
    line_and_operator,
)

#: At how many calls alike channels are pinned one call at a time, before those at all of them are.
_ONE_BY_ONE = 1


class Repair:
    """The graph as it is after the misfits so far.

    A link is kept if the next trial gets further than the one before it; otherwise it is taken back, and the channels
    at that place are pinned.

    Attributes
    ----------
    graph:
        The graph with its links and pins.
    bindings:
        Held numbers found so far.
    steps:
        Of groups whose widths a kernel takes in steps alone: name -> step.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.bindings: tuple[Binding, ...] = ()
        self.steps: dict[str, int] = {}
        self._open: _Open | None = None
        self._search = Search()
        self._pinned: Counter[Hashable] = Counter()

    def fit(self, kept: Flags) -> Fit:
        """Try the graph at these widths.

        Raises
        ------
        Misfit
            If the forward doesn't follow: to be taken in by :meth:`after`.
        """
        return find_fit(self.graph, kept, self.bindings, self._search)

    def after(self, misfit: Misfit) -> None:
        """Take in that a trial failed here."""
        self._search.spend(misfit)
        self.bindings = misfit.bindings
        if self._stepped(misfit):
            return
        order = self.graph.trace.order
        if self._open is not None and order[misfit.node] > order[self._open.misfit.node]:
            self._open = None  # the link has proved itself
        if self._open is None:
            links = [] if misfit.numeric or self._search.is_spent(misfit) else find_links(self.graph, misfit)
            self._open = _Open(self.graph, misfit, links)
        self.undone()

    def _stepped(self, misfit: Misfit) -> bool:
        """Whether the groups at a misfit are to be cut in steps from now on, and weren't before."""
        cut = set(self.graph.group_of[misfit.channels].tolist()) if misfit.step > 1 else set()
        names = [self.graph.groups[number].name for number in cut if number >= 0]
        found = {name: math.lcm(misfit.step, self.steps.get(name, 1)) for name in names}
        new = {name: step for name, step in found.items() if step != self.steps.get(name)}
        self.steps |= new
        return bool(new)

    def undone(self) -> bool:
        """Take back a link that hasn't proved itself, if there is one, and try another, or pin."""
        if self._open is None:
            return False
        while self._open.links:
            links, self.bindings = self._open.links.pop(0), self._open.misfit.bindings
            self.graph = self._open.graph.link(links)
            if all(_can_go(self.graph, name) for link in links for name in link):
                return True
        self.graph, misfit = self._open.graph, self._open.misfit
        self.bindings = misfit.bindings
        self._open = None
        self.graph = self.graph.pin(self._staying(misfit), reasons.constant(misfit.node), misfit.source)
        return True

    def _staying(self, misfit: Misfit) -> Ints:
        """The channels at a misfit; where a call like it failed before, those at all calls alike: they'd fail, too."""
        kind = _kind(misfit.node)
        self._pinned[kind] += 1
        spent = self._search.is_spent(misfit)
        if self._pinned[kind] <= _ONE_BY_ONE and not spent:
            return misfit.channels
        calls = [n for n in calls_alike(self.graph, misfit.node) if spent or _kind(n) == kind]
        found = [channels_at(self.graph, call, misfit.kept) for call in calls]
        return np.unique(np.concatenate([misfit.channels, *found]))


def _kind(node: fx.Node) -> Hashable:
    """The same for calls of one line on values of one shape, in modules that are numbered."""
    return line_and_operator(node), re.sub(r"\d+", "#", node.meta["site"].path), node.meta.get("shape")


@dataclass
class _Open:
    """A misfit, the graph that had it, and the links that haven't been tried yet."""

    graph: ChannelGraph
    misfit: Misfit
    links: list[tuple[Link, ...]]


def _can_go(graph: ChannelGraph, name: str) -> bool:
    """Whether channels of this group still can go, together with what it is linked with."""
    return any(group.name == name for bundle in graph.bundles if bundle.exact for group in bundle.groups)
