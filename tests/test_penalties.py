"""Penalties that make channels smaller, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
import surgeon.iteration.running
from surgeon.errors import TuningError
from tests import factories
from tests.tuned import X, loader, net


def test_the_group_penalty_by_hand() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = surgeon.channel_graph(surgeon.trace(model, torch.ones(1, 2)))
    (group,) = graph.groups
    penalty = surgeon.GroupPenalty(graph, strength=0.5, growth=2.0)
    one, two = model[0], model[2]
    squares = one.weight.square().sum(1) + one.bias.square() + two.weight.square().sum(0)
    assert torch.allclose(penalty(model), 0.25 * squares.sum())
    penalty.after_epoch(model)
    norms = squares.detach().sqrt()[list(group.channels)]
    grown = 0.5 + 2.0 * (norms.max() - norms) / (norms.max() - norms.min())
    order = np.argsort(np.argsort(group.numbers))
    assert torch.allclose(penalty.strengths[torch.from_numpy(order)], grown)
    assert float(penalty.strengths.min()) == 0.5
    assert float(penalty.strengths.max()) == 2.5
    penalty(model).backward()  # type: ignore[no-untyped-call]
    assert two.bias.grad is None  # the outputs are pinned
    lowest = surgeon.GroupPenalty(graph, strength=0.5, growth=2.0, share=0.4)  # 1 of 3
    lowest.after_epoch(model)
    assert sorted(lowest.strengths.tolist()) == [0.5, 0.5, 2.5]
    assert int(lowest.strengths.argmax()) == int(penalty.strengths.argmax())
    with pytest.raises(TuningError, match=r"share=1\.5"):
        surgeon.GroupPenalty(graph, share=1.5)
    with pytest.raises(TuningError, match="growth=-1"):
        surgeon.GroupPenalty(graph, growth=-1)


def total(*tensors: Tensor) -> Tensor:
    """Sum of all squares."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def test_the_group_penalty_reaches_every_slice_of_a_channel() -> None:
    model: Any = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 2, 1)
    ).eval()
    graph = surgeon.channel_graph(surgeon.trace(model, torch.ones(1, 3, 5, 5)))
    penalty = surgeon.GroupPenalty(graph, strength=2.0, growth=0.0)
    once = total(*model[0].parameters(), *model[1].parameters(), model[2].bias, model[3].weight)
    # conv 2 has penalised channels on both axes; conv 1's inputs and conv 3's outputs are free
    wanted = once + 2 * total(model[2].weight)
    assert torch.allclose(penalty(model), wanted)


def test_the_scale_penalty_is_l1_of_the_scales() -> None:
    model = net()
    graph = surgeon.channel_graph(surgeon.trace(model, X[:2]))
    penalty = surgeon.ScalePenalty(graph, 0.01)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0, 0.5, -0.5]))
    assert float(penalty(model).detach()) == pytest.approx(0.07)
    penalty(model).backward()  # type: ignore[no-untyped-call]
    assert model.norm.weight.grad is not None
    assert torch.allclose(model.norm.weight.grad, 0.01 * torch.tensor([1.0, -1, 1, 0, 1, -1]))
    plain = surgeon.channel_graph(surgeon.trace(factories.Tied(), X[:2]))
    with pytest.raises(TuningError, match="use GroupPenalty"):
        surgeon.ScalePenalty(plain)


def test_a_penalty_makes_the_least_useful_channels_smaller() -> None:
    graph = surgeon.channel_graph(surgeon.trace(net(), X[:2]))
    model, plain = net(), net()
    start = float(min(plain.second.weight.detach().square().sum((1, 2, 3))))
    surgeon.tune(model, loader(), epochs=8, lr=0.05, weight_decay=0, penalty=surgeon.GroupPenalty(graph, 0.0, 0.2))
    surgeon.tune(plain, loader(), epochs=8, lr=0.05, weight_decay=0)
    least = float(min(model.second.weight.detach().square().sum((1, 2, 3))))
    assert least < 0.2 * start
    assert least < 0.2 * float(min(plain.second.weight.detach().square().sum((1, 2, 3))))
