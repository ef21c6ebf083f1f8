"""Small models for the command line's tests, named after their difficulty; used as ``tests.factories:NAME``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.data import Preprocess


class Small(nn.Module):
    """Two convolutions that can be cut (8 and 12 filters), and a head; any image of at least 4x4 pixels."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Tied(nn.Module):
    """Two names for one convolution's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.once = nn.Conv2d(8, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.once.weight
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.again(torch.relu(self.once(x))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def small() -> nn.Module:
    return Small()


def flat() -> nn.Module:
    """Images of 16 x 16 only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))


def sized(num_classes: int = 5) -> nn.Module:
    """As many outputs as asked for, images made in its own way."""
    return Small(classes=num_classes)


sized.preprocess = Preprocess(16, 18, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # type: ignore[attr-defined]


def two_classes() -> nn.Module:
    return Small(classes=2)


def tied() -> nn.Module:
    return Tied()


def nothing_to_cut() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())


def not_a_number() -> nn.Module:
    model = Small()
    nn.init.constant_(model.head.weight, float("nan"))
    return model


def scripted() -> nn.Module:
    trace: Any = torch.jit.trace  # untyped in torch
    traced = trace(Small().eval(), torch.zeros(1, 3, 16, 16))
    assert isinstance(traced, nn.Module)
    return traced


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))


def quantised() -> nn.Module:
    from torch.ao.nn import quantized

    convolution: Any = quantized.Conv2d  # untyped in torch
    return nn.Sequential(convolution(3, 4, 3))


def no_scores() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3), nn.Flatten(0))


def no_module() -> int:
    return 3
