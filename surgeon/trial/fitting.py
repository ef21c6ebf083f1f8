"""Try widths on the user's own forward and match what arrives with the dense channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph, Group, Guide, Mismatch, Structure, analyse, label
from surgeon.channels.structure import Flags, Ints, flat
from surgeon.errors import PlanError
from surgeon.tracing import Trace, Unfinished, record
from surgeon.trial.alignment import align, next_call
from surgeon.trial.skeleton import with_tensors

#: New size of each axis: (tensor name, axis) -> places kept on it.
Widths = Mapping[tuple[str, int], int]


class Misfit(Exception):
    """The forward doesn't follow these widths. `channels` are the cut channels that meet at the place where it differs."""

    def __init__(self, node: fx.Node, channels: Ints, why: str) -> None:
        super().__init__(why)
        self.node, self.channels, self.why = node, channels, why

    @property
    def source(self) -> str | None:
        """The user's line."""
        site = self.node.meta.get("site")
        return str(site.source) if site is not None and site.source else None


@dataclass(frozen=True)
class _Run:
    """One successful trial: the small recording, its channels (slots) and the dense node of each of its nodes."""

    structure: Structure
    nodes: dict[fx.Node, fx.Node]


@dataclass(frozen=True)
class Fit:
    """Where each place of the small model's tensors comes from.

    Attributes
    ----------
    graph:
        The dense channel graph.
    small:
        The channels of the small model (*slots*), from the trial's recording.
    nodes:
        Dense node of each node of the small recording.
    channel:
        Dense channel of each slot.
    """

    graph: ChannelGraph
    small: Structure
    nodes: dict[fx.Node, fx.Node]
    channel: Ints

    def positions(self, name: str, axis: int) -> Tensor:
        """Dense position (label offset) that stands at each position of an axis of the small tensor."""
        dense, small = self.graph.structure, self.small
        start, size = _slot(dense, name, axis)
        our_start, our_size = _slot(small, name, axis)
        theirs = dense.channel[start : start + size]
        ours = self.channel[small.channel[our_start : our_start + our_size]]
        kept = np.flatnonzero(np.isin(theirs, ours))
        by_channel = kept[np.argsort(theirs[kept], kind="stable")]
        result = np.empty(our_size, dtype=np.int64)
        result[np.argsort(ours, kind="stable")] = by_channel
        return torch.from_numpy(result)

    def gather(self, name: str, tensor: Tensor) -> Tensor:
        """The small tensor: `tensor`, a dense parameter or buffer called `name`, indexed once per axis."""
        for plane in self.graph.structure.labels.space.planes.get(name, ()):
            axis = max(plane.axes)
            index = self.positions(name, axis).to(tensor.device)
            if len(plane.axes) == 1:
                if len(index) != tensor.shape[axis]:
                    tensor = tensor.index_select(axis, index)
            else:
                tensor = self._gather_groups(name, tensor, index)
        return tensor

    def _gather_groups(self, name: str, tensor: Tensor, index: Tensor) -> Tensor:
        """The second axis of a grouped convolution's weight: every group keeps channels of its own."""
        per_group = self.graph.trace.tensors[name].shape[1]
        _, size = _slot(self.graph.structure, name, 1)
        groups = size // per_group
        index = index.view(groups, -1) % per_group
        index = index.repeat_interleave(tensor.shape[0] // groups, 0)
        index = index.view(*index.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
        return tensor.gather(1, index)

    def source(self, name: str) -> Tensor:
        """Flat dense index of every element of the small tensor `name`: ``small.flatten() == dense.flatten()[source]``."""
        shape = self.graph.trace.tensors[name].shape
        return self.gather(name, torch.arange(shape.numel()).view(shape)).flatten()

    @property
    def cut(self) -> list[str]:
        """Names of the tensors that lose places."""
        dense = self.graph.structure.labels.space
        sizes = dict(zip(self.small.labels.space.places, self.small.labels.space.sizes, strict=True))
        places = zip(dense.places, dense.sizes, strict=True)
        return list(dict.fromkeys(name for (name, axis), size in places if sizes.get((name, axis)) != size))


def _slot(structure: Structure, name: str, axis: int) -> tuple[int, int]:
    space = structure.labels.space
    index = space.places.index((name, axis))
    return space.starts[index], space.sizes[index]


def widths_of(graph: ChannelGraph, kept: Flags) -> dict[tuple[str, int], int]:
    """Places that stay on each axis when of all channels the flagged ones do (`kept`: bool per channel)."""
    s = graph.structure
    flags = np.append(kept, True)[s.channel]
    space = s.labels.space
    return {
        place: int(flags[start : start + size].sum())
        for place, start, size in zip(space.places, space.starts, space.sizes, strict=True)
    }


def settle(graph: ChannelGraph, widths: Widths, kept: Flags) -> dict[str, int]:
    """How many channels each group has when the forward runs at these widths.

    Raises
    ------
    Misfit
        If the forward fails there or carries channels otherwise than the dense one.
    """
    run = _try(graph, widths, kept)
    return _count(graph, run, kept)


def fit(graph: ChannelGraph, kept: Flags) -> Fit:
    """Match the small model that keeps exactly these channels (bool per channel) with the dense one.

    Raises
    ------
    Misfit
        If the forward doesn't follow.
    """
    return _match(graph, _try(graph, widths_of(graph, kept), kept), kept)


def fit_recording(graph: ChannelGraph, recording: Trace, kept: Flags) -> Fit:
    """:func:`fit` for a small model that exists already, from a recording of its own forward.

    Raises
    ------
    Misfit
        If it isn't the model that keeps these channels.
    """
    return _match(graph, _read(graph, recording, kept), kept)


def _match(graph: ChannelGraph, run: _Run, kept: Flags) -> Fit:
    counts = _count(graph, run, kept)
    for group in graph.groups:
        wanted = int(kept[group.numbers].sum())
        if counts[group.name] != wanted:
            raise _misfit(graph, run.structure.labels.trace, run.nodes, kept, None, "takes other channels than it did")
    return Fit(graph, run.structure, run.nodes, _assign(graph.structure, run.structure, kept))


def _try(graph: ChannelGraph, widths: Widths, kept: Flags) -> _Run:
    """Run the forward at these widths, on the meta device where the model allows it, else for real."""
    trace = graph.trace
    if not trace.steered:
        try:
            return _run(graph, widths, kept, "meta")
        except Misfit as problem:
            if isinstance(problem.__cause__, Mismatch):
                raise
    return _run(graph, widths, kept, None)


def _run(graph: ChannelGraph, widths: Widths, kept: Flags, device: str | None) -> _Run:
    trace = graph.trace
    tensors = {name: _resized(graph, name, t, widths, device) for name, t in trace.tensors.items() if "_constant_" not in name}
    small = with_tensors(trace.model, tensors, share=True)
    try:
        recording = record(small, trace.inputs.to(device=device) if device else trace.inputs)
    except Unfinished as stop:
        node = next_call(stop.graph, trace.graph)
        raise _misfit(graph, None, align(stop.graph, trace.graph), kept, node, str(stop.__cause__)) from stop.__cause__
    return _read(graph, recording, kept)


def _read(graph: ChannelGraph, recording: Trace, kept: Flags) -> _Run:
    """Label the small model's recording along the dense one."""
    nodes = align(recording.graph, graph.trace.graph)
    try:
        labels = label(recording, Guide(graph.structure.labels, nodes))
    except Mismatch as stop:
        raise _misfit(graph, recording, nodes, kept, stop.node, stop.why) from stop
    return _Run(analyse(labels, nodes), nodes)


def _resized(graph: ChannelGraph, name: str, tensor: Tensor, widths: Widths, device: str | None) -> Tensor:
    shape = list(tensor.shape)
    for plane in graph.structure.labels.space.planes.get(name, ()):
        axis = max(plane.axes)
        size = widths[(name, axis)]
        if len(plane.axes) == 2:  # in-channels of all groups together
            groups = _slot(graph.structure, name, 1)[1] // tensor.shape[1]
            size = -(-size // groups)
        shape[axis] = size
    if device is None:
        return tensor[tuple(slice(size) for size in shape)].clone()
    return torch.empty(shape, dtype=tensor.dtype, device=device)


def _misfit(
    graph: ChannelGraph, recording: Trace | None, nodes: dict[fx.Node, fx.Node], kept: Flags, node: fx.Node | None, why: str
) -> Misfit:
    """Blame the first call whose shape isn't what its channels say, else `node`, and name the cut channels there."""
    dense = graph.structure.labels
    backwards = {theirs: ours for ours, theirs in nodes.items()}
    order = list(graph.trace.graph.nodes)
    for candidate in order:
        small = backwards.get(candidate)
        if candidate in dense.marks and small is not None and _deviates(graph, candidate, small, kept):
            node = candidate
            break
    index = order.index(node) if node is not None else len(order) - 1
    for candidate in reversed(order[: index + 1]):
        channels = _channels_at(graph, candidate, kept)
        if len(channels):
            return Misfit(node or candidate, channels, why)
    return Misfit(node or order[-1], np.flatnonzero(~kept), why)


def _deviates(graph: ChannelGraph, dense: fx.Node, small: fx.Node, kept: Flags) -> bool:
    shape = small.meta.get("shape")
    if shape is None or len(shape) != len(dense.meta["shape"]):
        return shape is not None
    for plane in graph.structure.labels.marks[dense].planes:
        if len(plane.axes) == 1:
            (axis,) = plane.axes
            if int(_flags(graph, plane.labels, kept).sum()) != shape[axis]:
                return True
    return False


def _flags(graph: ChannelGraph, labels: Tensor, kept: Flags) -> Ints:
    return np.append(kept, True)[graph.structure.channel[flat(labels)]]


def _channels_at(graph: ChannelGraph, node: fx.Node, kept: Flags) -> Ints:
    """The cut channels that flow into or out of a dense node."""
    marks = [graph.structure.labels.marks.get(n) for n in (node, *node.all_input_nodes)]
    numbers = [graph.structure.of(p.labels) for m in marks if m is not None for p in m.planes]
    found = np.unique(np.concatenate(numbers)) if numbers else np.zeros(0, dtype=np.int64)
    found = found[found >= 0]
    return found[~kept[found]]


def _count(graph: ChannelGraph, run: _Run, kept: Flags) -> dict[str, int]:
    """Slots of each group's signature; a slot that no dense channel resembles is a misfit."""
    slots = _by_signature(run.structure)
    known = _by_signature(graph.structure)
    if any(len(found) > len(known.get(key, ())) for key, found in slots.items()):
        raise _misfit(graph, run.structure.labels.trace, run.nodes, kept, None, "channels take another way than in the dense model")
    return {group.name: len(slots.get(_key(graph.structure, group), ())) for group in graph.groups}


def _key(structure: Structure, group: Group) -> tuple[int, int]:
    return tuple(int(v) for v in structure.signature[group.numbers[0]])  # type: ignore[return-value]  # two columns


def _by_signature(structure: Structure) -> dict[tuple[int, int], list[int]]:
    """Channels of each signature, in the order of their first label."""
    first = np.full(structure.count + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, structure.channel[1:], np.arange(1, len(structure.channel)))
    found: dict[tuple[int, int], list[int]] = {}
    for number in np.argsort(first[:-1], kind="stable"):
        a, b = structure.signature[number]
        found.setdefault((int(a), int(b)), []).append(int(number))
    return found


def _assign(dense: Structure, small: Structure, kept: Flags) -> Ints:
    """Give every slot a dense channel of the same signature, both in order."""
    known = _by_signature(dense)
    channel = np.full(small.count, -1, dtype=np.int64)
    for key, slots in _by_signature(small).items():
        chosen = [number for number in known.get(key, ()) if kept[number]]
        if len(chosen) != len(slots):
            raise PlanError(f"{len(slots)} places for {len(chosen)} channels: the plan doesn't fit this model")
        channel[slots] = chosen
    return channel
