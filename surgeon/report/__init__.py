"""The report: what was cut, what it cost before and after, what stayed and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgeon.channels import ChannelGraph, Pin, layer_of
from surgeon.channels.structure import Flags
from surgeon.cost import Cost
from surgeon.criteria import Scores
from surgeon.deadline import Timing
from surgeon.healing import LayerHealing
from surgeon.report.groups import GroupRow, ScoreHistogram, flow_of, group_rows
from surgeon.tracing import named_modules, named_tensors
from surgeon.verification import Check

__all__ = ["GroupRow", "LayerRow", "Report", "ScoreHistogram", "layer_rows", "make_report", "sizes", "tensor_bytes"]


@dataclass(frozen=True)
class LayerRow:
    """Out-channels of one convolution or linear layer before and after."""

    name: str
    type: str
    before: int
    after: int


@dataclass(frozen=True)
class Report:
    """What happened. MACs count one multiply-add as 1, on the example inputs; bytes are of parameters and buffers.

    `timing` is there where time was planned with: what was predicted, and what was measured. `flow` names the layers in
    the order in which the forward calls them.
    """

    layers: tuple[LayerRow, ...]
    filters_before: int
    filters_after: int
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    check: Check | None
    pinned: tuple[Pin, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    healing: tuple[LayerHealing, ...] = ()
    groups: tuple[GroupRow, ...] = ()
    flow: tuple[str, ...] = ()
    timing: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON can hold."""
        return dataclasses.asdict(self)


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    return sum(t.numel() * t.element_size() for t in named_tensors(model).values())


def filter_counts(graph: ChannelGraph, kept: Flags) -> tuple[int, int]:
    """Convolution filters before and after."""
    numbers = graph.structure.channel[graph.structure.filters]
    return len(numbers), int(kept[numbers].sum())


def sizes(graph: ChannelGraph) -> dict[str, int]:
    """How much the dense model has of what a budget limits: filters, MACs (one multiply-add is 1), parameters."""
    cost = Cost(graph)
    everything = cost.everything()
    filters, _ = filter_counts(graph, everything)
    return {"filters": filters, "max_macs": cost.macs(everything), "max_params": cost.params(everything)}


def layer_rows(graph: ChannelGraph, kept: Flags) -> tuple[LayerRow, ...]:
    """One row for each layer whose weight makes channels; layers that share a weight each have theirs."""
    structure = graph.structure
    space, modules = structure.labels.space, dict(named_modules(graph.trace.model))
    owners = _owners(graph.trace.model)
    rows: dict[str, LayerRow] = {}
    for (tensor, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        if structure.produced[start]:
            after = int(kept[structure.channel[start : start + size]].sum())
            for layer in owners.get(tensor, [layer_of(tensor)]):
                kind = type(modules[layer]).__name__ if layer in modules else "parameter"
                rows.setdefault(layer, LayerRow(layer, kind, size, after))
    return tuple(rows.values())


def _owners(model: nn.Module) -> dict[str, list[str]]:
    """The layers that hold each parameter, by the parameter's first name."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        found.setdefault(first.setdefault(id(tensor), name), []).append(layer_of(name))
    return found


def make_report(
    graph: ChannelGraph, kept: Flags, check: Check | None, notes: tuple[str, ...], scores: Scores | None = None
) -> Report:
    """Put the report together, before the model changes; the bytes after it and the seconds are still to come.

    `scores` are those that the channels of `graph` were chosen by, if they were chosen at once.
    """
    cost = Cost(graph)
    dense = cost.everything()
    before, after = filter_counts(graph, kept)
    return Report(
        layers=layer_rows(graph, kept),
        filters_before=before,
        filters_after=after,
        macs_before=cost.macs(dense),
        macs_after=cost.macs(kept),
        params_before=cost.params(dense),
        params_after=cost.params(kept),
        bytes_before=tensor_bytes(graph.trace.model),
        bytes_after=0,
        check=check,
        pinned=graph.pinned,
        notes=notes,
        groups=group_rows(graph, kept, scores),
        flow=flow_of(graph),
    )
