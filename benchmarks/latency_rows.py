"""What rows of ``latency.py`` are made of: networks, images, times, and figures beside their targets."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torchvision
from accuracy_task import IMAGENET
from common import trained
from timing import spread
from torch import nn

import surgeon
from surgeon.measure import Comparison

Row = dict[str, Any]


def target(value: float, rule: str, bound: float) -> Row:
    """A figure beside its target."""
    return {"value": value, "rule": rule, "bound": bound, "met": value >= bound if rule == ">=" else value <= bound}


def network(name: str, device: torch.device) -> nn.Module:
    """A torchvision network with random weights, or the trained one; in eval mode. Raises MissingError."""
    if name == IMAGENET:
        return trained(name, device)[0]
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None).eval().to(device)
    return model


def images(batch: int, options: argparse.Namespace, device: torch.device) -> torch.Tensor:
    """Random images of the size that was asked for."""
    return random_images(batch, options.image_size, device)


def random_images(batch: int, size: int, device: torch.device) -> torch.Tensor:
    """Random images, always the same."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def times(measured: Comparison) -> Row:
    """Medians, quartiles and samples of every model, in seconds."""
    return {name: spread(values) for name, values in measured.samples.items()} | {
        "noisy": [found.name for found in measured.latencies if found.noisy]
    }


def pace(measured: Comparison, macs: dict[str, int], key: str) -> Row:
    """Speed-up, MACs ratio, and the one over the other."""
    speed_up, ratio = measured.speed_up(key, "dense"), macs["dense"] / macs[key]
    return {"speed_up": speed_up.to_dict(), "macs_ratio": ratio, "efficiency": speed_up.ratio / ratio}


def kept_of(scores: surgeon.Scores, graph: surgeon.ChannelGraph, plan: surgeon.Plan) -> float:
    """Share of the score of all removable channels that a plan keeps."""
    values, which = scores.normalised[graph.removable], plan.kept(graph)[graph.removable]
    return float(values[which].sum()) / float(values.sum())
