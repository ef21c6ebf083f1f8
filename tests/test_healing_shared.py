"""Healing of weights that are used several times, or together with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from tests.test_healing import error, images, made


class Shared(nn.Module):
    """Modules called in this order, each several times."""

    def __init__(self, order: str, bias: bool = True) -> None:
        super().__init__()
        self.order, self.stem = order, nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.ModuleDict({name: nn.Conv2d(8, 8, 3, padding=1, bias=bias) for name in sorted(set(order))})
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        for name in self.order:
            x = torch.tanh(self.parts[name](x))
        return self.head(x)


@pytest.mark.parametrize("order", ["aa", "abab", "abba", "abcacb", "aabb", "abbcca"])
def test_weights_used_several_times_are_fitted_to_all_their_calls(order: str) -> None:
    model = made(Shared(order))
    result = surgeon.prune(model, images(2)[0], ratio=0.4, scope="local", criterion="magnitude", heal="lstsq",
                           calibration=images(10, 10, 3))  # fmt: skip
    sliced = surgeon.prune(model, images(2)[0], ratio=0.4, scope="local", criterion="magnitude").model
    names = [row.weight for row in result.report.healing]
    assert len(names) == len(set(names)) == len(set(order)) + 1
    assert error(model, result.model) < 0.9 * error(model, sliced)


class Twins(nn.Module):
    """One weight in two layers: each with a bias of its own, or none and a norm of its own; a norm behind both."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1, bias=kind == "biases") for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        if kind == "one norm":
            self.norms[1] = self.norms[0]
        else:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.norms[1](self.two(torch.relu(self.norms[0](self.one(x)))))))


@pytest.mark.parametrize("kind", ["biases", "norms", "one norm"])
def test_an_intercept_goes_only_where_all_calls_have_the_same(kind: str) -> None:
    model = made(Twins(kind))
    result = surgeon.prune(model, images(2)[0], ratio=0.4, scope="local", criterion="magnitude", heal="lstsq",
                           calibration=images())  # fmt: skip
    sliced = surgeon.prune(model, images(2)[0], ratio=0.4, scope="local", criterion="magnitude").model
    for norm, before in zip(result.model.norms, sliced.norms, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(norm.running_mean, before.running_mean)
    weights = {row.weight for row in result.report.healing} - {"head.weight"}
    assert weights == {"biases": set(), "norms": {"one.weight"}, "one norm": {"one.weight", "two.weight"}}[kind]
    assert error(model, result.model) < error(model, sliced)
