"""Time by layer, with a clock that we turn ourselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InputError
from surgeon.measure.layers import layer_latency


class Clock:
    """Seconds that pass only when a layer says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sleeps(nn.Module):
    """A layer that takes a while."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return x


def test_each_layer_gets_the_time_of_all_its_calls() -> None:
    clock = Clock()
    shared = Sleeps(clock, 1.0)
    model = nn.Sequential(shared, nn.Sequential(Sleeps(clock, 3.0), nn.ReLU()), shared)
    found = layer_latency({"m": model}, torch.zeros(1), rounds=3, clock=clock)
    assert found == {"m": {"0": 2.0, "1.0": 3.0, "1.1": 0.0}}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert model.training


def test_no_round_is_refused() -> None:
    with pytest.raises(InputError, match="rounds=0"):
        layer_latency({"m": nn.ReLU()}, torch.zeros(1), rounds=0)
