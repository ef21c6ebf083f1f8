"""The channel graph: groups of interchangeable channels, what couples them, what is pinned and why."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from surgeon.channels.bundles import Bundle, Link, find_bundles
from surgeon.channels.labelling import Labels, label
from surgeon.channels.pins import Pin, find_pins
from surgeon.channels.structure import Ints, Structure, analyse, layer_of, rows
from surgeon.channels.unreached import beside_unreached
from surgeon.rules import reasons
from surgeon.tracing import Trace, named_modules
from surgeon.tracing import trace as record_model


@dataclass(frozen=True)
class Member:
    """One axis of one tensor on which a group's channels live; role: produces, consumes or follows."""

    tensor: str
    axis: int
    role: str

    @property
    def layer(self) -> str:
        """The module that owns the tensor."""
        return layer_of(self.tensor)


@dataclass(frozen=True)
class Group:
    """Channels that occupy the same places, so any of them can go instead of another.

    Attributes
    ----------
    name:
        The layer that makes them first; ``#2`` is appended where a layer leads several groups.
    channels:
        The out-position of each channel in that layer: how plans name channels.
    members:
        Every (tensor, axis) that they live on.
    filters:
        Convolution filters that one channel is worth; 0 for neurons of Linear layers alone.
    numbers:
        Channel numbers in the :class:`Structure`, in the order of `channels`.
    """

    name: str
    channels: tuple[int, ...]
    members: tuple[Member, ...]
    filters: int
    numbers: Ints = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """How many channels there are."""
        return len(self.channels)

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose filters or neurons these are."""
        return tuple(dict.fromkeys(m.layer for m in self.members if m.role == "produces"))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers that read them."""
        return tuple(dict.fromkeys(m.layer for m in self.members if m.role == "consumes"))


class ChannelGraph:
    """Which channels of which tensors live and die together.

    Attributes
    ----------
    trace:
        The recording that it was read from.
    structure:
        The channels themselves, as arrays.
    extra:
        Pins added after tracing: channel number -> (reason, source).
    links:
        Groups whose widths the forward keeps in proportion: sets of names.
    """

    def __init__(
        self,
        structure: Structure,
        extra: dict[int, tuple[str, str | None]] | None = None,
        links: tuple[Link, ...] = (),
    ) -> None:
        self.structure = structure
        self.trace: Trace = structure.labels.trace
        self.extra = extra or {}
        self.links = links

    def pin(self, numbers: Ints, reason: str, source: str | None = None) -> ChannelGraph:
        """The same graph with more channels pinned; a group with a pinned channel stays whole.

        Parameters
        ----------
        numbers:
            The channels.
        reason, source:
            Why they stay, and the line of the user's program that holds them, where there is one.
        """
        if not len(numbers):
            return self
        added = {int(number): (reason, source) for number in numbers}
        return self._like({**added, **self.extra}, self.links)

    def link(self, links: Iterable[Link]) -> ChannelGraph:
        """The same graph with more groups in proportion: each of `links` names groups that stay so."""
        return self._like(self.extra, (*self.links, *links))

    def _like(self, extra: dict[int, tuple[str, str | None]], links: tuple[Link, ...]) -> ChannelGraph:
        result = ChannelGraph(self.structure, extra, links)
        result.__dict__["named"] = self.named
        return result

    @functools.cached_property
    def removable(self) -> Ints:
        """Numbers of the channels that may go."""
        return np.sort(np.concatenate([g.numbers for g in self.groups] or [np.zeros(0, dtype=np.int64)]))

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order in which the forward makes them."""
        return tuple(group for bundle in self._bundled for group in bundle.groups if not bundle.stuck)

    @functools.cached_property
    def group_of(self) -> Ints:
        """Index into :attr:`groups` of each channel that may go, -1 of the others (and of -1, no channel)."""
        found = np.full(self.structure.count + 1, -1, dtype=np.int64)
        for index, group in enumerate(self.groups):
            found[group.numbers] = index
        return found

    @functools.cached_property
    def bundles(self) -> tuple[Bundle, ...]:
        """Groups whose widths depend on each other, together; most bundles hold one group."""
        return tuple(bundle for bundle in self._bundled if not bundle.stuck)

    @functools.cached_property
    def _bundled(self) -> tuple[Bundle, ...]:
        free = [g for g in self.named.values() if self.extra.keys().isdisjoint(g.numbers.tolist())]
        return find_bundles(self.structure, free, self.links)

    @functools.cached_property
    def named(self) -> dict[str, Group]:
        """Every group of channels that some weight makes and tracing didn't pin; names don't depend on later pins."""
        return {group.name: group for group in self._collect()}

    def _collect(self) -> list[Group]:
        s = self.structure
        numbers = np.flatnonzero((s.pinned < 0) & (s.lead > 0))
        if not len(numbers):
            return []
        kind = rows(s.signature[numbers])
        numbers, kind = (values[np.argsort(s.lead[numbers], kind="stable")] for values in (numbers, kind))
        _, first, counts = np.unique(kind, return_index=True, return_counts=True)
        by_kind = np.split(numbers[np.argsort(kind, kind="stable")], np.cumsum(counts)[:-1])
        found = [by_kind[index] for index in np.argsort(first)]  # in the order in which the forward makes them
        members = self._members([int(own[0]) for own in found])
        taken: Counter[str] = Counter()
        return [self._group(own, members[int(own[0])], taken) for own in found]

    def _group(self, numbers: Ints, labels: Ints, taken: Counter[str]) -> Group:
        s = self.structure
        leads = s.lead[numbers]
        place = int(s.labels.space.place_of(leads[:1])[0])
        tensor, _ = s.labels.space.places[place]
        layer = layer_of(tensor)
        taken[layer] += 1
        name = layer if taken[layer] == 1 else f"{layer}#{taken[layer]}"
        positions = tuple((leads - s.labels.space.starts[place]).tolist())
        return Group(name, positions, self._roles(labels), int(s.filters[labels].sum()), numbers)

    def _members(self, numbers: list[int]) -> dict[int, Ints]:
        """The labels of each of these channels."""
        s = self.structure
        order = np.argsort(s.channel, kind="stable")
        starts = np.searchsorted(s.channel[order], numbers, side="left")
        ends = np.searchsorted(s.channel[order], numbers, side="right")
        return {n: order[a:b] for n, a, b in zip(numbers, starts, ends, strict=True)}

    def _roles(self, labels: Ints) -> tuple[Member, ...]:
        s = self.structure
        found: dict[tuple[str, int], Member] = {}
        for label_, place in zip(labels, s.labels.space.place_of(labels), strict=True):
            tensor, axis = s.labels.space.places[place]
            if tensor not in s.labels.space.planes:
                continue  # made by the forward itself
            role = "produces" if s.produced[label_] else "consumes" if s.consumed[label_] else "follows"
            found.setdefault((tensor, axis), Member(tensor, axis, role))
        return tuple(found.values())

    @functools.cached_property
    def pinned(self) -> tuple[Pin, ...]:
        """For every layer that must keep filters or neurons: how many, and the reason of the first of them."""
        return find_pins(self)

    def to_networkx(self) -> nx.DiGraph:
        """The channel-dependency graph.

        Nodes are layers (``kind="layer"``, ``type``) and groups (``kind="group"``, ``size``, ``filters``); edges are
        layer -> group (``kind="produces"``), group -> layer (``"consumes"``) and group -> layer (``"couples"``, for
        layers such as BatchNorm that a channel passes through).
        """
        graph: nx.DiGraph = nx.DiGraph()
        modules = dict(named_modules(self.trace.model))
        for group in self.groups:
            node = f"group:{group.name}"
            graph.add_node(node, kind="group", size=group.size, filters=group.filters)
            for member in group.members:
                kind = type(modules[member.layer]).__name__ if member.layer in modules else "parameter"
                graph.add_node(member.layer, kind="layer", type=kind)
                if member.role == "produces":
                    graph.add_edge(member.layer, node, kind="produces")
                elif not graph.has_edge(member.layer, node):
                    graph.add_edge(node, member.layer, kind={"consumes": "consumes"}.get(member.role, "couples"))
        return graph


def channel_graph(trace: Trace) -> ChannelGraph:
    """Read the channel graph off the recording `trace`: run it on labels, connect what must live and die together."""
    graph = ChannelGraph(analyse(_label(trace)))
    for layer, numbers in beside_unreached(graph.structure):
        graph = graph.pin(numbers, reasons.beside(layer), graph.trace.unexplored[0])
    return graph


def _label(recording: Trace) -> Labels:
    """The label pass; where it can't follow a way that no data took, of a recording without such ways."""
    try:
        return label(recording)
    except (RuntimeError, IndexError, ValueError):
        if "detour" not in recording.passes:
            raise
        return label(record_model(recording.model, recording.inputs, real=True, explore=False))
