"""Forwards that draw random numbers: noise follows a width; what a forward seeds itself holds its places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.rewriting import fit
from tests.networks import redraw
from tests.oracle import compare


class Noisy(nn.Module):
    """An autoencoder whose code is drawn, as a variational one's; `level` of it is noise."""

    level = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(12, 6)
        self.decode, self.out = nn.Linear(6, 10), nn.Linear(10, 8)

    def noise(self, mean: Tensor) -> Tensor:
        return torch.randn_like(mean)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.encode(x))
        mean = self.mean(hidden)
        code = mean + self.level * self.noise(mean) * torch.exp(self.spread(hidden))
        return self.out(torch.relu(self.decode(code)))


class BySize(Noisy):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.rand(mean.shape[0], mean.shape[1], dtype=mean.dtype)


class WholeNumbers(Noisy):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.randint(-2, 3, (mean.shape[1],)).to(mean.dtype)


class OfTheInput(Noisy):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + torch.randn_like(x))


class Reversed(Noisy):
    """The same noise again, the other way round: which two channels share a number follows from where they stand."""

    def noise(self, mean: Tensor) -> Tensor:
        drawn = torch.randn_like(mean)
        return drawn + mean * drawn.flip(1)


class SeededInside(Noisy):
    def noise(self, mean: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return torch.randn_like(mean)


class OwnGenerator(Noisy):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(5), dtype=mean.dtype)


def drawn(kind: type[Noisy]) -> Noisy:
    torch.manual_seed(0)
    model = kind().double().eval()
    redraw(model, 0)
    return model


X = torch.randn(4, 8, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Noisy, BySize, WholeNumbers, OfTheInput])
def test_noise_follows_the_width(kind: type[Noisy]) -> None:
    model = drawn(kind)
    result: Any = surgeon.prune(model, X, ratio=0.5, scope="local", criterion="random")
    assert result.report.check.status == "passed"
    assert result.model.mean.out_features == 3
    assert result.model.decode.out_features == 5
    source = fit(model, result.plan, surgeon.Inputs.of(X)).source
    model.level = result.model.level = 0.0  # without its noise, by the oracle
    compare(model, result.model, source, X)


@pytest.mark.parametrize("kind", [SeededInside, OwnGenerator, Reversed])
def test_numbers_that_are_more_than_noise_hold_their_places(kind: type[Noisy]) -> None:
    result: Any = surgeon.prune(drawn(kind), X, ratio=0.5, scope="local", criterion="random")
    assert result.report.check.status == "passed"
    assert result.model.mean.out_features == 6
    assert result.model.decode.out_features == 5


def test_the_check_draws_nothing_from_the_callers_generator() -> None:
    model = drawn(Noisy)
    state = torch.get_rng_state()
    surgeon.prune(model, X, ratio=0.5, scope="local", criterion="magnitude")
    assert torch.equal(state, torch.get_rng_state())
