"""Links: groups whose widths a forward keeps in proportion, because it works one out from the other.

``nn.MultiheadAttention`` takes its head size from the width of its input; so do many attentions. Nothing in a
recording says so, but where a trial fails, the channels at that place and the next ones above it are the candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from torch import fx

from surgeon.channels import ChannelGraph, Even, Link
from surgeon.channels.structure import Ints
from surgeon.trial.bindings import Binding, Guess, bind, calls_alike, guesses, target_at
from surgeon.trial.blame import Misfit
from surgeon.trial.targets import Target

#: How far up, and with how many bundles that a module handles, links are tried.
_MOST_ANCESTORS, _MOST_PARTNERS = 400, 4


def find_links(graph: ChannelGraph, misfit: Misfit) -> list[tuple[Link, ...]]:
    """Sets of links to try, the likeliest first; each says the same of all calls of the misfit's line.

    One number may stand for the widths of several groups; a width may be shared out among those that meet here; or one
    is worked out from another, that of the nearest groups above that are independent of those here.
    """
    calls, groups = calls_alike(graph, misfit.node), _Groups(graph)
    known = {binding.target: binding for binding in misfit.bindings}
    shared = [g for g in guesses(graph, misfit.node, None) if g.target in known]
    candidates: list[list[Link]] = [[link for call in calls for link in groups.even(call, g, known)] for g in shared]
    candidates += [[groups.sharing(call, guess, known) for call in calls] for guess in shared]
    candidates.append([groups.around(call) for call in calls])
    candidates.append([groups.nearest(call) for call in calls])
    modules = [groups.in_module(call.meta["site"].path) for call in calls]
    candidates += [[links[k] for links in modules if k < len(links)] for k in range(_MOST_PARTNERS + 2)]
    found = [tuple(dict.fromkeys(link for link in links if link)) for links in candidates]
    bundles = groups.bundle_of
    return [links for links in dict.fromkeys(found) if any(len({bundles.get(n) for n in link}) > 1 for link in links)]


class _Groups:
    """The groups at the calls of one graph, by name; each call is looked at once, however many lie in its module."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.bundle_of = {group.name: index for index, bundle in enumerate(graph.bundles) for group in bundle.groups}
        self.at = functools.cache(self._at)
        self.in_module = functools.cache(self._in_module)

    @functools.cached_property
    def calls(self) -> dict[str, list[fx.Node]]:
        """The calls in each module itself, by its path."""
        found: dict[str, list[fx.Node]] = {}
        for call in self.graph.trace.calls:
            found.setdefault(call.meta["site"].path, []).append(call)
        return found

    @functools.cached_property
    def made(self) -> dict[str, set[str]]:
        """The groups that each layer makes, by its path."""
        found: dict[str, set[str]] = {}
        for group in self.graph.groups:
            for layer in group.producers:
                found.setdefault(layer, set()).add(group.name)
        return found

    def _at(self, node: fx.Node) -> frozenset[str]:
        """The groups that may be cut and that label this value."""
        mark = self.graph.structure.labels.marks.get(node)
        planes = mark.planes if mark is not None else ()
        return frozenset().union(*(self.names(self.graph.structure.of(plane.labels)) for plane in planes))

    def names(self, numbers: Ints) -> frozenset[str]:
        """The groups of these channels."""
        return frozenset(self.graph.groups[i].name for i in np.unique(self.graph.group_of[numbers]).tolist() if i >= 0)

    def around(self, node: fx.Node) -> Link:
        """The groups at a call and at what it takes."""
        return frozenset().union(*(self.at(call) for call in (node, *node.all_input_nodes)))

    def sharing(self, node: fx.Node, guess: Guess, known: dict[Target, Binding]) -> Link:
        """The groups at `node`, and those whose width the number held there was found to be."""
        target = target_at(self.graph, node, guess)
        if target not in known:
            return frozenset()
        parts = [part for part in known[target].parts if not isinstance(part, int)]
        return self.at(node) | self.names(np.concatenate(parts))

    def even(self, node: fx.Node, guess: Guess, known: dict[Target, Binding]) -> Iterator[Even]:
        """What the number held there was found to count, and what it counts at `node`: as much, whatever goes."""
        here = bind(self.graph, node, guess)
        if here is None or here.target not in known:
            return
        for one, other in zip(known[here.target].parts, here.parts, strict=True):
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                parts = self.places(one), self.places(other)
                if parts[0] is not None and parts[1] is not None and parts[0] != parts[1]:
                    yield Even((parts[0], parts[1]))

    def places(self, numbers: Ints) -> frozenset[tuple[str, int]] | None:
        """How many places each channel of a group has here, by its name; None if not all of them have equally many."""
        groups, sizes = np.unique(self.graph.group_of[numbers], return_counts=True)
        found = [(self.graph.groups[i], int(size)) for i, size in zip(groups, sizes, strict=True) if i >= 0]
        if any(size % group.size for group, size in found):
            return None
        return frozenset((group.name, size // group.size) for group, size in found)

    def nearest(self, node: fx.Node) -> Link:
        """The groups at `node`, with the nearest ones above that are independent of them."""
        here: set[str] = set()
        seen, level = {node}, [node]
        while level and len(seen) < _MOST_ANCESTORS:
            names = {name for call in level for name in self.at(call)}
            bundles = {self.bundle_of[name] for name in here}
            others = {name for name in names if self.bundle_of[name] not in bundles}
            if here and others:
                return frozenset(here | others)
            here |= names
            level = [n for n in dict.fromkeys(i for call in level for i in call.all_input_nodes) if n not in seen]
            seen.update(level)
        return frozenset()

    def _in_module(self, path: str) -> list[Link]:
        """The groups that a module makes, with each other bundle that it handles, in order.

        One attribute may hold the widths of all its parts, or it compares one with another before it calls anything.
        """
        made = self.made.get(path, set())
        seen = dict.fromkeys(name for call in self.calls.get(path, ()) for name in sorted(self.around(call)))
        own = {self.bundle_of[name] for name in made}
        others = dict.fromkeys(self.bundle_of[name] for name in seen if self.bundle_of[name] not in own)
        partners = [frozenset(made | {name for name in seen if self.bundle_of[name] == bundle}) for bundle in others]
        everything = [frozenset(made.union(*partners))] if len(partners) > 1 else []
        return [*([frozenset(made)] if len(own) > 1 else []), *partners[:_MOST_PARTNERS], *everything]
