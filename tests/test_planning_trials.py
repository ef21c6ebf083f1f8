"""Plans where only a trial of the forward says what widths there are."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon.channels import ChannelGraph
from surgeon.trial import fitting, search
from tests.planned import QUICK, costs, filters_of, gone, graph_of, plan_of, widths_of
from tests.zoo.base import conv


@functools.cache
def shuffles() -> tuple[nn.Module, ChannelGraph]:
    """A network whose shuffles split layers again and again: its bundles are cut by shares, not one by one."""
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    return model, graph_of(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("amount", [50, 300])
def test_never_more_filters_where_bundles_are_cut_by_shares(amount: int) -> None:
    model, graph = shuffles()
    assert not all(bundle.takes for bundle in graph.bundles)
    small = surgeon.rewrite(model, plan_of(graph, criterion="random", filters=amount))
    assert 0 < filters_of(model) - filters_of(small) <= amount


def test_limits_hold_where_bundles_are_cut_by_shares() -> None:
    graph = shuffles()[1]
    before, after = costs(graph, plan_of(graph, criterion="random", max_macs=0.6))["max_macs"]
    assert after <= 0.6 * before


def test_no_layer_keeps_fewer_where_bundles_are_cut_by_shares() -> None:
    model, graph = shuffles()
    plan = plan_of(graph, criterion="random", ratio=0.85, scope="local", min_channels=6)
    assert min(widths_of(surgeon.rewrite(model, plan))) >= 6


@QUICK
@given(st.integers(3, 60), st.data())
def test_all_widths_that_cannot_be_are_found(steps: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, steps - 1))
    last = data.draw(st.integers(first, steps - 1))
    asked = data.draw(st.integers(first, last))
    tried: set[int] = set()

    def refused(level: int) -> bool:
        tried.update({level} & set(range(1, steps)))
        return first <= level <= last

    assert surgeon.planning.shares._run(refused, asked, steps) == range(first, last + 1)
    assert len(tried) <= 4 * math.ceil(math.log2(steps)) + 2


@pytest.mark.parametrize(("steps", "kept"), [(48, 24), (58, 29), (116, 33), (232, 1), (7, 6), (3, 1)])
def test_widths_that_end_at_powers_of_two_take_few_trials(steps: int, kept: int) -> None:
    octave = math.ceil(math.log2(kept))
    run = range(max(steps - 2**octave, 1), steps - math.floor(2.0 ** (octave - 1)))
    tried: set[int] = set()

    def refused(level: int) -> bool:
        tried.add(level)
        return level in run

    assert surgeon.planning.shares._run(refused, steps - kept, steps) == run
    assert len(tried) <= 4


def test_few_widths_are_tried_where_channels_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 48 widths of the third stage 17 to 32 can't be: half of it is in the middle of them."""
    torch.manual_seed(0)
    tried: list[int] = []
    real = surgeon.planning.shares._try

    def counted(graph: Any, bundle: Any, level: int) -> Any:
        tried.append(level)
        return real(graph, bundle, level)

    monkeypatch.setattr("surgeon.planning.shares._try", counted)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    plan = plan_of(graph_of(model, torch.randn(1, 3, 64, 64)), criterion="random", ratio=0.5, scope="local")
    small = surgeon.rewrite(model, plan)
    assert len(tried) <= 7
    assert small.stage3[1].branch2[0].in_channels == 16  # type: ignore[union-attr,index]


class Stubborn(nn.Module):
    """A constant in the forward holds `inner`; two numbers that the block holds are as large and mean nothing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner, self.outer = conv(16, width), conv(width, 16)
        self.levels, self.seed, self.size = width, width, f"{width}"  # a text is no number that a trial could change

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = y.view(y.shape[0], int(self.size), y.shape[2] * y.shape[3]).view(y.shape)
        result: Tensor = x + self.outer(torch.relu(y))
        return result


def trials_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the forward is tried for a plan at half the width, which must leave some layer smaller."""
    count = 0
    real = fitting.attempt

    def counted(*args: Any) -> Any:
        nonlocal count
        count += 1
        return real(*args)

    monkeypatch.setattr(search, "attempt", counted)
    assert gone(plan_of(graph_of(model), ratio=0.5, scope="local"))
    return count


def test_what_failed_at_one_block_is_not_tried_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    few, many = (nn.Sequential(conv(3, 16), *(Stubborn() for _ in range(n)), conv(16, 4)) for n in (3, 12))
    assert trials_of(many, monkeypatch) == trials_of(few, monkeypatch) <= 12


def test_a_search_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every block fails in a way of its own: when enough has been tried, all of that line stays."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 16), *(Stubborn(8 + n) for n in range(12)), conv(16, 4))
    assert trials_of(model, monkeypatch) > 12
    monkeypatch.setattr("surgeon.trial.search._MOST_TRIALS", 5)
    assert trials_of(model, monkeypatch) <= 8


class Settled(nn.Module):
    """A block whose width it holds as a number, beside many that mean nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.size = conv(16, 24), conv(24, 16), 24
        for number in range(6):
            setattr(self, f"seed_{number}", 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        y = y.view(y.shape[0], self.size, y.shape[2] * y.shape[3]).view(y.shape)
        result: Tensor = x + self.outer(y.relu())
        return result


def test_a_trial_may_be_made_from_another_line_than_the_recording() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 16), Settled(), conv(16, 4))
    graph = graph_of(model)
    assert gone(plan_of(graph, ratio=0.5, scope="local")) == {"0": 8, "1.inner": 12}


def test_a_hopeless_place_leaves_enough_trials_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.trial.search._MOST_TRIALS", 24)
    torch.manual_seed(0)
    hopeless = Stubborn()
    for number in range(24):
        setattr(hopeless, f"seed_{number}", 8)
    model = nn.Sequential(conv(3, 16), hopeless, Settled(), conv(16, 4))
    assert gone(plan_of(graph_of(model), ratio=0.5, scope="local")) == {"0": 8, "2.inner": 12}


class Turned(nn.Module):
    """Heads whose places are the same channels in all of them; whether these are weighed is a one, like the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.last, self.size, self.weighs = nn.Linear(6, 32), nn.Linear(32, 3), 8, 1
        self.weights = nn.Parameter(torch.arange(1.0, 9.0))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x).view(1, -1, 4, self.size)
        if self.weighs:
            heads = heads * self.weights
        result: Tensor = self.last(heads.flatten(2))
        return result


def test_no_number_is_taken_for_a_width_of_none() -> None:
    """All heads lose their first channel: it alone doesn't say that there are no heads then."""
    torch.manual_seed(0)
    model = Turned()
    with torch.no_grad():
        model.weights[:4] = 0.0
        model.project.weight.view(4, 8, 6)[:, :4] = 0.0
    plan = plan_of(graph_of(model, torch.randn(1, 5, 6)), ratio=0.5, scope="local")
    assert plan.removed == {"project": (0, 1, 2, 3)}
    assert plan.fitted is not None
    assert {str(target): value for target, value in plan.fitted.settings.items()} == {"size": 4}
