"""For every layer that must keep filters or neurons: how many, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from surgeon.channels.structure import Ints, layer_of
from surgeon.channels.unreached import unreached
from surgeon.rules import reasons
from surgeon.tracing import named_modules

if TYPE_CHECKING:
    from surgeon.channels.graph import ChannelGraph

#: A reason, and the source line that it is about.
Why = tuple[str, str | None]


@dataclass(frozen=True)
class Pin:
    """Why `channels` of the `of` filters (or neurons) of a layer can't be removed.

    The reason is one of those of :mod:`surgeon.rules.reasons`.
    """

    layer: str
    reason: str
    source: str | None
    channels: int
    of: int


def find_pins(graph: ChannelGraph) -> tuple[Pin, ...]:
    """One row for each layer that must keep channels, with the reason of the first of them."""
    direct = _direct(graph)
    why = {**_tied(graph, direct), **direct}
    rows = _kept_rows(graph, why)
    rows |= {name: pin for name, pin in _whole_layers(graph, why) if name not in rows}
    return tuple(rows.values())


def _kept_rows(graph: ChannelGraph, why: Mapping[int, Why]) -> dict[str, Pin]:
    structure = graph.structure
    rows: dict[str, Pin] = {}
    sizes: Counter[str] = Counter()
    space = structure.labels.space
    for (tensor, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        if structure.produced[start]:
            layer = layer_of(tensor)
            sizes[layer] += size
            found = [why[n] for n in structure.channel[start : start + size].tolist() if n in why]
            if found:
                row = rows.setdefault(layer, Pin(layer, *found[0], 0, 0))
                rows[layer] = replace(row, channels=row.channels + len(found))
    return {layer: replace(row, of=sizes[layer]) for layer, row in rows.items()}


def _direct(graph: ChannelGraph) -> dict[int, Why]:
    """Channels that were pinned: by the label pass, or later; what the user asked for comes first."""
    structure = graph.structure
    found: dict[int, Why] = dict(graph.extra)
    for number in np.flatnonzero(structure.pinned >= 0).tolist():
        pin = structure.pins[structure.pinned[number]]
        site = pin.node.meta.get("site")
        source = str(site.source) if site is not None and site.source else None
        if graph.extra.get(number, ("",))[0] != reasons.IGNORED:
            found[number] = (pin.reason, source)
    return found


def _tied(graph: ChannelGraph, direct: dict[int, Why]) -> dict[int, Why]:
    """Channels of groups that stay whole, or of a single channel: because of others in the group or in its layers."""
    free = {group.name for group in graph.groups if group.size > 1}
    found: dict[int, Why] = {}
    for group in graph.named.values():
        if group.name not in free:
            numbers = group.numbers.tolist()
            own = next((direct[n] for n in numbers if n in direct), None)
            why = own or _neighbour(graph, group.producers, direct) or (reasons.EMPTY, None)
            found |= dict.fromkeys(numbers, why)
    return found


def _neighbour(graph: ChannelGraph, layers: tuple[str, ...], direct: dict[int, Why]) -> Why | None:
    """Why other channels of these layers stay, which these must stay even with."""
    structure = graph.structure
    space = structure.labels.space
    for (tensor, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        if structure.produced[start] and layer_of(tensor) in layers:
            for number in structure.channel[start : start + size].tolist():
                if number in direct:
                    return direct[number]
    return None


def _whole_layers(graph: ChannelGraph, why: Mapping[int, Why]) -> Iterator[tuple[str, Pin]]:
    """Layers with a weight that makes no channel that is known."""
    model = graph.trace.model
    missed = dict(unreached(graph.trace))
    placed = _placed(graph)
    made = {layer for group in graph.groups for layer in group.producers}
    for name, module in named_modules(model):
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2 or name in made:
            continue
        width = _width(module, weight)
        if not weight.is_floating_point():
            yield name, Pin(name, reasons.NOT_FLOAT, None, width, width)
        elif name in missed:
            yield name, Pin(name, reasons.UNREACHED, None, width, width)
        elif width == 1:
            yield name, Pin(name, reasons.EMPTY, None, 1, 1)
        elif name in placed and (graph.group_of[placed[name]] < 0).all():
            found = (why[n] for n in placed[name].tolist() if n in why)
            yield name, Pin(name, *next(found, (reasons.UNKNOWN, None)), width, width)


def _placed(graph: ChannelGraph) -> Mapping[str, Ints]:
    """The channels along all axes of each layer's tensors, by the first name of each."""
    found = defaultdict[str, list[Ints]](list)
    for name, axis in graph.structure.labels.space.places:
        found[layer_of(name)].append(graph.structure.along(name, axis))
    return {layer: np.concatenate(channels) for layer, channels in found.items()}


def _width(module: nn.Module, weight: Tensor) -> int:
    if getattr(module, "transposed", False):
        return weight.shape[1] * int(getattr(module, "groups", 1))
    return weight.shape[0]


def held_most(pins: Iterable[Pin], count: int = 3) -> str:
    """The reasons that keep most filters and neurons whole, outputs apart; empty if there are none."""
    held: Counter[str] = Counter()
    for pin in pins:
        held[pin.reason] += pin.channels if pin.reason != reasons.OUTPUT else 0
    return ", ".join(f"{reason} ({channels:,})" for reason, channels in held.most_common(count) if channels)
