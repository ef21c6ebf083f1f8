"""Forwards that draw random numbers in eval mode: cut as any others, and checked on the same draws.

Noise follows a width; what a forward seeds itself holds its places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon.errors import VerificationError
from surgeon.rewriting import fit
from surgeon.tracing import named_tensors
from tests.networks import redraw
from tests.oracle import compare

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


class Drawing(nn.Module):
    """Two layers with `middle` between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale, self.second = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.second(self.middle(self.first(x), self.scale(x).tanh().exp()))))

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError


class Sampled(Drawing):
    """What a variational autoencoder does."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        return mean + scale * torch.randn_like(mean)


class WrittenInPlace(Drawing):
    """Fresh memory that is filled."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        return mean + scale * torch.empty(mean.shape).uniform_(-1, 1)


class FromDistribution(Drawing):
    """Normal.sample, which draws around a mean."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        drawn: Tensor = Normal(mean, scale, validate_args=False).sample()  # type: ignore[no-untyped-call]  # torch's
        return drawn


class NoiseOverExamples(Drawing):
    """One number for each place in time, the same for all channels."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        return mean * torch.rand(mean.shape[0], mean.shape[1], 1) + scale


_LIBRARY: Any = torch.library.Library("noise", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped
_LIBRARY.define("pair(Tensor x) -> (Tensor, Tensor)", tags=(torch.Tag.nondeterministic_seeded,))
_LIBRARY.impl("pair", lambda x: (x + torch.rand_like(x), x.clone()), "CompositeExplicitAutograd")


class TwoResults(Drawing):
    """An operator of a library that draws, and gives two tensors."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        kept: Tensor = torch.ops.noise.pair(mean.sum(-1, keepdim=True))[1]
        return mean * scale + 0 * kept


class SomePlaces(Drawing):
    """Places in time that are drawn: by number, and by sorting noise."""

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        mean = mean[:, torch.randint(mean.shape[1], (3,))]
        order = torch.rand(mean.shape[:2]).argsort(1)[:, :, None].expand_as(mean)
        return mean.gather(1, order) * scale[torch.randperm(scale.shape[0])].mean(1, keepdim=True)


class Noisy(Drawing):
    """Noise of any kind beside the values."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        return mean + 0.1 * scale * self.draw(mean)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda x: torch.randn(x.shape),
    "randint_like": lambda x: torch.randint_like(x, 5),
    "along the channels alone": lambda x: torch.rand(x.shape[-1]),
    "for all channels": lambda x: x.new_empty(*x.shape[:-1], 1).normal_(),
    "logarithms": lambda x: torch.empty_like(x).log_normal_(),
    "in a size": lambda x: torch.normal(0.0, 1.0, x.shape),
    "about a mean": lambda x: torch.normal(x, x.exp()),
}


@pytest.mark.parametrize("name", DRAWS)
def test_noise_of_any_kind_is_no_difference(name: str) -> None:
    result = surgeon.prune(Noisy(DRAWS[name]).eval(), X, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.get_parameter("first.weight").shape == (8, 8)


NETWORKS = (Sampled, WrittenInPlace, FromDistribution, NoiseOverExamples, SomePlaces)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_cut_and_proven(network: type[Drawing]) -> None:
    result = surgeon.prune(network().eval(), X, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert {name: tuple(p.shape) for name, p in result.model.named_parameters() if name.endswith("weight")} == {
        "first.weight": (8, 8), "scale.weight": (8, 8), "second.weight": (12, 8), "head.weight": (5, 12),
    }  # fmt: skip
    assert result.model(X[:2]).shape[-1] == 5


@pytest.mark.parametrize("network", NETWORKS)
def test_noise_hides_no_wrong_weight(network: type[Drawing]) -> None:
    model = network().eval()
    result = surgeon.prune(model, X, ratio=0.5, scope="local", criterion="random", verify=False)
    for name in named_tensors(result.model):
        wrong = copy.deepcopy(result.model)
        with torch.no_grad():
            named_tensors(wrong)[name].view(-1)[-1] += 0.5
        with pytest.raises(VerificationError, match=r"first at \w+ in "):
            surgeon.verify(model, wrong, result.plan, X)


def test_a_check_draws_nothing_of_the_callers() -> None:
    model = Sampled().eval()
    result = surgeon.prune(model, X, ratio=0.5, criterion="random", verify=False)
    before = torch.get_rng_state()
    surgeon.verify(model, result.model, result.plan, X)
    assert torch.equal(torch.get_rng_state(), before)


class DrawnChannels(Drawing):
    """Each time other channels: none of them may go."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def middle(self, mean: Tensor, scale: Tensor) -> Tensor:
        if self.way == "number":
            return mean[..., torch.randint(16, (16,))] * scale
        if self.way == "order":
            return mean[..., torch.randperm(16)] * scale
        return mean.index_select(-1, torch.rand(16).topk(16)[1]) * scale


@pytest.mark.parametrize("way", ["number", "order", "noise"])
def test_channels_that_are_drawn_by_number_stay(way: str) -> None:
    result = surgeon.prune(DrawnChannels(way).eval(), X, ratio=0.5, scope="local", criterion="random")
    (pin,) = [pin for pin in result.report.pinned if pin.layer == "first"]
    assert pin.reason.startswith("mixes channels in index")
    assert result.model.get_parameter("first.weight").shape == (16, 8)


# --- noise follows a width; what a forward seeds itself holds its places


class Autoencoder(nn.Module):
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


class BySize(Autoencoder):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.rand(mean.shape[0], mean.shape[1], dtype=mean.dtype)


class WholeNumbers(Autoencoder):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.randint(-2, 3, (mean.shape[1],)).to(mean.dtype)


class OfTheInput(Autoencoder):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + torch.randn_like(x))


class Reversed(Autoencoder):
    """The same noise again, the other way round: which two channels share a number follows from where they stand."""

    def noise(self, mean: Tensor) -> Tensor:
        drawn = torch.randn_like(mean)
        return drawn + mean * drawn.flip(1)


class SeededInside(Autoencoder):
    def noise(self, mean: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return torch.randn_like(mean)


class OwnGenerator(Autoencoder):
    def noise(self, mean: Tensor) -> Tensor:
        return torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(5), dtype=mean.dtype)


def drawn(kind: type[Autoencoder]) -> Autoencoder:
    torch.manual_seed(0)
    model = kind().double().eval()
    redraw(model, 0)
    return model


CODED = torch.randn(4, 8, dtype=torch.float64)


@pytest.mark.parametrize("kind", [Autoencoder, BySize, WholeNumbers, OfTheInput])
def test_noise_follows_the_width(kind: type[Autoencoder]) -> None:
    model = drawn(kind)
    result: Any = surgeon.prune(model, CODED, ratio=0.5, scope="local", criterion="random")
    assert result.report.check.status == "passed"
    assert result.model.mean.out_features == 3
    assert result.model.decode.out_features == 5
    source = fit(model, result.plan, surgeon.Inputs.of(CODED)).source
    model.level = result.model.level = 0.0  # without its noise, by the oracle
    compare(model, result.model, source, CODED)


@pytest.mark.parametrize("kind", [SeededInside, OwnGenerator, Reversed])
def test_numbers_that_are_more_than_noise_hold_their_places(kind: type[Autoencoder]) -> None:
    result: Any = surgeon.prune(drawn(kind), CODED, ratio=0.5, scope="local", criterion="random")
    assert result.report.check.status == "passed"
    assert result.model.mean.out_features == 6
    assert result.model.decode.out_features == 5


def test_what_draws_several_results_stops_nothing() -> None:
    result = surgeon.prune(TwoResults().eval(), X, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status in ("passed", "unproven")
    assert result.model(X).shape == (4, 6, 5)
