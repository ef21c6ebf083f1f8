"""Chains and graphs to plan on, and what a plan takes of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, settings
from torch import nn

import surgeon
from surgeon.channels import ChannelGraph
from surgeon.cost import Cost
from surgeon.planning import Plan
from tests.zoo.base import conv

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths in a row; the last one's channels are the output."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [conv(before, after), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(*layers[:-1])


def graph_of(model: nn.Module, inputs: Any = X) -> ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(model, inputs))


def plan_of(graph: ChannelGraph, /, *, criterion: str = "magnitude", **amounts: Any) -> Plan:
    return surgeon.make_plan(graph, surgeon.score(graph, criterion), **amounts)


def gone(plan: Plan) -> dict[str, int]:
    return {name: len(channels) for name, channels in plan.removed.items()}


def widths_of(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def filters_of(model: nn.Module) -> int:
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return sum(m.out_channels for m in model.modules() if isinstance(m, convolutions))


def costs(graph: ChannelGraph, plan: Plan) -> dict[str, tuple[int, int]]:
    """MACs and parameters before and after."""
    cost, kept = Cost(graph), plan.kept(graph)
    return {n: (m(cost.everything()), m(kept)) for n, m in (("max_macs", cost.macs), ("max_params", cost.params))}
