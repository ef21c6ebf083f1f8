"""Budgets and learning rates over the steps of a run, by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.errors import BudgetError
from surgeon.planning.steps import cubic, equal_ratio, explicit, goals_of, linear, one_shot, per_step, shares, targets
from surgeon.tuning import rate


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
