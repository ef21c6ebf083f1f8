"""Links: groups whose widths a forward keeps in proportion, because it works one out from the other.

``nn.MultiheadAttention`` takes its head size from the width of its input; so do many attentions. Nothing in a
recording says so, but where a trial fails, the channels at that place and the next ones above it are the candidates.
"""

from __future__ import annotations

import numpy as np
from torch import fx

from surgeon.channels import ChannelGraph, Link
from surgeon.channels.structure import Ints
from surgeon.trial.bindings import Binding, Guess, alike, guesses, target_at
from surgeon.trial.blame import Misfit
from surgeon.trial.targets import Target

#: How far up, and with how many bundles that a module handles, links are tried.
_MOST_ANCESTORS, _MOST_PARTNERS = 400, 4


def find_links(graph: ChannelGraph, misfit: Misfit) -> list[tuple[Link, ...]]:
    """Sets of links to try, the likeliest first; each says the same of all calls of the misfit's line.

    One number may stand for the widths of several groups; a width may be shared out among those that meet here; or one
    is worked out from another, that of the nearest groups above that are independent of those here.
    """
    calls = alike(graph, misfit.node)
    known = {binding.target: binding for binding in misfit.bindings}
    shared = [g for g in guesses(graph, misfit.node, None) if g.target in known]
    bundle_of = {group.name: index for index, bundle in enumerate(graph.bundles) for group in bundle.groups}
    candidates = [[_sharing(graph, call, guess, known) for call in calls] for guess in shared]
    candidates.append([frozenset(_groups_around(graph, call)) for call in calls])
    candidates.append([_nearest(graph, call, bundle_of) for call in calls])
    modules = [_in_module(graph, call, bundle_of) for call in calls]
    candidates += [[links[k] for links in modules if k < len(links)] for k in range(_MOST_PARTNERS + 2)]
    found = [tuple(dict.fromkeys(link for link in links if link)) for links in candidates]
    return [links for links in dict.fromkeys(found) if any(len({bundle_of[n] for n in link}) > 1 for link in links)]


def _in_module(graph: ChannelGraph, node: fx.Node, bundle_of: dict[str, int]) -> list[Link]:
    """The groups that the module around this call makes, with each other bundle that it handles, in order.

    One attribute may hold the widths of all its parts, or it compares one with another before it calls anything.
    """
    path = node.meta["site"].path
    made = {group.name for group in graph.groups if path in group.producers}
    seen = dict.fromkeys(
        name for call in graph.trace.calls if call.meta["site"].path == path for name in _groups_around(graph, call)
    )
    own = {bundle_of[name] for name in made}
    others = dict.fromkeys(bundle_of[name] for name in seen if bundle_of[name] not in own)
    partners = [frozenset(made | {name for name in seen if bundle_of[name] == bundle}) for bundle in others]
    everything = [frozenset(made.union(*partners))] if len(partners) > 1 else []
    return [*([frozenset(made)] if len(own) > 1 else []), *partners[:_MOST_PARTNERS], *everything]


def _groups_around(graph: ChannelGraph, node: fx.Node) -> set[str]:
    return {name for call in (node, *node.all_input_nodes) for name in _groups_at(graph, call)}


def _sharing(graph: ChannelGraph, node: fx.Node, guess: Guess, known: dict[Target, Binding]) -> Link:
    """The groups at `node`, and those whose width the number held there was found to be."""
    target = target_at(graph, node, guess)
    if target not in known:
        return frozenset()
    parts = [part for part in known[target].parts if not isinstance(part, int)]
    return frozenset(_groups_at(graph, node) | _names(graph, np.concatenate(parts)))


def _nearest(graph: ChannelGraph, node: fx.Node, bundle_of: dict[str, int]) -> Link:
    here: set[str] = set()
    seen, level = {node}, [node]
    while level and len(seen) < _MOST_ANCESTORS:
        names = {name for call in level for name in _groups_at(graph, call)}
        bundles = {bundle_of[name] for name in here}
        others = {name for name in names if bundle_of[name] not in bundles}
        if here and others:
            return frozenset(here | others)
        here |= names
        level = [n for n in dict.fromkeys(i for call in level for i in call.all_input_nodes) if n not in seen]
        seen.update(level)
    return frozenset()


def _groups_at(graph: ChannelGraph, node: fx.Node) -> set[str]:
    """Names of the groups that may be cut and that label this value."""
    mark = graph.structure.labels.marks.get(node)
    planes = mark.planes if mark is not None else ()
    return {name for plane in planes for name in _names(graph, graph.structure.of(plane.labels))}


def _names(graph: ChannelGraph, numbers: Ints) -> set[str]:
    return {graph.group_of[int(n)] for n in np.unique(numbers) if int(n) in graph.group_of}
