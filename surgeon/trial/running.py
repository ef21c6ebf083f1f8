"""Run the user's own forward at other widths and read where the channels go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn

from surgeon.channels import ChannelGraph, Guide, Mismatch, Structure, analyse, label
from surgeon.channels.structure import Flags
from surgeon.tracing import Trace, Unfinished, record
from surgeon.tracing.parts import StepError
from surgeon.trial.alignment import align, next_call, same_calls, strays
from surgeon.trial.arrivals import arrivals
from surgeon.trial.blame import Misfit, find_misfit
from surgeon.trial.folding import Fold, find_folds
from surgeon.trial.numbers import changed_numbers
from surgeon.trial.renumbering import ChannelNumbers, renumbered
from surgeon.trial.skeleton import with_tensors
from surgeon.trial.targets import Settings

_NONE: ChannelNumbers = {}
#: New size of each axis: (tensor name, axis) -> places kept on it.
Widths = Mapping[tuple[str, int], int]


@dataclass(frozen=True)
class Run:
    """One successful trial: the small channels (slots), the dense node of each, numbers to fold or to set."""

    structure: Structure
    nodes: dict[fx.Node, fx.Node]
    folds: tuple[Fold, ...]
    numbers: ChannelNumbers


def widths_of(graph: ChannelGraph, kept: Flags) -> dict[tuple[str, int], int]:
    """Places that stay on each axis when of all channels the flagged ones do (`kept`: bool per channel)."""
    s = graph.structure
    flags = np.append(kept, True)[s.channel]
    space = s.labels.space
    return {
        place: int(flags[start : start + size].sum())
        for place, start, size in zip(space.places, space.starts, space.sizes, strict=True)
    }


def run_at(graph: ChannelGraph, widths: Widths, kept: Flags, settings: Settings) -> Run:
    """Run the forward at these widths: on the meta device where it runs there as it did, else for real.

    Raises
    ------
    Misfit
        If the forward fails or carries channels otherwise than the dense one.
    """
    everything = {**arrivals(graph, kept), **settings}
    recording = None
    try:
        if _agrees_on_meta.get(graph.trace.graph, True):
            recording = _on_meta(graph, widths, everything)
    except Unfinished as stop:
        if _same_on_meta(graph):
            raise _stopped(graph, stop, kept) from stop.__cause__
    if recording is None:
        recording = _for_real(graph, widths, kept, everything)
    elsewhere = strays(recording.graph, graph.trace.graph) if settings else None
    if elsewhere is not None:  # a number was set that means a way to go, and no width
        why = "a number that was taken for a width takes the forward another way"
        raise find_misfit(graph, {}, kept, elsewhere, why, exactly=True)
    return read_recording(graph, recording, kept)


def _on_meta(graph: ChannelGraph, widths: Widths, settings: Settings) -> Trace | None:
    """A recording without numbers; None if the forward takes other operators there than on its own device."""
    small = _skeleton(graph, widths, settings, "meta")
    recording = record(small, graph.trace.inputs.to(device="meta"), graph.trace)
    return recording if same_calls(recording.graph, graph.trace.graph) else None


#: Of each dense recording whether it comes out the same on the meta device.
_agrees_on_meta: WeakKeyDictionary[fx.Graph, bool] = WeakKeyDictionary()


def _same_on_meta(graph: ChannelGraph) -> bool:
    """Whether the dense forward runs on the meta device as it does for real: then what fails there fails for real."""
    known = graph.trace.by_shapes or _agrees_on_meta.get(graph.trace.graph)
    if known is None:
        whole = np.ones(graph.structure.count, dtype=bool)
        try:
            recording = _on_meta(graph, widths_of(graph, whole), arrivals(graph, whole))
            known = recording is not None and not graph.trace.decisions
        except Unfinished:
            known = False
        _agrees_on_meta[graph.trace.graph] = known
    return known


def _for_real(graph: ChannelGraph, widths: Widths, kept: Flags, settings: Settings) -> Trace:
    small = _skeleton(graph, widths, settings, None, renumbered(graph, kept))
    try:
        return record(small, graph.trace.inputs, graph.trace)
    except Unfinished as stop:
        raise _stopped(graph, stop, kept) from stop.__cause__


def _stopped(graph: ChannelGraph, stop: Unfinished, kept: Flags) -> Misfit:
    """Where a forward came to a stop."""
    dense = graph.trace.graph
    node = next_call(stop.graph, dense)
    misfit = find_misfit(graph, align(stop.graph, dense), kept, node, str(stop.__cause__))
    misfit.stopped = True
    misfit.step = stop.__cause__.step if isinstance(stop.__cause__, StepError) else 1
    return misfit


def _skeleton(
    graph: ChannelGraph, widths: Widths, settings: Settings, device: str | None, numbers: ChannelNumbers = _NONE
) -> nn.Module:
    """A copy of the model with tensors of these widths, and these numbers in those that hold numbers of channels."""
    named = {name: t for name, t in graph.trace.tensors.items() if not name.startswith("_constant_")}
    tensors = {name: _resized(graph, name, t, widths, device) for name, t in named.items()}
    tensors |= {name: value.to(tensors[name].device, tensors[name].dtype) for name, value in numbers.items()}
    return with_tensors(graph.trace.model, tensors, settings, share=True)


def read_recording(graph: ChannelGraph, recording: Trace, kept: Flags) -> Run:
    """Label the small model's recording along the dense one."""
    nodes = align(recording.graph, graph.trace.graph)
    _leave_open(nodes)
    numbers = renumbered(graph, kept)
    try:
        labels = label(recording, Guide(graph.structure.labels, nodes, numbers))
    except Mismatch as stop:
        elsewhere = strays(recording.graph, graph.trace.graph)  # what comes behind another way is only its consequence
        raise find_misfit(graph, nodes, kept, elsewhere or stop.node, stop.why, exactly=elsewhere is not None) from stop
    resized = _resized_output(recording, graph.trace)
    if resized is not None:
        raise find_misfit(graph, nodes, kept, resized, "the size of a result depends on the width", exactly=True)
    folds, changed = find_folds(graph, changed_numbers(recording, graph.trace, nodes))
    if changed is not None:
        misfit = find_misfit(graph, nodes, kept, changed, "a number in the forward depends on the width", exactly=True)
        misfit.numeric = True
        raise misfit
    return Run(analyse(labels, nodes), nodes, tuple(folds), numbers)


def _leave_open(nodes: dict[fx.Node, fx.Node]) -> None:
    """Where numbers of single channels are ranked, the cut run has decided on its own: each replay does so, too."""
    for small, dense in nodes.items():
        ours, theirs = small.meta.get("decision"), dense.meta.get("decision")
        if isinstance(ours, Tensor) and (not isinstance(theirs, Tensor) or ours.shape != theirs.shape):
            del small.meta["decision"]
            dense.meta.pop("decision", None)


def _resized_output(small: Trace, dense: Trace) -> fx.Node | None:
    """The first result of the dense forward that has another shape at the small widths."""
    pairs = zip(_results(dense), _results(small), strict=False)
    return next((d for d, s in pairs if d is not None and s is not None and d.meta["shape"] != s.meta["shape"]), None)


def _results(trace: Trace) -> list[fx.Node | None]:
    (output,) = (node for node in trace.graph.nodes if node.op == "output")
    return list(output.args[0])


def _resized(graph: ChannelGraph, name: str, tensor: Tensor, widths: Widths, device: str | None) -> Tensor:
    shape = list(tensor.shape)
    for plane in graph.structure.labels.space.planes.get(name, ()):
        axis = max(plane.axes)
        size = widths[(name, axis)]
        if len(plane.axes) == 2:  # in-channels of all groups together
            groups = len(graph.structure.along(name, 1)) // tensor.shape[1]
            size = -(-size // groups)
        shape[axis] = size
    if device is None and tensor.shape == torch.Size(shape):
        return tensor.clone()  # a sparse tensor has no slices
    if device is None:
        return tensor[tuple(slice(size) for size in shape)].clone()
    return torch.empty(shape, dtype=tensor.dtype, device=device)
