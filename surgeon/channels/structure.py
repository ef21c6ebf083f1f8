"""From the ledger of one label pass to channels: components, pins, roles, signatures. Arrays only."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx

from surgeon.channels.labelling import Labels
from surgeon.rules import FIXED, Couple, Pinned, reasons

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
#: One bool per channel.
Flags = NDArray[np.bool_]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def flat(labels: Tensor) -> Ints:
    """Labels as a flat array."""
    return labels.reshape(-1).numpy()


@dataclass(frozen=True)
class Structure:
    """Channels of one recording.

    Attributes
    ----------
    labels:
        The pass that they come from.
    channel:
        Channel number of each label; entry 0 stands for :data:`FIXED` and has the channel -1.
    count:
        Number of channels.
    pinned:
        Index into ``pins`` of each channel's first pin, -1 where it is free.
    pins:
        The ledger's pins in the order in which they were found, then what was coupled with a place without channels,
        then what no layer reads.
    signature:
        Two independent 64-bit sums per channel: equal signatures, interchangeable channels.
    lead:
        Of each channel the label of its first producer (0: it has none).
    produced, consumed, filters:
        Flags of each label: made by a weight, read by a weight, made by a convolution.
    """

    labels: Labels
    channel: Ints
    count: int
    pinned: Ints
    pins: tuple[Pinned, ...]
    signature: Hashes
    lead: Ints
    produced: NDArray[np.bool_]
    consumed: NDArray[np.bool_]
    filters: NDArray[np.bool_]

    def along(self, name: str, axis: int) -> Ints:
        """The channel numbers along one labelled axis of a tensor."""
        space = self.labels.space
        index = space.index[name, axis]
        return self.channel[space.starts[index] : space.starts[index] + space.sizes[index]]

    def of(self, labels: Tensor) -> Ints:
        """The channel numbers of `labels` (flat; FIXED gives -1)."""
        return self.channel[flat(labels)]


def analyse(labels: Labels, names: Mapping[fx.Node, fx.Node] | None = None) -> Structure:
    """Connect the labels and describe every channel; `names` gives the dense node of each node."""
    ledger, total = labels.ledger, labels.space.total
    pairs = [_pair(a, b) for a, b, _ in ledger.couples]
    edges = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    met = (*ledger.pins, *_met_fixed(ledger.couples, pairs))
    edges = edges[:, (edges != FIXED).all(axis=0)]
    graph = coo_matrix((np.ones(edges.shape[1], dtype=np.int8), (edges[0] - 1, edges[1] - 1)), (total - 1, total - 1))
    count, component = connected_components(graph, directed=False) if total > 1 else (0, np.zeros(0))
    channel = np.concatenate([[-1], component]).astype(np.int64)
    produced, consumed, filters = _flags(labels, total)
    pins = (*met, *_read_by_nobody(labels, channel, channel[consumed]))
    tallies = [_tally(pin.labels, total) for pin in pins]
    return Structure(
        labels, channel, count, _pins(channel, count, tallies), pins,
        _signatures(labels, channel, count, names or {}, tallies), _leads(labels, channel, count),
        produced, consumed, filters,
    )  # fmt: skip


def _pair(one: Tensor, other: Tensor) -> Ints:
    left, right = one.numpy(), other.numpy()
    if left.shape != right.shape:
        left, right = np.broadcast_arrays(left, right)
    pair = np.empty((2, left.size), dtype=np.int64)
    pair[0], pair[1] = left.reshape(-1), right.reshape(-1)
    return pair


def _flags(labels: Labels, total: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    produced, consumed, filters = (np.zeros(total, dtype=bool) for _ in range(3))
    for tensor, convolution in labels.ledger.produced:
        produced[flat(tensor)] = True
        if convolution:
            filters[flat(tensor)] = True
    for tensor in labels.ledger.consumed:
        consumed[flat(tensor)] = True
    for summed in labels.ledger.summed:
        consumed[flat(summed.plane.labels)] = True
    return produced, consumed, filters


def _met_fixed(couples: Sequence[Couple], pairs: Sequence[Ints]) -> Iterator[Pinned]:
    """Labels that were coupled with a place without channels (padding, a constant part)."""
    for (_, _, node), pair in zip(couples, pairs, strict=True):
        met = pair[:, (pair == FIXED).any(axis=0)].max(axis=0, initial=0)
        met = met[met != FIXED]
        if len(met):
            yield Pinned(torch.from_numpy(met), reasons.constant(node), node)


def _read_by_nobody(labels: Labels, channel: Ints, consumed: Ints) -> Iterator[Pinned]:
    """Labels of results that no call takes and whose channels no layer reads either: the caller may, another time."""
    for node, mark in labels.marks.items():
        if node.op == "call_function" and not node.users:
            for plane in mark.planes:
                own = flat(plane.labels)
                unread = own[(own != FIXED) & ~np.isin(channel[own], consumed)]
                if len(unread) and not plane.example:
                    yield Pinned(torch.from_numpy(unread), reasons.UNREAD, node)


#: Labels, and how often each of them is there: all of them together, or one by one.
_Tally = tuple[Ints, int | Ints]


def _tally(labels: Tensor, total: int) -> _Tally:
    """The labels of a plane; of one with more places than there are labels, as attention has, each label once."""
    repeats = 1
    for axis, size in enumerate(labels.shape):
        if labels.stride(axis) == 0 and size > 1:
            labels, repeats = labels.narrow(axis, 0, 1), repeats * size
    places = flat(labels)
    if len(places) <= total:
        return places, repeats
    counts = np.bincount(places, minlength=total)
    different = np.flatnonzero(counts)
    return different, counts[different] * repeats


def _pins(channel: Ints, count: int, tallies: Sequence[_Tally]) -> Ints:
    """The first pin of each channel, -1 where it has none."""
    pinned = np.full(count + 1, -1, dtype=np.int64)
    for index, (places, _) in reversed(list(enumerate(tallies))):
        pinned[channel[places]] = index
    return pinned[:-1]  # the last entry took the FIXED places


def _signatures(
    labels: Labels, channel: Ints, count: int, names: Mapping[fx.Node, fx.Node], tallies: Sequence[_Tally]
) -> Hashes:
    sums = np.zeros((2, count + 1), dtype=np.uint64)
    space, ledger = labels.space, labels.ledger

    def add(channels: Ints, values: Iterable[Any]) -> None:
        for row, value in zip(sums, values, strict=True):  # numpy's fast path takes one dimension
            np.add.at(row, channels, value)

    hashes = np.array([_hash(f"{name}:{axis}") for name, axis in space.places], dtype=np.uint64).reshape(-1, 2)
    add(channel[1:], np.repeat(hashes, space.sizes, axis=0).T)  # labels are numbered place by place
    for anchor in ledger.anchors:
        base = _hash(f"{names.get(anchor.node, anchor.node).name}:{anchor.kind}")
        places, coordinates = _once(flat(anchor.labels), flat(anchor.coordinates))
        add(channel[places], [_mix(half, coordinates) for half in base])
    for pin, (places, counts) in zip(ledger.pins, tallies, strict=False):  # what comes behind met FIXED
        base = _hash(f"{names.get(pin.node, pin.node).name}:pin")
        add(channel[places], [_times(half, counts) for half in base])
    return np.ascontiguousarray(sums[:, :-1].T)


def _once(labels: Ints, coordinates: Ints) -> tuple[Ints, Ints]:
    """Each label at each of its coordinates once: how often it is there depends on how wide what it meets is.

    Where two labelled axes became one, each place of the first stands beside all those of the second.
    """
    span = int(labels.max(initial=0)) + 1
    keys = coordinates * span + labels
    different = np.unique(keys)
    if len(different) == len(keys):
        return labels, coordinates
    return different % span, different // span


@functools.lru_cache(maxsize=1 << 14)  # the small recording has the names of the dense one
def _hash(text: str) -> Hashes:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype=np.uint64)


def _times(base: np.uint64, counts: int | Ints) -> np.uint64 | Hashes:
    """A number times how often it is added, as the sum would come round."""
    if isinstance(counts, int):
        product: np.uint64 = np.uint64(int(base) * counts % (1 << 64))
        return product
    found: Hashes = counts.astype(np.uint64)
    found *= base
    return found


def _mix(base: np.uint64, coordinates: Ints) -> Hashes:
    """A pseudo-random number for each coordinate (splitmix64's finaliser)."""
    value: Hashes = base + (coordinates.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    return value


def _leads(labels: Labels, channel: Ints, count: int) -> Ints:
    lead = np.zeros(count + 1, dtype=np.int64)
    for tensor, _ in reversed(labels.ledger.produced):
        made = flat(tensor)[::-1]
        lead[channel[made]] = made
    return lead[:-1]


def layer_of(tensor: str) -> str:
    """The module that owns a parameter; parametrised weights belong to the module that they stand in."""
    owner = tensor.split(".parametrizations.")[0] if ".parametrizations." in tensor else tensor.rpartition(".")[0]
    return owner or tensor


def rows(table: NDArray[Any]) -> Ints:
    """A number for each row of a table, the same for equal rows: ``(n, k)`` becomes ``(n,)``."""
    _, inverse = np.unique(table, axis=0, return_inverse=True)
    return inverse.reshape(-1).astype(np.int64)
