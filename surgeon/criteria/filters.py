"""What each channel owns: its filters, the weights that read it, the scales of its norms, and what it costs.

A *slice* is all that one weight holds at one position of one of its axes, as a row of numbers. A filter is a slice of
a weight that makes the channel; grouped and transposed convolutions have theirs where their groups lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from surgeon.channels import ChannelGraph, Structure
from surgeon.channels.structure import Flags, Ints
from surgeon.rules import Plane
from surgeon.rules.statistics import BATCH_NORMS
from surgeon.tracing import operator_name

Floats = NDArray[np.float64]
#: Channel numbers ``(n,)`` (-1 at a place without a channel), and a row of numbers for each: ``(n, d)``.
Slices = tuple[Ints, Tensor]

#: Where each norm has its scale among its operands.
_SCALE_AT = {"native_layer_norm": 2, "native_group_norm": 1, **dict.fromkeys(BATCH_NORMS, 1)}


def filters(
    graph: ChannelGraph, tensors: Mapping[str, Tensor] | None = None, *, readers: bool = False
) -> Iterator[Slices]:
    """The filters of the channels, weight by weight.

    Parameters
    ----------
    tensors:
        Stand in for the weights of these names; others are left out. Default: the model's own.
    readers:
        Also the slices of the weights that read the channels.
    """
    structure = graph.structure
    chosen = structure.produced | structure.consumed if readers else structure.produced
    for name, plane in _planes(structure, chosen):
        tensor = (graph.trace.tensors if tensors is None else tensors).get(name)
        if tensor is not None:
            yield _slices(structure, tensor, plane)


def producing(structure: Structure) -> list[str]:
    """Names of the weights that hold filters."""
    return list(dict.fromkeys(name for name, _ in _planes(structure, structure.produced)))


def _planes(structure: Structure, chosen: Flags) -> Iterator[tuple[str, Plane]]:
    """The labelled axes of weights (vectors are no weights) some of whose labels are chosen."""
    for name, planes in structure.labels.space.planes.items():
        for plane in planes:
            if plane.labels.ndim > 1 and chosen[plane.labels.reshape(-1).numpy()].any():
                yield name, plane


def _slices(structure: Structure, tensor: Tensor, plane: Plane) -> Slices:
    """The rows along the plane's axis; of a grouped weight's axis 1 along (group, position)."""
    tensor = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if len(plane.axes) == 1:
        (axis,) = plane.axes
        labels, rows = plane.labels.reshape(-1), tensor.movedim(axis, 0)
    else:  # (0, 1): the rows of a group share its labels
        labels = torch.unique(plane.labels)  # numbered in the order of (group, position)
        per_group = tensor.shape[1]
        grouped = tensor.reshape(len(labels) // per_group, -1, per_group, *tensor.shape[2:])
        rows = grouped.movedim(2, 1)
    return structure.of(labels), rows.reshape(len(labels), -1)


def scales(graph: ChannelGraph, tensors: Mapping[str, Tensor] | None = None) -> Iterator[Slices]:
    """The scales (gamma) of the norms that channels pass through, each norm once; `tensors` as in :func:`filters`."""
    structure = graph.structure
    for name in dict.fromkeys(_scale_names(graph)):
        for plane in structure.labels.space.planes.get(name, ()):
            yield _slices(structure, (graph.trace.tensors if tensors is None else tensors)[name], plane)


def _scale_names(graph: ChannelGraph) -> Iterator[str]:
    for node in graph.trace.calls:
        operands = node.args[_SCALE_AT.get(operator_name(node), len(node.args)) :]
        source = operands[0] if operands else None
        while isinstance(source, fx.Node) and source.op == "call_function" and len(source.all_input_nodes) == 1:
            source = source.all_input_nodes[0]  # an instance norm repeats its scale
        if isinstance(source, fx.Node) and source.op == "get_attr":
            yield str(source.target)


def total(graph: ChannelGraph, slices: Iterable[Slices], value: Callable[[Tensor], Tensor]) -> Floats:
    """Sum over each channel's slices of `value`, which gives a number for each row: ``(channels,)``."""
    summed = np.zeros(graph.structure.count + 1)  # the last entry takes the places without a channel
    for channels, rows in slices:
        np.add.at(summed, channels, value(rows).double().cpu().numpy())
    return summed[:-1]


def average(graph: ChannelGraph, slices: Iterable[Slices], value: Callable[[Tensor], Tensor]) -> Floats:
    """Mean over each channel's slices of `value`; 0 where it has none."""
    summed, number = np.zeros(graph.structure.count), np.zeros(graph.structure.count)
    for found in slices:
        summed += total(graph, [found], value)
        number += total(graph, [found], lambda rows: torch.ones(len(rows)))
    return summed / np.maximum(number, 1)


def channel_macs(graph: ChannelGraph) -> Floats:
    """MACs (one multiply-add is 1) on the example inputs that disappear with each channel alone."""
    structure = graph.structure
    summed: Floats = np.zeros(structure.count)
    for work in structure.labels.ledger.work:
        if work.node.meta["extra"]:
            continue
        kept = np.ones(structure.count)
        for factor in work.factors:  # where a layer reads the channels that it makes, a channel goes from both
            places = structure.of(factor) + 1
            kept *= 1 - np.bincount(places, minlength=structure.count + 1)[1:] / len(places)
        summed += work.macs * (1 - kept)
    return summed


def channel_bytes(graph: ChannelGraph) -> Floats:
    """Bytes of each channel in the results of convolutions and matrix products, on the example inputs."""
    structure = graph.structure
    summed: Floats = np.zeros(structure.count + 1)
    for node in dict.fromkeys(work.node for work in structure.labels.ledger.work):
        mark = structure.labels.marks.get(node)
        if mark is None or mark.constant or node.meta["extra"]:
            continue
        size = int(np.prod(mark.shape)) * node.meta["dtype"].itemsize
        for plane in mark.planes:
            np.add.at(summed, structure.of(plane.labels), size / plane.labels.numel())
    return summed[:-1]
