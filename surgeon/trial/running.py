"""Run the user's own forward at other widths and read where the channels go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.channels import ChannelGraph, Guide, Mismatch, Structure, analyse, label
from surgeon.channels.structure import Flags
from surgeon.rules import POINTWISE
from surgeon.tracing import Trace, Unfinished, record
from surgeon.trial.alignment import align, next_call
from surgeon.trial.arrivals import Attributes, arrivals
from surgeon.trial.blame import Misfit, find_misfit
from surgeon.trial.skeleton import with_tensors

#: New size of each axis: (tensor name, axis) -> places kept on it.
Widths = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Run:
    """One successful trial: the small recording, its channels (slots) and the dense node of each of its nodes."""

    structure: Structure
    nodes: dict[fx.Node, fx.Node]


def widths_of(graph: ChannelGraph, kept: Flags) -> dict[tuple[str, int], int]:
    """Places that stay on each axis when of all channels the flagged ones do (`kept`: bool per channel)."""
    s = graph.structure
    flags = np.append(kept, True)[s.channel]
    space = s.labels.space
    return {
        place: int(flags[start : start + size].sum())
        for place, start, size in zip(space.places, space.starts, space.sizes, strict=True)
    }


def slot(structure: Structure, name: str, axis: int) -> tuple[int, int]:
    """First label and number of labels of one axis of a tensor."""
    space = structure.labels.space
    index = space.places.index((name, axis))
    return space.starts[index], space.sizes[index]


def run_at(graph: ChannelGraph, widths: Widths, kept: Flags, attributes: Attributes) -> Run:
    """Run the forward at these widths, on the meta device where the model allows it, else for real."""
    trace = graph.trace
    if not trace.steered:
        try:
            return _run(graph, widths, kept, attributes, "meta")
        except Misfit as problem:
            if isinstance(problem.__cause__, Mismatch):
                raise
    return _run(graph, widths, kept, attributes, None)


def _run(graph: ChannelGraph, widths: Widths, kept: Flags, attributes: Attributes, device: str | None) -> Run:
    trace = graph.trace
    tensors = {
        name: _resized(graph, name, t, widths, device) for name, t in trace.tensors.items() if "_constant_" not in name
    }
    small = with_tensors(trace.model, tensors, {**arrivals(graph, kept), **attributes}, share=True)
    try:
        recording = record(small, trace.inputs.to(device=device) if device else trace.inputs)
    except Unfinished as stop:
        node = next_call(stop.graph, trace.graph)
        raise find_misfit(graph, align(stop.graph, trace.graph), kept, node, str(stop.__cause__)) from stop.__cause__
    return read_recording(graph, recording, kept)


def read_recording(graph: ChannelGraph, recording: Trace, kept: Flags) -> Run:
    """Label the small model's recording along the dense one."""
    nodes = align(recording.graph, graph.trace.graph)
    try:
        labels = label(recording, Guide(graph.structure.labels, nodes))
    except Mismatch as stop:
        raise find_misfit(graph, nodes, kept, stop.node, stop.why) from stop
    changed = changed_number(recording, graph.trace, nodes)
    if changed is not None:
        raise find_misfit(graph, nodes, kept, changed, "a number in the forward depends on the width", exactly=True)
    return Run(analyse(labels, nodes), nodes)


def changed_number(small: Trace, dense: Trace, nodes: Mapping[fx.Node, fx.Node]) -> fx.Node | None:
    """The first dense call whose numbers are others at the small widths, sizes of data movement apart."""
    theirs = {dense_node: node for node, dense_node in nodes.items()}
    for node in dense.graph.nodes:
        other = theirs.get(node)
        if other is None:
            continue
        if node.op == "call_function" and _numbers(node) != _numbers(other):
            return node  # type: ignore[no-any-return]  # fx types its nodes as Any here
        if node.op == "get_attr" and _other_constant(dense.tensors[str(node.target)], small.tensors[str(other.target)]):
            return next(iter(node.users), None)
    return None


def _numbers(node: fx.Node) -> list[Any]:
    """Numbers among the arguments: floats of any call, whole ones of elementwise calls."""
    packet = getattr(node.target, "overloadpacket", None)
    kinds = (int, float) if packet is not None and packet.__name__ in POINTWISE else (float,)
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, kinds) and not isinstance(leaf, bool)]


def _other_constant(dense: Tensor, small: Tensor) -> bool:
    """Whether a constant that the forward makes (not a parameter: those were resized) has other values."""
    if dense.ndim or small.ndim or "meta" in (dense.device.type, small.device.type):
        return False
    return dense.item() != small.item()


def _resized(graph: ChannelGraph, name: str, tensor: Tensor, widths: Widths, device: str | None) -> Tensor:
    shape = list(tensor.shape)
    for plane in graph.structure.labels.space.planes.get(name, ()):
        axis = max(plane.axes)
        size = widths[(name, axis)]
        if len(plane.axes) == 2:  # in-channels of all groups together
            groups = slot(graph.structure, name, 1)[1] // tensor.shape[1]
            size = -(-size // groups)
        shape[axis] = size
    if device is None:
        return tensor[tuple(slice(size) for size in shape)].clone()
    return torch.empty(shape, dtype=tensor.dtype, device=device)
