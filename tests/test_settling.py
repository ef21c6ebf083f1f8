"""Batch norms behind healed layers: the same function as before, and the same in train mode as in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import finegrained
from surgeon.errors import HealingError
from surgeon.healing import settle
from tests.networks import redraw


def images(count: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Deep(nn.Module):
    """Two convolutions, each with a norm behind it."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), norm(8)
        self.second, self.last = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.second(self.norm(self.first(x)).relu()))
        return found


def made(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model whose norms have other statistics than what reaches them."""
    return redraw(model.to(dtype), 0).eval()


@torch.no_grad()
def in_train_mode(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = copy.deepcopy(model).train()(x)
    return found


def off(expected: Tensor, found: Tensor) -> float:
    return float(((expected - found).norm() / expected.norm()).detach())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_eval_mode_computes_what_it_did_and_train_mode_the_same() -> None:
    model, x = made(Deep()), images()
    expected = model(x).detach()
    assert off(expected, in_train_mode(model, x)) > 0.1
    settle(model, torch.split(x, 32))
    assert off(expected, model(x)) < 1e-12
    assert off(expected, in_train_mode(model, x)) < 0.01  # batches of other sizes, other estimates of a variance


def test_a_norm_may_be_used_twice_and_called_by_the_name_of_its_argument() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(input=self.norm(input=x).relu())
            return found

    model, x = made(Twice()), images()
    expected, before = model(x).detach(), state(model)
    settle(model, [x])
    assert off(expected, model(x)) < 1e-12
    assert not same(model, before)


class Own(nn.BatchNorm2d):
    """Shifts by a square."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        assert self.bias is not None
        return super().forward(input) + self.bias.square()[:, None, None]


@pytest.mark.parametrize(
    "norm",
    [
        lambda n: nn.BatchNorm2d(n, affine=False),
        lambda n: nn.BatchNorm2d(n, track_running_stats=False),
        Own,
    ],
)
def test_norms_that_would_compute_something_else_stay(norm: Any) -> None:
    model: Any = made(Deep(norm))
    expected, before, last = model(images()).detach(), state(model.norm), state(model.last)
    settle(model, [images()])
    assert same(model.norm, before)
    assert not same(model.last, last)
    assert off(expected, model(images())) < 1e-12


def test_norms_that_share_their_scale_stay() -> None:
    model: Any = made(Deep())
    other = nn.BatchNorm2d(8).double()
    model.other, other.weight = other, model.norm.weight
    before = state(model.norm)
    settle(model, [images()])
    assert same(model.norm, before)


def test_low_precision_stays() -> None:
    model = made(Deep(), torch.bfloat16)
    before = state(model)
    settle(model, [images(dtype=torch.bfloat16)])
    assert same(model, before)


@pytest.mark.parametrize("x", [images(1)[:, :, :5, :5], torch.full_like(images(), torch.nan)], ids=["one", "nan"])
def test_what_has_no_statistics_changes_nothing(x: Tensor) -> None:
    model: Any = made(Deep())
    before = state(model.last)
    settle(model, [x])
    assert same(model.last, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_healed_model_begins_its_training_as_it_is(dtype: torch.dtype) -> None:
    """Masked so far that little can be predicted: train mode would blow up what is left."""
    dense, x = made(Deep(), dtype), images(dtype=dtype)
    model = copy.deepcopy(dense)
    finegrained.sparsify(model, 0.9)
    finegrained.heal(dense, model, torch.split(x, 32))
    with torch.no_grad():
        assert off(model(x), in_train_mode(model, x)) > 0.05
    settle(model, torch.split(x, 32))
    with torch.no_grad():
        assert off(model(x), in_train_mode(model, x)) < 0.01


def test_a_cut_and_healed_model_begins_its_training_as_it_is() -> None:
    dense, x = made(Deep()), images()
    result = surgeon.prune(dense, x[:2], ratio=0.5, dataloader=torch.split(x, 32), heal="lstsq", criterion="magnitude")
    settle(result.model, [(part, None) for part in torch.split(x, 32)])
    assert off(result.model(x), in_train_mode(result.model, x)) < 0.01


def test_no_data_is_told() -> None:
    with pytest.raises(HealingError, match="gave no batch"):
        settle(made(Deep()), [])
