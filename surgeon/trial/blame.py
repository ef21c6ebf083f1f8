"""Which place of the user's program doesn't follow the widths, and which channels meet there."""

from __future__ import annotations

import math
import operator

import numpy as np
from torch import fx

from surgeon.channels import ChannelGraph, Structure
from surgeon.channels.structure import Flags, Ints, flat
from surgeon.rules import Plane
from surgeon.trial.alignment import partners, strays
from surgeon.trial.bindings import Binding


class Misfit(Exception):
    """The forward doesn't follow these widths.

    Attributes
    ----------
    node:
        The dense call where it differs.
    channels:
        The cut channels that meet there.
    why:
        What differs, in words.
    kept:
        The widths: one flag per dense channel.
    numeric:
        Whether only a number in the forward is another one.
    stopped:
        Whether the forward raised; then `why` is what it said.
    step:
        Above 1 where a kernel takes only multiples of it.
    bindings:
        With which it was tried.
    """

    def __init__(self, node: fx.Node, channels: Ints, why: str, kept: Flags) -> None:
        super().__init__(why)
        self.node, self.channels, self.why, self.kept = node, channels, why, kept
        self.numeric, self.stopped, self.step = False, False, 1
        self.bindings: tuple[Binding, ...] = ()

    @property
    def source(self) -> str | None:
        """The user's line."""
        site = self.node.meta.get("site")
        return str(site.source) if site is not None and site.source else None


def find_misfit(
    graph: ChannelGraph,
    nodes: dict[fx.Node, fx.Node],
    kept: Flags,
    node: fx.Node | None,
    why: str,
    *,
    exactly: bool = False,
) -> Misfit:
    """Name the place that differs and the cut channels that meet there.

    The place is the first call whose shape isn't what its channels say, else `node`; with `exactly`, it is `node`.
    """
    order = list(graph.trace.order)
    if not exactly:
        node = _first_deviation(graph, nodes, kept) or node
    if node is not None:
        channels = _nearest_channels(graph, node, kept)
        if len(channels):
            return Misfit(node, channels, why, kept)
    index = graph.trace.order[node] if node is not None else len(order) - 1
    for candidate in reversed(order[: index + 1]):
        channels = channels_at(graph, candidate, kept)
        if len(channels):
            return Misfit(node or candidate, channels, why, kept)
    return Misfit(node or order[-1], np.flatnonzero(~kept), why, kept)


def find_other_way(
    graph: ChannelGraph, small: Structure, nodes: dict[fx.Node, fx.Node], kept: Flags, why: str
) -> Misfit:
    """Name the place from which on channels of the right widths go another way than in the dense run."""
    elsewhere = strays(small.labels.trace.graph, graph.trace.graph)
    if elsewhere is None and _first_deviation(graph, nodes, kept) is None:
        elsewhere = _first_other_meeting(graph, small, nodes, kept)
    return find_misfit(graph, nodes, kept, elsewhere, why, exactly=elsewhere is not None)


def _first_other_meeting(
    graph: ChannelGraph, small: Structure, nodes: dict[fx.Node, fx.Node], kept: Flags
) -> fx.Node | None:
    """The first call where other numbers of kept channels meet, or where other ones meet themselves."""
    theirs = _meetings(graph.structure, kept, {})
    ours = _meetings(small, np.ones(small.count, dtype=bool), nodes)
    return next((node for node in graph.trace.graph.nodes if theirs.get(node) != ours.get(node)), None)


def _meetings(structure: Structure, kept: Flags, nodes: dict[fx.Node, fx.Node]) -> dict[fx.Node, tuple[int, int]]:
    """At each dense call how many places meet, and how many of them are one place that meets itself."""
    flags, found = np.append(kept, True), dict[fx.Node, tuple[int, int]]()
    for one, other, node in structure.labels.ledger.couples:
        left, right = np.broadcast_arrays(one.numpy(), other.numpy())
        stays = flags[structure.channel[left]] & flags[structure.channel[right]]
        count, same = found.get(nodes.get(node, node), (0, 0))
        found[nodes.get(node, node)] = count + int(stays.sum()), same + int((stays & (left == right)).sum())
    return found


def _first_deviation(graph: ChannelGraph, nodes: dict[fx.Node, fx.Node], kept: Flags) -> fx.Node | None:
    """The first call whose result, or one of whose results, has another shape than its channels say."""
    backwards = partners(nodes)
    for candidate in graph.trace.graph.nodes:
        small = backwards.get(candidate)
        made = candidate.op == "call_function" and candidate in graph.structure.labels.marks
        if made and small is not None and _deviates(graph, candidate, small, kept):
            found: fx.Node = candidate.args[0] if candidate.target is operator.getitem else candidate
            return found
    return None


def _nearest_channels(graph: ChannelGraph, node: fx.Node, kept: Flags) -> Ints:
    """The cut channels at `node`, or at its closest ancestors that have any."""
    level, seen = [node], {node}
    while level:
        found = [channels_at(graph, n, kept) for n in level]
        if any(len(f) for f in found):
            return np.unique(np.concatenate(found))
        level = [n for n in dict.fromkeys(i for n in level for i in n.all_input_nodes) if n not in seen]
        seen.update(level)
    return np.zeros(0, dtype=np.int64)


def _deviates(graph: ChannelGraph, dense: fx.Node, small: fx.Node, kept: Flags) -> bool:
    shape = small.meta.get("shape")
    if shape is None or len(shape) != len(dense.meta["shape"]):
        return shape is not None
    flags = [(plane.axes, _kept_places(graph, plane, kept)) for plane in graph.structure.labels.marks[dense].planes]
    for axes, own in flags:
        if any(axes < others for others, _ in flags):
            continue  # counted along with those
        stay = own
        for others, theirs in flags:
            if others < axes:
                stay = stay & theirs  # rows of a grouped weight that go take their part of the columns along
        outer = min(axes)  # several axes: the channels inside each group of the first
        rows = stay.any(axis=tuple(axis for axis in range(stay.ndim) if axis != outer))
        if rows.sum() != shape[outer] or stay.sum() != math.prod(shape[axis] for axis in axes):
            return True
    return False


def _kept_places(graph: ChannelGraph, plane: Plane, kept: Flags) -> Flags:
    """Which places of a plane stay, in its shape."""
    found: Flags = np.append(kept, True)[graph.structure.channel[flat(plane.labels)]].reshape(plane.labels.shape)
    return found


def channels_at(graph: ChannelGraph, node: fx.Node, kept: Flags) -> Ints:
    """The cut channels that flow into or out of a dense node."""
    marks = [graph.structure.labels.marks.get(n) for n in (node, *node.all_input_nodes)]
    numbers = [graph.structure.of(p.labels) for m in marks if m is not None for p in m.planes]
    found = np.unique(np.concatenate(numbers)) if numbers else np.zeros(0, dtype=np.int64)
    found = found[found >= 0]
    return found[~kept[found]]
