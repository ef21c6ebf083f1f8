"""Run the user's own forward at other widths and read where the channels go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph, Guide, Mismatch, Structure, analyse, label
from surgeon.channels.structure import Flags
from surgeon.tracing import Trace, Unfinished, record
from surgeon.trial.alignment import align, next_call
from surgeon.trial.arrivals import Attributes, arrivals
from surgeon.trial.blame import Misfit, find_misfit
from surgeon.trial.folding import Fold, find_fold
from surgeon.trial.numbers import changed_numbers
from surgeon.trial.skeleton import with_tensors

#: New size of each axis: (tensor name, axis) -> places kept on it.
Widths = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Run:
    """One successful trial: the small channels (slots), the dense node of each small node, and numbers to fold."""

    structure: Structure
    nodes: dict[fx.Node, fx.Node]
    folds: tuple[Fold, ...]


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
    folds = []
    for changed, other in changed_numbers(recording, graph.trace, nodes):
        found = find_fold(graph, changed, other)
        if found is None:
            raise find_misfit(graph, nodes, kept, changed, "a number in the forward depends on the width", exactly=True)
        folds.append(found)
    return Run(analyse(labels, nodes), nodes, tuple(folds))


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
