"""``surgeon.tune`` and what is around it: formulas by hand, and runs that an interruption doesn't change."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import surgeon
import surgeon.iteration.running
from surgeon.composition import compose
from surgeon.errors import BudgetError, CheckpointError, TuningError
from surgeon.files import LOCK
from surgeon.planning.steps import cubic, equal_ratio, explicit, goals_of, linear, one_shot, per_step, shares, targets
from surgeon.rewriting import fit
from surgeon.tuning import distillation_loss, evaluate, rate
from surgeon.tuning.averaging import Average
from surgeon.tuning.state import FILE
from tests import factories
from tests.test_streaming import Box, Unboxing

X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()


class Net(nn.Module):
    """Two convolutions with batch norm, dropout (so a run draws random numbers) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        result: Tensor = self.head(self.drop(x.mean((2, 3))))
        return result


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


tune: Callable[..., surgeon.Tuned] = surgeon.tune  # with arguments that the types forbid


def line() -> nn.Linear:
    """A 2 -> 3 layer with known weights."""
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.25, -2.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    return layer


ONE = (torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([0, 2]))


def loader(size: int = 8, *, shuffle: bool = True, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), size, shuffle=shuffle, **kwargs)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    ours, theirs = one.state_dict()["state"], other.state_dict()["state"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[i][k], theirs[i][k]) if isinstance(ours[i][k], Tensor) else ours[i][k] == theirs[i][k]
        for i in ours
        for k in ours[i]
    )


# --- schedules, by hand


def test_linear_steps_are_equal() -> None:
    assert linear(0.8, 4) == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert linear(0.8, 2, initial=0.4) == pytest.approx((0.6, 0.8))


def test_cubic_steps_are_those_of_zhu_and_gupta() -> None:
    # 0.8 - 0.8 (1 - k/4)^3: 1 - 27/64, 1 - 8/64, 1 - 1/64
    assert cubic(0.8, 4) == pytest.approx((0.8 * 37 / 64, 0.8 * 56 / 64, 0.8 * 63 / 64, 0.8))
    assert cubic(0.9, 2, initial=0.1) == pytest.approx((0.9 - 0.8 / 8, 0.9))


def test_equal_ratio_keeps_the_same_share_of_what_is_left() -> None:
    assert equal_ratio(0.75, 2) == pytest.approx((0.5, 0.75))
    found = equal_ratio(0.9, 5, initial=0.2)
    kept = [0.8, *(1 - s for s in found)]
    assert [b / a for a, b in itertools.pairwise(kept)] == pytest.approx([(0.1 / 0.8) ** 0.2] * 5)


def test_one_shot_per_step_and_explicit() -> None:
    assert one_shot(0.5, 3) == (0.5, 0.5, 0.5)
    assert per_step(512, 5) == (512, 1024, 1536, 2048, 2560)
    assert explicit([0.1, 0.1, 0.5]) == (0.1, 0.1, 0.5)
    for bad in ([], [0.5, 0.2], [1.0], [-0.1]):
        with pytest.raises(BudgetError, match="expected at least one"):
            explicit(bad)


def test_every_named_schedule_ends_where_it_should() -> None:
    for name in ("linear", "cubic", "equal-ratio", "one-shot"):
        found = shares(name, 0.7, 6)
        assert found[-1] == 0.7
        assert len(found) == 6
        assert list(found) == sorted(found)
    for bad in (("nonsense", 0.5, 2), ("linear", 0.5, 0), ("linear", 1.0, 2)):
        with pytest.raises(BudgetError):
            shares(*bad)


def test_targets_count_from_the_dense_model() -> None:
    assert targets("filters", 512, "per-step", 5, 4224) == (512, 1024, 1536, 2048, 2560)
    assert targets("filters", 10, "linear", 4, 100) == (2, 5, 7, 10)
    assert targets("filters", 10, None, 4, 100) == (10, 20, 30, 40)  # an amount that a cut takes away
    assert targets("max_macs", 0.5, None, 2, 1000) == (750, 500)  # a state that all cuts reach
    assert targets("ratio", 0.75, "equal-ratio", 2, 0) == pytest.approx((0.5, 0.75))
    assert targets("max_macs", 0.5, "linear", 2, 1000) == (750, 500)
    assert targets("max_macs", "50%", "linear", 2, 1000) == (750, 500)
    assert targets("max_params", 200, "cubic", 2, 1000) == (300, 200)
    assert targets("max_macs", (0.8, 0.3), "linear", 2, 1000) == (800, 300)
    assert goals_of({"max_macs": 0.5, "max_params": 0.8}, "linear", 2, {"max_macs": 100, "max_params": 10}) == [
        {"max_macs": 75, "max_params": 9},
        {"max_macs": 50, "max_params": 8},
    ]


@pytest.mark.parametrize(
    ("name", "amount", "schedule"),
    [
        ("filters", 200, "linear"), ("filters", 0.5, "linear"), ("filters", True, "linear"), ("ratio", 1.5, "linear"),
        ("max_macs", "half", "linear"), ("max_macs", 0, "cubic"), ("ratio", 0.5, "per-step"),
        ("filters", 50, "per-step"), ("ratio", (0.5, 0.2), "linear"),
    ],
)  # fmt: skip
def test_bad_targets_are_told(name: str, amount: Any, schedule: str) -> None:
    with pytest.raises(BudgetError):
        targets(name, amount, schedule, 2, 100)


def test_more_in_all_steps_than_there_are() -> None:
    with pytest.raises(
        BudgetError, match=r"50 in each of 2 steps are 100, and there are 100: .*schedule='linear' for 50"
    ):
        targets("filters", 50, None, 2, 100)


def test_learning_rates_by_hand() -> None:
    assert rate("constant", 7.5, 10) == 1
    assert rate("cosine", 5, 10) == pytest.approx(0.5)
    assert rate("cosine", 2.5, 10) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert rate("cosine", 1, 10, 4) == 0.25  # the warm-up rises linearly
    assert rate("cosine", 7, 10, 4) == pytest.approx(0.5)  # half of the other six epochs
    assert rate("one-cycle", 0, 10) == pytest.approx(1 / 25)
    assert rate("one-cycle", 3, 10) == pytest.approx(1)
    assert rate("one-cycle", 6.5, 10) == pytest.approx((1 + 1 / 250_000) / 2)
    assert rate("one-cycle", 10, 10) == pytest.approx(1 / 250_000)


def test_one_cycle_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.31, cycle_momentum=False
    )
    optimizer.step()
    for step in range(101):
        # torch puts the peak on step 30.31 of 100
        assert scheduler.get_last_lr()[0] == pytest.approx(rate("one-cycle", step, 100, 30.31), abs=1e-6)
        if step < 100:
            scheduler.step()


# --- one step, by hand


def test_one_step_of_sgd_with_label_smoothing() -> None:
    x, y = ONE
    by_hand = line()
    logs = F.log_softmax(by_hand(x), 1)
    loss = -(0.9 * logs[[0, 1], y] + 0.1 * logs.mean(1)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert by_hand.weight.grad is not None
    expected = by_hand.weight.detach() - 0.1 * (by_hand.weight.grad + 0.01 * by_hand.weight.detach())
    model = line()
    tuned = surgeon.tune(
        model, [ONE], epochs=1, lr=0.1, momentum=0.5, weight_decay=0.01, schedule="constant", label_smoothing=0.1
    )
    assert torch.allclose(model.weight, expected, atol=1e-7)
    assert tuned.history[0].train_loss == pytest.approx(float(loss.detach()))
    assert tuned.history[0].lr == 0.1
    assert (tuned.best_epoch, tuned.model) == (1, model)


def test_one_step_of_distillation() -> None:
    x, y = ONE
    teacher = nn.Linear(2, 3)
    by_hand = line()
    scores, wanted = by_hand(x), teacher(x).detach()
    p, q = (wanted / 2).softmax(1), (scores / 2).softmax(1)
    soft = 4 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distillation_loss(scores, wanted, 2.0), soft, atol=1e-6)
    loss = 0.25 * F.cross_entropy(scores, y) + 0.75 * soft
    loss.backward()
    assert by_hand.weight.grad is not None
    model = line()
    before = copy.deepcopy(teacher)
    tuned = surgeon.tune(
        model, [ONE], epochs=1, lr=0.1, weight_decay=0, schedule="constant", teacher=teacher, temperature=2.0,
        teacher_weight=0.75,
    )  # fmt: skip
    assert torch.allclose(model.weight, by_hand.weight - 0.1 * by_hand.weight.grad, atol=1e-6)
    assert tuned.history[0].train_loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert same(before, teacher)
    assert teacher.training
    assert teacher.weight.grad is None


def test_the_average_of_two_steps() -> None:
    layer = line()
    start = layer.weight.detach().clone()
    average = Average(layer, 0.999)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(layer)
    first = 2 / 11 * start + 9 / 11 * (start + 1)  # d = min(0.999, (1 + 1) / (10 + 1))
    assert torch.allclose(average.tensors["weight"], first)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(layer)
    assert torch.allclose(average.tensors["weight"], 3 / 12 * first + 9 / 12 * (start + 2))
    own = layer.weight.detach().clone()
    with average.applied(layer):
        assert torch.allclose(layer.weight, 3 / 12 * first + 9 / 12 * (start + 2))
    assert torch.equal(layer.weight, own)


def test_the_average_is_what_stays() -> None:
    model, plain = line(), line()
    start = plain.weight.detach().clone()
    surgeon.tune(plain, [ONE], epochs=1, lr=0.5, schedule="constant")
    surgeon.tune(model, [ONE], epochs=1, lr=0.5, schedule="constant", ema=0.1)
    assert torch.allclose(model.weight, 0.1 * start + 0.9 * plain.weight, atol=1e-7)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    model, start = line(), line()
    surgeon.tune(model, [ONE], epochs=1, lr=1.0, weight_decay=0, schedule="constant", clip=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_per_example_is_averaged_and_forward_loss_takes_any_batch() -> None:
    one, other, third = line(), line(), line()
    surgeon.tune(one, [ONE], epochs=1, lr=0.1)
    surgeon.tune(other, [ONE], epochs=1, lr=0.1, loss_fn=lambda o, t: F.cross_entropy(o, t, reduction="none"))
    batches = [{"x": ONE[0], "y": ONE[1]}]
    surgeon.tune(third, batches, epochs=1, lr=0.1, forward_loss=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))
    assert torch.allclose(one.weight, other.weight)
    assert torch.equal(one.weight, third.weight)


def test_gradients_from_before_count_for_nothing() -> None:
    one, other = line(), line()
    other(ONE[0]).sum().backward()
    for model in (one, other):
        surgeon.tune(model, [ONE], epochs=1, lr=0.1)
    assert torch.equal(one.weight, other.weight)


def test_compiled_models_graphs_and_other_grad_modes_train_alike() -> None:
    plain, compiled, quiet, still = net(), net(), net(), net()
    surgeon.tune(plain, loader(), epochs=1)
    wrapper: Any = torch.compile(compiled, backend="eager")
    assert surgeon.tune(wrapper, loader(), epochs=1).model is wrapper
    with torch.no_grad():
        surgeon.tune(quiet, loader(), epochs=1)
    with torch.inference_mode():
        surgeon.tune(still, loader(), epochs=1)
    assert all(same(plain, other) for other in (compiled, quiet, still))
    graph = surgeon.prune(net().eval(), X[:2], ratio=0.3, criterion="magnitude", as_graph=True).model
    before = copy.deepcopy(graph)
    surgeon.tune(graph, loader(), epochs=1)
    assert not same(graph, before)


def test_frozen_parameters_and_modes_stay() -> None:
    model = net()
    model.first.requires_grad_(False)
    model.norm.eval()
    before = model.first.weight.detach().clone()
    surgeon.tune(model, loader(), epochs=1)
    assert torch.equal(model.first.weight, before)
    assert [m.training for m in (model, model.norm, model.drop)] == [True, False, True]


# --- which epoch stays


def test_the_best_epoch_is_chosen_on_validation() -> None:
    model, seen = net(), []
    said = iter([0.2, 0.9, 0.4, 0.9])

    def metric(m: nn.Module) -> float:
        assert not m.training
        seen.append(copy.deepcopy(m.state_dict()))
        return next(said)

    tuned = surgeon.tune(model, loader(), epochs=4, lr=0.1, metric=metric)
    assert tuned.best_epoch == 2  # the first of equals
    assert [row.val_metric for row in tuned.history] == [0.2, 0.9, 0.4, 0.9]
    assert all(torch.equal(a, b) for a, b in zip(seen[1].values(), model.state_dict().values(), strict=True))


def test_the_best_epoch_has_the_best_accuracy_then_the_least_loss() -> None:
    model = net()
    tuned = surgeon.tune(model, loader(), loader(shuffle=False), epochs=6, lr=0.3)
    ranks = [(row.val_accuracy or 0.0, -(row.val_loss or 0.0)) for row in tuned.history]
    assert tuned.best_epoch == 1 + ranks.index(max(ranks))
    found = evaluate(model, loader(shuffle=False))
    assert found.loss == pytest.approx(tuned.history[tuned.best_epoch - 1].val_loss)
    assert found.accuracy == tuned.history[tuned.best_epoch - 1].val_accuracy


def test_a_validation_that_gives_no_number_never_wins() -> None:
    said = iter([float("nan"), 0.1, float("nan")])
    assert surgeon.tune(net(), loader(), epochs=3, metric=lambda _: next(said)).best_epoch == 2


def test_evaluation_is_a_mean_over_examples() -> None:
    model = net().eval()
    found = evaluate(model, loader(7, shuffle=False))  # the last batch is smaller
    with torch.no_grad():
        assert found.loss == pytest.approx(float(F.cross_entropy(model(X), Y)), rel=1e-5)
        assert found.accuracy == float((model(X).argmax(1) == Y).float().mean())


# --- bad input


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": -1}, "epochs=-1: expected a whole number"),
    "lr": ({"lr": 0}, "lr=0: expected a number above 0"),
    "lr text": ({"lr": "fast"}, "lr='fast'"),
    "schedule": ({"schedule": "sine"}, "schedule='sine': expected one of"),
    "optimizer": ({"optimizer": "adam"}, "optimizer='adam': expected 'sgd', 'adamw'"),
    "smoothing": ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    "ema": ({"ema": 1.0}, "ema=1.0: expected a decay"),
    "precision": ({"mixed_precision": "fp8"}, "mixed_precision='fp8'"),
    "precision here": ({"mixed_precision": "fp16", "device": "cpu"}, "mixed_precision='fp16'"),
    "two losses": ({"loss_fn": F.cross_entropy, "forward_loss": lambda m, b: m(b)}, "exclude each other"),
    "smooth own": ({"loss_fn": F.cross_entropy, "label_smoothing": 0.1}, "belongs to cross entropy"),
    "teacher": ({"teacher": nn.Linear(2, 4)}, r"the teacher's scores are \(2, 4\), the model's \(2, 3\)"),
    "stranger": ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(5))])}, "would train what nothing reads"),
    "loss": ({"loss_fn": lambda o, t: o}, r"the loss of a batch is \(2, 3\)"),
    "not finite": ({"loss_fn": lambda o, t: o.sum() * math.nan}, "the loss is not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_told(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(TuningError, match=message):
        tune(line(), [ONE], **{"epochs": 1, **given})


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "gave no batch in epoch 1"), ([ONE[0]], "expected .inputs, targets."), (iter([ONE]), "no batch in epoch 2")],
)
def test_bad_loaders_are_told(batches: Any, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        surgeon.tune(line(), batches, epochs=2)


def test_nothing_trainable_is_told() -> None:
    with pytest.raises(TuningError, match="no parameter of the model requires a gradient"):
        surgeon.tune(line().requires_grad_(False), [ONE], epochs=1)


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    surgeon.tune(net(), loader(), epochs=1)
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002


def test_runs_with_another_precision_follow_each_other() -> None:
    for precision in (None, "bf16", "no", "bf16"):
        tuned = surgeon.tune(net(), loader(), epochs=1, mixed_precision=precision)
        assert all(p.dtype == torch.float32 for p in tuned.model.parameters())


def test_importing_the_library_loads_no_accelerate() -> None:
    code = "import sys, surgeon; print('accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- optimizers through a cut


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


# --- penalties


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


# --- interruptions


EPOCHS = 4


class Stop(BaseException):
    """An interruption."""


class Breaking(Dataset[Any]):
    """The data, of which the n-th item that is asked for stops everything."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.left -= 1
        if self.left == 0:
            raise Stop
        return X[index] + 0.1 * torch.randn(3, 6, 6) + random.random() + np.random.rand(), Y[index]  # noqa: NPY002


def full_run(folder: Path | None, data: Dataset[Any], model: nn.Module | None = None) -> surgeon.Tuned:
    """A run that has everything with a state."""
    module = model or net()
    graph = surgeon.channel_graph(surgeon.trace(net(), X[:2]))
    return surgeon.tune(
        module, DataLoader(data, 8, shuffle=True), loader(12, shuffle=False), epochs=EPOCHS, optimizer="adamw", lr=0.05,
        ema=0.9, clip=1.0, penalty=surgeon.GroupPenalty(graph, 1e-3, 1e-2), warmup_epochs=1, resume_dir=folder,
    )  # fmt: skip


def test_a_run_that_is_stopped_twenty_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    whole = full_run(None, Breaking(0))
    again = full_run(None, Breaking(0))
    assert same(whole.model, again.model)
    draw = random.Random(0)
    for stops in range(10):  # each time twice: at any item of the run, and once more in what is left
        folder, model = tmp_path / str(stops), net()
        for _ in range(2):
            with pytest.raises(Stop):
                full_run(folder, Breaking(draw.randrange(1, len(X))), model)
        with pytest.raises(Stop):
            full_run(folder, Breaking(draw.randrange(1, EPOCHS * len(X) + 1)))
        assert sorted(p.name for p in folder.iterdir()) == [LOCK, FILE]
        resumed = full_run(folder, Breaking(0), net() if stops % 2 else model)
        assert same(whole.model, resumed.model)
        assert same_state(whole.optimizer, resumed.optimizer)
        assert whole.best_epoch == resumed.best_epoch
        plain = [[{**vars(row), "seconds": 0} for row in t.history] for t in (whole, resumed)]
        assert plain[0] == plain[1]


KILLED = """
import sys, time
from pathlib import Path
from tests import test_tuning as t
import torch
torch.set_num_threads(int(sys.argv[2]))
class Slow(t.Breaking):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)
print("ready", flush=True)
done = t.full_run(Path(sys.argv[1]), Slow(0))
torch.manual_seed(0)
"""


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    whole = full_run(None, Breaking(0))
    draw = random.Random(1)
    root, state = Path(__file__).resolve().parent.parent, tmp_path / "run" / FILE
    threads = str(torch.get_num_threads())  # with another number of them sums are rounded otherwise
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "run"), threads], stdout=subprocess.PIPE, cwd=root, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not state.exists():  # the first epoch: at the second start it is there
            time.sleep(0.01)
        time.sleep(draw.uniform(0.05, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / f".{FILE}.0123abcd.tmp").write_bytes(b"half")  # what a kill in the middle of writing leaves
    resumed = full_run(tmp_path / "run", Breaking(0))
    assert same(whole.model, resumed.model)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [LOCK, FILE]


def test_a_finished_run_gives_its_outcome_again(tmp_path: Path) -> None:
    one = full_run(tmp_path, Breaking(0))
    other = full_run(tmp_path, Breaking(1))  # no item is asked for
    assert same(one.model, other.model)
    assert one.history == other.history
    assert one.best_epoch == other.best_epoch


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    assert full_run(None, Breaking(0)).notes == ()
    for _ in range(2):  # in the second epoch, and at once when it is called again
        with pytest.raises(Stop):
            full_run(tmp_path, Breaking(len(X) + 2))
    try:
        torch.set_num_threads(threads + 1)
        notes = full_run(tmp_path, Breaking(0)).notes
        torch.set_num_threads(threads + 2)
        assert full_run(tmp_path, Breaking(1)).notes == notes  # it was finished
    finally:
        torch.set_num_threads(threads)
    (note,) = notes
    assert note.startswith(f"from epoch 3 on it had threads {threads + 1} instead of {threads}:")


def test_a_channels_last_run_in_bf16_is_taken_up_to_the_bit(tmp_path: Path) -> None:
    seen = []

    def go(folder: Path | None, after: int) -> nn.Module:
        model = net().to(memory_format=torch.channels_last)
        model.second.register_forward_hook(lambda *given: seen.append(given[2]))
        batches = DataLoader(Breaking(after), 8, shuffle=True)
        found: nn.Module = tune(model, batches, epochs=3, ema=0.9, mixed_precision="bf16", resume_dir=folder).model
        return found

    whole = go(None, 0)
    assert all(y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last) for y in seen)
    with pytest.raises(Stop):
        go(tmp_path, len(X) + 9)
    resumed = go(tmp_path, 0)
    assert same(whole, resumed)
    assert resumed.get_parameter("second.weight").is_contiguous(memory_format=torch.channels_last)


def test_workers_and_generators_follow_the_seed(tmp_path: Path) -> None:
    def go(seed: int = 0, **kwargs: Any) -> nn.Module:
        generator = torch.Generator()
        generator.seed()
        return surgeon.tune(net(), loader(generator=generator, **kwargs), epochs=2, lr=0.1, seed=seed).model

    assert same(go(), go())
    assert not same(go(), go(seed=1))
    assert same(go(num_workers=1), go(num_workers=1))


def test_another_run_or_a_damaged_file_is_refused(tmp_path: Path) -> None:
    surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)
    for given, message in (({"epochs": 2}, "its run has epochs=1, this one 2"), ({"lr": 0.5}, "its run has lr"),
                           ({"optimizer": "adamw"}, "optimizer='SGD', this one 'AdamW'"),
                           ({"mixed_precision": "bf16"}, "mixed_precision='no', this one 'bf16'")):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            tune(net(), loader(), **{"epochs": 1, "resume_dir": tmp_path, **given})
    with pytest.raises(CheckpointError, match="batches=3, this one 6"):
        surgeon.tune(net(), loader(4), epochs=1, resume_dir=tmp_path)
    with pytest.raises(CheckpointError, match="doesn't fit this model"):
        surgeon.tune(factories.Small(2), loader(), epochs=1, resume_dir=tmp_path)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(CheckpointError):
        surgeon.tune(net(), loader(), epochs=1, resume_dir=tmp_path)


def test_views_of_one_storage_and_ties_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2, 4)

    def go(**kwargs: Any) -> surgeon.Tuned:
        torch.manual_seed(0)
        return surgeon.tune(nn.LSTM(4, 3), [x], epochs=2, forward_loss=lambda m, b: m(b)[0].square().mean(), **kwargs)

    assert same(go().model, go(resume_dir=tmp_path).model)
    assert same(go().model, go(resume_dir=tmp_path).model)
    tied = factories.Tied()
    surgeon.tune(tied, loader(), epochs=1, resume_dir=tmp_path / "tied")
    assert tied.once.weight is tied.again.weight


SPREAD = """
import os, sys, torch, surgeon
from safetensors.torch import save_file
from tests import test_tuning as t
from torch.utils.data import DataLoader, TensorDataset
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
with torch.no_grad():
    for p in model.parameters():
        p.fill_(0.01)
batches = DataLoader(TensorDataset(t.X, t.Y), 6)
folder = sys.argv[1]
surgeon.tune(model, batches, batches, epochs=2, lr=0.1, schedule="constant", device="cpu", resume_dir=folder)
save_file(model.state_dict(), f"{folder}/{os.environ['RANK']}.safetensors")
"""


def test_two_processes_divide_each_batch_and_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "spread.py").write_text(SPREAD)
    root = Path(__file__).resolve().parent.parent
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command, str(tmp_path / "spread.py"), str(tmp_path)], check=True, env=given, cwd=root,
        capture_output=True,
    )  # fmt: skip
    alone = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.fill_(0.01)
    batches = loader(6, shuffle=False)
    surgeon.tune(alone, batches, batches, epochs=2, lr=0.1, schedule="constant", device="cpu")
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert all(torch.allclose(found[name], p, atol=1e-6) for name, p in alone.named_parameters())


# --- cut and train in steps


def iterate(
    folder: Path | None = None, data: Dataset[Any] | None = None, optimizer: str = "sgd", **kwargs: Any
) -> surgeon.PrunedAndTuned:
    given: dict[str, Any] = {"filters": 3, "steps": 2, "epochs_per_step": 2, "final_epochs": 1, **kwargs}
    batches = DataLoader(data or Breaking(0), 8, shuffle=True)
    return surgeon.prune_and_tune(
        net().eval(),
        X[:2],
        batches,
        loader(12, shuffle=False),
        directory=folder,
        **{"tuning": {"lr": 0.05, "optimizer": optimizer}, **given},
    )


def test_steps_reach_the_budget_and_the_plans_compose(tmp_path: Path) -> None:
    result = iterate(tmp_path)
    assert [step.filters for step in result.steps] == [11, 8]
    assert [len(step.history) for step in result.steps] == [2, 3]
    assert sum(map(len, result.plan.removed.values())) == 6
    for name in ("step-2", "step-2-cut"):
        opened = surgeon.load(tmp_path / f"{name}.safetensors", net)
        assert [p.shape for p in opened.parameters()] == [p.shape for p in result.model.parameters()]
    loaded = surgeon.load(tmp_path / "step-2.safetensors", net)
    assert same(loaded, result.model)
    assert torch.equal(loaded.eval()(X), result.model.eval()(X))
    assert json.loads((tmp_path / "run.json").read_text())["steps"][1]["filters"] == 8


@pytest.mark.parametrize("schedule", ["linear", "cubic", "equal-ratio", "one-shot"])
def test_each_schedule_ends_within_the_budget(schedule: str) -> None:
    result = iterate(filters=None, max_macs=0.5, schedule=schedule, epochs_per_step=0, final_epochs=0, steps=2)
    dense = 2 * (36 * 9 * (3 * 6 + 6 * 8) + 16)  # of two images
    assert result.steps[-1].macs <= 0.5 * dense
    assert result.steps[0].macs <= dense


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_that_are_stopped_end_as_ones_that_are_not(tmp_path: Path, optimizer: str) -> None:
    whole = iterate(optimizer=optimizer)
    draw = random.Random(2)
    items = (2 + 3) * len(X) + 2 * len(X)  # training and ranking
    for number in range(3):
        with pytest.raises(Stop):
            iterate(tmp_path / str(number), Breaking(draw.randrange(1, items + 1)), optimizer=optimizer)
        with contextlib.suppress(Stop):  # unless it is through by then
            iterate(tmp_path / str(number), Breaking(draw.randrange(1, items + 1)), optimizer=optimizer)
        resumed = iterate(tmp_path / str(number), optimizer=optimizer)
        assert same(whole.model, resumed.model)
        assert whole.plan.removed == resumed.plan.removed
        assert [(s.filters, s.best_epoch) for s in whole.steps] == [(s.filters, s.best_epoch) for s in resumed.steps]


def test_steps_stopped_between_a_cut_and_its_training_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = iterate(tmp_path / "whole")
    real, calls = surgeon.tune, iter(range(9))

    def stopping(*args: Any, **kwargs: Any) -> surgeon.Tuned:
        if next(calls) == 1:
            raise Stop
        return real(*args, **kwargs)

    monkeypatch.setattr(surgeon.iteration.running, "tune", stopping)
    with pytest.raises(Stop):
        iterate(tmp_path / "run")
    assert (tmp_path / "run" / "step-2-cut.safetensors").exists()
    assert same(whole.model, iterate(tmp_path / "run").model)
    with pytest.raises(CheckpointError, match=r"run\.json: its run was asked"):
        iterate(tmp_path / "run", filters=4)
    with pytest.raises(CheckpointError, match=r"was asked {'after_cut': False}, this one {'after_cut': True}"):
        iterate(tmp_path / "run", after_cut=print)
    with pytest.raises(CheckpointError, match=r"was asked {'criterion': None}, this one {'criterion': 'random'}"):
        iterate(tmp_path / "run", criterion="random")


def test_steps_belong_to_one_model_and_what_they_are_about(tmp_path: Path) -> None:
    def run(bias: float = 0.0, **about: Any) -> surgeon.PrunedAndTuned:
        model = net().eval()
        nn.init.constant_(model.get_parameter("head.bias"), bias)
        return surgeon.prune_and_tune(
            model, X[:2], loader(12), ratio=0.3, criterion="magnitude", steps=1, directory=tmp_path, about=about,
            tuning={"device": "cpu"},
        )  # fmt: skip

    run(images=12, classes=("a", "b"))
    run(images=12, classes=("a", "b"))  # the same in JSON
    with pytest.raises(CheckpointError, match=r"was asked {'images': 12}, this one {'images': 13}"):
        run(images=13, classes=("a", "b"))
    with pytest.raises(CheckpointError, match=r"was asked {'weights': '\w{32}'}, this one"):
        run(0.5, images=12, classes=("a", "b"))
    with pytest.raises(TuningError, match=r"about holds {'images': 'Tensor'}: expected text, numbers"):
        run(images=X)


def test_what_follows_a_cut_is_called_before_training() -> None:
    seen = []

    def heal(small: nn.Module, before: nn.Module, plan: surgeon.Plan) -> None:
        seen.append((type(small), type(before), sum(map(len, plan.removed.values()))))
        nn.init.zeros_(small.get_parameter("head.bias"))

    result = iterate(after_cut=heal, epochs_per_step=0, final_epochs=0)
    assert seen == [(Net, Net, 3), (Net, Net, 3)]
    assert not result.model.get_parameter("head.bias").any()


def test_each_step_can_have_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = surgeon.tune, []

    def watching(*args: Any, **kwargs: Any) -> surgeon.Tuned:
        held = kwargs["optimizer"]
        seen.append((kwargs["lr"], None if isinstance(held, str) else held.param_groups[0]["lr"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(surgeon.iteration.running, "tune", watching)
    iterate(tuning={"lr": (0.05, 0.01), "optimizer": "sgd"})
    assert seen == [(0.05, None), (0.01, 0.01)]  # the second goes on with the optimizer of the first


def test_what_a_cut_leaves_starts_again_from_early_weights(tmp_path: Path) -> None:
    early = net()
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.mul_(0.5)
    result = iterate(tmp_path, rewind=early, epochs_per_step=0, final_epochs=0)
    assert same(result.model, surgeon.rewrite(early, dataclasses.replace(result.plan, fitted=None)))
    with pytest.raises(CheckpointError, match="rewind"):
        iterate(tmp_path, epochs_per_step=0, final_epochs=0)


def test_early_weights_of_a_model_that_takes_what_a_plan_cannot_describe() -> None:
    box, data = Box(torch.randn(2, 8)), [(Box(torch.randn(8, 8)), torch.randint(4, (8,)))]
    options: dict[str, Any] = {"steps": 1, "ratio": 0.3, "criterion": "magnitude", "epochs_per_step": 0}
    result = surgeon.prune_and_tune(Unboxing(), box, data, rewind=Unboxing(), **options)
    assert result.model(box).shape == (2, 4)
    assert result.plan.removed


def test_early_weights_of_another_model_are_refused_before_anything_is_cut(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"rewind: \S+ has shape .* there and .* in the model; pass the dense model"):
        iterate(tmp_path / "run", rewind=nn.Linear(8, 4), epochs_per_step=0, final_epochs=0)
    assert not (tmp_path / "run").exists()


def test_bad_steps_are_told() -> None:
    for given, error, message in (
        ({"steps": 0}, TuningError, "steps=0"),
        ({"filters": None}, BudgetError, "give filters="),
        ({"filters": (2, 4, 6)}, BudgetError, "other numbers of targets .filters: 3."),
        ({"ratio": 0.5}, BudgetError, "give filters="),
        ({"as_graph": True}, surgeon.ModelError, "a graph can be passed"),
        ({"tuning": {"lr": (0.1, 0.1, 0.1)}}, TuningError, "lr lists 3 rates for 2 steps"),
        ({"rewind": net(), "after_cut": print}, TuningError, "leave after_cut out"),
    ):
        with pytest.raises(error, match=message):
            iterate(**given)


def test_one_layer_and_batches_that_run_out() -> None:
    """Every step ranks anew, and has modules of its own."""
    result = iterate(ignored_layers="second", dataloader=iter([(X, Y)]), criterion="taylor", filters=2)
    assert [step.widths["first"] for step in result.steps] == [4, 2]
    assert [step.widths["second"] for step in result.steps] == [8, 8]


def test_two_cuts_at_once_are_the_two_cuts() -> None:
    torch.manual_seed(0)
    dense = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    first = surgeon.prune(dense, x, ratio=0.2, criterion="magnitude", verify=False)
    second = surgeon.prune(first.model, x, ratio=0.3, criterion="random", verify=False)
    plan = compose(dense, first.plan, fit(first.model, second.plan, x), x)
    assert same(surgeon.rewrite(dense, plan), second.model)
