"""Modules and tensors by name: torch's own names in torch's own order."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torchvision
from torch import nn

from surgeon.tracing import modules, named_modules, named_parameters, named_tensors


class Odd(nn.Module):
    """Modules and parameters held twice, a module that holds its own part's part, children and tensors of none."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 3, bias=False)))
        self.first = self.second[2][0]  # type: ignore[index]  # a Sequential
        self.again, self.missing = self.second, None
        self.register_module("nothing", None)
        self.register_buffer("none", None)
        scale = torch.ones(3)
        self.register_buffer("scale", scale)
        self.register_buffer("same", scale)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.second[0].weight  # type: ignore[assignment]  # a parameter
        self.register_parameter("weight", self.tied.bias)


def nested(draw: random.Random, held: list[nn.Module], depth: int) -> nn.Module:
    """Modules in modules, some of them held before."""
    if depth == 0 or (held and draw.random() < 0.3):
        return draw.choice(held) if held and draw.random() < 0.5 else nn.BatchNorm1d(2)
    made = nn.ModuleDict({name: nested(draw, held, depth - 1) for name in draw.sample("abcdef", 3)})
    held.append(made)
    return made


@pytest.mark.parametrize(
    "model",
    [
        Odd(),
        nn.ReLU(),
        torchvision.models.googlenet(init_weights=False),
        *(nested(random.Random(seed), [], 4) for seed in range(5)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_names_and_their_order_are_those_of_torch(model: nn.Module) -> None:
    def same(ours: object, theirs: object) -> bool:
        return [(n, id(v)) for n, v in ours] == [(n, id(v)) for n, v in theirs]  # type: ignore[attr-defined]

    assert same(named_modules(model), model.named_modules())
    assert list(map(id, modules(model))) == list(map(id, model.modules()))
    assert same(named_parameters(model), model.named_parameters())
    expected = itertools.chain(model.named_parameters(), model.named_buffers())
    assert same(named_tensors(model).items(), expected)
