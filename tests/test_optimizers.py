"""Optimizers and schedulers taken through a cut."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
import surgeon.iteration.running
from surgeon.errors import TuningError
from surgeon.rewriting import fit
from tests.tuned import X, Y, loader, net


def trained(optimizer: torch.optim.Optimizer, model: nn.Module, x: Tensor, y: Tensor) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_a_carried_state_is_the_indexed_one(maker: str) -> None:
    dense = net()
    groups = [{"params": dense.head.parameters(), "lr": 0.5}, {"params": dense.first.parameters()},
              {"params": [*dense.norm.parameters(), *dense.second.parameters()]}]  # fmt: skip
    optimizer = MAKERS[maker](groups)
    trained(optimizer, dense, X, Y)
    result = surgeon.prune(dense, X[:2], ratio=0.4, criterion="magnitude")
    small, fitted = result.model, fit(dense, result.plan)
    carried = surgeon.rewrite_optimizer(optimizer, result.plan, dense, small)
    assert type(carried) is type(optimizer)
    assert [g["lr"] for g in carried.param_groups] == [g["lr"] for g in optimizer.param_groups]
    held: dict[Tensor, str] = {p: n for n, p in small.named_parameters()}
    assert sorted(held[p] for g in carried.param_groups for p in g["params"]) == sorted(held.values())
    ours: dict[str, Tensor] = dict(dense.named_parameters())
    for parameter, state in carried.state.items():
        theirs = optimizer.state[ours[held[parameter]]]
        assert state.keys() == theirs.keys()
        for key, value in state.items():
            wanted = fitted.gather(held[parameter], theirs[key]) if theirs[key].ndim else theirs[key]
            assert torch.equal(value, wanted), (held[parameter], key)
    before = copy.deepcopy(small.state_dict())
    dense_before = copy.deepcopy(dense.state_dict())
    small.train()
    trained(carried, small, X, Y)
    assert all(torch.equal(a, b) for a, b in zip(dense_before.values(), dense.state_dict().values(), strict=True))
    assert all(not torch.equal(before[n], p) for n, p in small.named_parameters())


def test_an_optimizer_of_a_wrapped_model_is_carried() -> None:
    dense = net()
    wrapped = nn.DataParallel(dense)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    result = surgeon.prune(wrapped, X[:2], filters=4, criterion="magnitude")
    carried = surgeon.rewrite_optimizer(optimizer, result.plan, wrapped, nn.DataParallel(result.model))
    held = [p for group in carried.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in result.model.parameters()}


class Scaled(nn.Module):
    """Attention whose factor 1/sqrt(d) follows the width, so a cut folds a number into a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        result: Tensor = self.out(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v)
        return result


def test_moments_of_a_folded_weight_scale_as_its_gradient() -> None:
    torch.manual_seed(0)
    dense, x = Scaled(), torch.randn(2, 5, 6)
    optimizer = torch.optim.Adam(dense.parameters())
    dense(x).square().sum().backward()
    optimizer.step()
    result = surgeon.prune(dense, x, ratio=0.4, criterion="magnitude", ignored_layers=["v", "out"])
    fitted = fit(dense, result.plan)
    assert fitted.folds
    carried = surgeon.rewrite_optimizer(optimizer, fitted, dense, result.model)
    for name, parameter in result.model.named_parameters():
        factors = fitted.gather(name, torch.ones_like(dense.get_parameter(name)))
        state, theirs = carried.state[parameter], optimizer.state[dense.get_parameter(name)]
        plain = fitted.gather(name, theirs["exp_avg"]) / factors
        assert torch.allclose(state["exp_avg"], plain / factors)
        assert torch.allclose(state["exp_avg_sq"], fitted.gather(name, theirs["exp_avg_sq"]) / factors**3)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "cosine": lambda held: torch.optim.lr_scheduler.CosineAnnealingLR(held, T_max=20),
    "steps": lambda held: torch.optim.lr_scheduler.StepLR(held, 3, gamma=0.5),
    "any": lambda held: torch.optim.lr_scheduler.LambdaLR(held, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda held: torch.optim.lr_scheduler.OneCycleLR(held, 0.1, total_steps=30),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_that_is_made_anew_goes_on_as_the_old_one(name: str) -> None:
    """As docs/tuning.md says; one that is kept moves nothing of the new optimizer."""
    dense = net().eval()
    result = surgeon.prune(dense, X[:2], filters=3, criterion="magnitude")
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)

    def after_steps(held: torch.optim.Optimizer, moving: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
        rates = []
        for _ in range(5):
            held.step()
            rates.append(held.param_groups[0]["lr"])
            moving.step()
        return rates

    after_steps(optimizer, scheduler)
    carried = surgeon.rewrite_optimizer(optimizer, result.plan, dense, result.model)
    anew = SCHEDULERS[name](carried)
    anew.load_state_dict(scheduler.state_dict())
    for new, old in zip(carried.param_groups, optimizer.param_groups, strict=True):
        new["lr"] = old["lr"]
    kept = surgeon.rewrite_optimizer(optimizer, result.plan, dense, result.model)
    rates = after_steps(optimizer, scheduler)
    assert after_steps(carried, anew) == rates
    assert kept.param_groups[0]["lr"] == rates[0] != rates[-1]


def test_an_optimizer_of_another_model_is_refused() -> None:
    dense = net()
    result = surgeon.prune(dense, X[:2], ratio=0.4, criterion="magnitude")
    stale = torch.optim.SGD(dense.parameters(), lr=0.1)
    with pytest.raises(TuningError, match=r"after a cut use surgeon.rewrite_optimizer"):
        surgeon.tune(result.model, loader(), epochs=1, optimizer=stale)
    with pytest.raises(TuningError, match="the plan makes"):
        surgeon.rewrite_optimizer(stale, result.plan, dense, net())
