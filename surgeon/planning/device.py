"""What planning has to know of the device: how long models take on it, and in which steps widths are worth cutting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surgeon.channels import ChannelGraph
from surgeon.cost import Latency, Place, channel_step, open_table
from surgeon.errors import BudgetError
from surgeon.planning.budgets import TIME, limits_of

#: The `round_to` that stands for the device's own step.
AUTO = "auto"


@dataclass(frozen=True)
class Device:
    """What planning knows of the device: predicted latency where it is asked for, and the step of widths."""

    latency: Latency | None
    step: int


def timing_of(
    graph: ChannelGraph,
    asked: Mapping[str, Any],
    round_to: int | str | None,
    latency: Latency | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Device:
    """Measure what these amounts and `round_to` need to know of the device, and no more."""
    limited = limits_of(asked)
    timed = TIME in limited
    if latency is None and round_to != AUTO and not timed:
        return Device(None, 1 if round_to is None else int(round_to))
    table = latency.table if latency is not None else open_table(_place_of(graph))
    step = round_to if isinstance(round_to, int) else channel_step(table)
    if not limited:
        return Device(None, step)
    return Device(latency or Latency(graph, table, step=max(step, 8), progress=progress), step)


def _place_of(graph: ChannelGraph) -> Place:
    """Where the model runs; a kernel without numbers takes no time that means anything."""
    place = Place.of(graph.trace.inputs)
    if torch.device(place.device).type == "meta":
        raise BudgetError(
            f"{TIME} and round_to={AUTO!r} need the model to run, and on the meta device it has no numbers to run on: "
            "give max_macs or max_params, and round_to a number"
        )
    return place
