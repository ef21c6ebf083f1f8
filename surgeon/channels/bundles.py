"""Bundles: groups whose widths depend on each other.

A grouped convolution takes equally many channels of every group, a ``chunk`` makes equal halves. Each such demand
says that the places of several *parts* must stay equal in number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np

from surgeon.channels.even import Even, even_path
from surgeon.channels.structure import Ints, Structure, flat

if TYPE_CHECKING:
    from surgeon.channels.graph import Group


#: Names of groups whose widths stay in proportion, or sums of widths that stay equal.
Link = frozenset[str] | Even


@dataclass(frozen=True)
class Bundle:
    """Groups that are cut together.

    Attributes
    ----------
    groups:
        One group, or several with linked widths.
    steps:
        In how many steps it would be empty.
    takes:
        Channels of each group that a step takes. None: a step takes the share ``1 / steps`` of each (rounded; a trial
        settles the exact numbers), as where channel shuffles split a layer again and again.
    stuck:
        No step keeps the parts equal: the bundle stays whole.
    path:
        Where not every step takes the same: channels of each group that are gone after each step.
    """

    groups: tuple[Group, ...]
    steps: int
    takes: tuple[int, ...] | None
    stuck: bool = False
    path: Ints | None = field(default=None, compare=False)

    @property
    def exact(self) -> bool:
        """Whether it is known what a step takes of each group."""
        return self.takes is not None or self.path is not None

    def gone(self, levels: Ints) -> Ints:
        """Channels of each group that are gone after so many steps: a row for each level, a column for each group."""
        if self.path is not None:
            return self.path[levels]
        if self.takes is not None:
            return np.outer(levels, self.takes)
        return np.rint(np.outer(levels, [group.size for group in self.groups]) / self.steps).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Demand:
    """``counts[part, group]`` places of each part per channel of each group; `fixed` places that can't go."""

    counts: Ints
    fixed: Ints
    groups: tuple[int, ...]


def find_bundles(structure: Structure, groups: Sequence[Group], links: Iterable[Link]) -> tuple[Bundle, ...]:
    """Link `groups` by the demands that the label pass met, and by `links`, which trials have found."""
    links, order = tuple(links), {group.name: index for index, group in enumerate(groups)}
    uneven = [_of_link(link, order) for link in links if isinstance(link, Even)]
    demands = [d for d in (*_demands(structure, groups), *uneven) if d is not None]
    linked = [sorted(order[name] for name in link if name in order) for link in links if not isinstance(link, Even)]
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(range(len(groups)))
    for chain in (*(demand.groups for demand in demands), *linked):
        nx.add_path(graph, chain)
    of_group: dict[int, list[_Demand]] = {}
    for demand in demands:  # all of its groups are in one component: any of them leads there
        of_group.setdefault(demand.groups[0], []).append(demand)
    found = []
    for component in nx.connected_components(graph):
        own = [demand for index in component for demand in of_group.get(index, ())]
        chains = [chain for chain in linked if len(chain) > 1 and not component.isdisjoint(chain)]
        if any(demand in uneven for demand in own):
            found += _even_bundles(groups, sorted(component), own, chains)
        else:
            found.append(_bundle(structure, groups, sorted(component), own, proportional=bool(chains)))
    return tuple(sorted(found, key=lambda bundle: order[bundle.groups[0].name]))


def _of_link(link: Even, order: Mapping[str, int]) -> _Demand | None:
    """What a link demands of the groups that may be cut; the others' places don't change."""
    counts = np.zeros((len(link.parts), len(order)), dtype=np.int64)
    for row, part in enumerate(link.parts):
        for name, places in part:
            if name in order:
                counts[row, order[name]] += places
    touched = np.flatnonzero((counts != counts[0]).any(axis=0))
    return _Demand(counts, np.zeros(len(counts), dtype=np.int64), tuple(touched.tolist())) if len(touched) else None


def _even_bundles(
    groups: Sequence[Group], indices: list[int], demands: Iterable[_Demand], chains: Iterable[Sequence[int]]
) -> list[Bundle]:
    """The groups that can go step by step while all demands hold, and those of which nothing can."""
    place = {index: column for column, index in enumerate(indices)}
    rows = [dict(enumerate(row)) for d in demands for row in (d.counts - d.counts[0])[1:, indices].tolist()]
    rows += [
        {place[one]: groups[other].size, place[other]: -groups[one].size}
        for chain in chains
        for one, other in itertools.pairwise(chain)
    ]
    path = even_path(rows, [groups[index].size for index in indices])
    goes = path[-1] > 0
    found = []
    for moves in (True, False):
        columns = np.flatnonzero(goes == moves)
        chosen = tuple(groups[indices[column]] for column in columns)
        if chosen:
            found.append(Bundle(chosen, len(path), None, stuck=not moves, path=path[:, columns]))
    return found


def _bundle(
    structure: Structure, groups: Sequence[Group], indices: list[int], demands: list[_Demand], *, proportional: bool
) -> Bundle:
    chosen = tuple(groups[i] for i in indices)
    steps = math.gcd(*(g.size for g in chosen)) if proportional else min(g.size for g in chosen)
    takes = tuple(g.size // steps if proportional else 1 for g in chosen)
    if all(_alike(demand.counts[:, indices] @ np.array(takes)) for demand in demands):
        return Bundle(chosen, steps, takes, stuck=steps < 2)
    if not all(_alike(demand.fixed) for demand in demands):
        return Bundle(chosen, 0, None, stuck=True)
    base = _common_width(structure, chosen)
    return Bundle(chosen, base, None, stuck=base < 2)


def _alike(numbers: Ints) -> bool:
    return bool((numbers == numbers[0]).all())


def _common_width(structure: Structure, groups: Sequence[Group]) -> int:
    """The largest number that divides the bundle's width on every axis: cut by shares of it, all widths stay whole."""
    numbers = np.concatenate([g.numbers for g in groups])
    labels = np.flatnonzero(np.isin(structure.channel, numbers))
    places = structure.labels.space.place_of(labels)
    return math.gcd(*(int(n) for n in np.unique(places, return_counts=True)[1]))


def _demands(structure: Structure, groups: Sequence[Group]) -> Iterator[_Demand | None]:
    group_of = np.full(structure.count + 1, -1, dtype=np.int64)
    for index, group in enumerate(groups):
        group_of[group.numbers] = index
    for tie in structure.labels.ledger.ties:
        yield _demand(structure, groups, group_of, [flat(part) for part in tie.parts])
    for anchor in structure.labels.ledger.anchors:
        labels, places = flat(anchor.labels), flat(anchor.coordinates)
        order = np.argsort(places, kind="stable")
        cuts = np.flatnonzero(np.diff(places[order])) + 1
        yield _demand(structure, groups, group_of, np.split(labels[order], cuts))
    for parts in _tilings(structure):
        yield _demand(structure, groups, group_of, parts)


def _tilings(structure: Structure) -> Iterator[list[Ints]]:
    """Slices of one tensor that share an axis out in equal parts, as ``x[:, :n], x[:, n:]`` does."""
    for found in structure.labels.ledger.slices.values():
        parts = {(first, last): part for first, last, part, _ in found}
        ordered = sorted(parts)
        widths = {last - first for first, last in ordered}
        joined = all(a[1] == b[0] for a, b in itertools.pairwise(ordered))
        if len(ordered) > 1 and len(widths) == 1 and joined:
            yield [flat(parts[key]) for key in ordered]


def _demand(structure: Structure, groups: Sequence[Group], group_of: Ints, parts: Sequence[Ints]) -> _Demand | None:
    if len(parts) < 2:
        return None
    counts = np.zeros((len(parts), len(groups) + 1), dtype=np.int64)
    for row, part in enumerate(parts):
        counts[row] = np.bincount(group_of[structure.channel[part]] + 1, minlength=len(groups) + 1)
    fixed, places = counts[:, 0], counts[:, 1:]
    touched = np.flatnonzero((places != places[0]).any(axis=0))  # what all parts have alike changes nothing
    if not len(touched):
        return None
    sizes = np.array([groups[int(i)].size for i in touched])
    if (places[:, touched] % sizes).any():
        return None  # parts that no whole channel falls into: the trial will tell
    per_channel = np.zeros_like(places)
    per_channel[:, touched] = places[:, touched] // sizes
    return _Demand(per_channel, fixed, tuple(int(i) for i in touched))
