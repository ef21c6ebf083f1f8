"""Plans: exact amounts, clear refusals, and JSON that can be edited but not abused."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import surgeon
from surgeon.channels import ChannelGraph
from surgeon.cost import Cost
from surgeon.errors import BudgetError, NothingToCutError, PlanError, SelectionError
from surgeon.planning import Plan
from surgeon.planning.moves import Staircase, in_order
from surgeon.trial import fitting, search
from tests.networks import Spec, networks, redraw
from tests.oracle import OracleError
from tests.oracle import compare as judge
from tests.test_zoo import build
from tests.zoo import ZOO
from tests.zoo.base import conv

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths in a row; the last one's channels are the output."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [conv(before, after), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(*layers[:-1])


def graph_of(model: nn.Module, inputs: Any = X) -> ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(model, inputs))


def plan_of(graph: ChannelGraph, /, *, criterion: str = "magnitude", **amounts: Any) -> Plan:
    return surgeon.make_plan(graph, surgeon.score(graph, criterion), **amounts)


def gone(plan: Plan) -> dict[str, int]:
    return {name: len(channels) for name, channels in plan.removed.items()}


def widths_of(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


def filters_of(model: nn.Module) -> int:
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    return sum(m.out_channels for m in model.modules() if isinstance(m, convolutions))


# --- amounts


@pytest.mark.parametrize("amount", [1, 2, 7, 18, 27])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_exactly_so_many_filters_of_a_chain(amount: int, scope: str) -> None:
    model = chain(10, 12, 8, 4)
    plan = plan_of(graph_of(model), filters=amount, scope=scope)
    assert sum(gone(plan).values()) == amount
    assert filters_of(model) - filters_of(surgeon.rewrite(model, plan)) == amount


@QUICK
@given(networks(), st.integers(1, 40), st.sampled_from(["global", "local"]))
def test_never_more_filters_than_asked(spec: Spec, amount: int, scope: str) -> None:
    model = spec.build()
    graph = graph_of(model, spec.inputs())
    try:
        plan = plan_of(graph, criterion="random", filters=amount, scope=scope)
    except (BudgetError, NothingToCutError):
        return
    assert plan.fitted is not None
    before, after = surgeon.report.filter_counts(graph, plan.fitted.kept)
    assert 0 < before - after <= amount


@QUICK
@given(st.lists(st.integers(2, 12), min_size=2, max_size=4), st.data())
def test_a_chain_loses_exactly_what_was_asked(widths: list[int], data: st.DataObject) -> None:
    graph = graph_of(chain(*widths, 2))
    most = sum(widths) - len(widths)
    amount = data.draw(st.integers(1, most))
    assert sum(gone(plan_of(graph, filters=amount)).values()) == amount
    with pytest.raises(BudgetError, match=rf"filters={most + 1}: at most {most} of .* ask for {most} or fewer"):
        plan_of(graph, filters=most + 1)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(("ratio", "left"), [(0.8, 2), (0.9, 1), (0.5, 5), (0.15, 9), (0.1, 9), (0.3, 7), (0.7, 3)])
def test_a_ratio_of_ten_channels(ratio: float, left: int, scope: str) -> None:
    assert gone(plan_of(graph_of(chain(10, 4)), ratio=ratio, scope=scope)) == {"0": 10 - left}


def unequal() -> nn.Sequential:
    """Two layers of ten; every filter of the first is worth more after normalisation than any of the second."""
    model = chain(10, 10, 4)
    with torch.no_grad():
        model[0].weight.fill_(1.0)  # type: ignore[operator]
        model[2].weight.fill_(1e-6)  # type: ignore[operator]
        model[2].weight[0] = 1.0  # type: ignore[operator]
    return model


def test_local_takes_the_same_share_of_each() -> None:
    assert gone(plan_of(graph_of(unequal()), ratio=0.4, scope="local")) == {"0": 4, "2": 4}


def test_global_takes_the_least_useful_anywhere() -> None:
    assert gone(plan_of(graph_of(unequal()), ratio=0.4, scope="global")) == {"2": 8}


def test_the_lowest_scores_go() -> None:
    model = chain(6, 4)
    with torch.no_grad():
        for index, size in enumerate([3.0, 1.0, 5.0, 2.0, 6.0, 4.0]):
            model[0].weight[index] = size  # type: ignore[operator]
    assert plan_of(graph_of(model), filters=3).removed == {"0": (0, 1, 3)}


def costs(graph: ChannelGraph, plan: Plan) -> dict[str, tuple[int, int]]:
    """MACs and parameters before and after."""
    cost, kept = Cost(graph), plan.kept(graph)
    return {n: (m(cost.everything()), m(kept)) for n, m in (("max_macs", cost.macs), ("max_params", cost.params))}


@pytest.mark.parametrize("name", ["max_macs", "max_params"])
@pytest.mark.parametrize("share", [0.3, 0.75, "60%", "12.5%", "0.4"])
def test_shares_are_kept_within_and_nearly_reached(name: str, share: float | str) -> None:
    graph = graph_of(chain(10, 12, 8, 4))
    amount: Any = share
    plan = plan_of(graph, **{name: amount})
    before, after = costs(graph, plan)[name]
    wanted = float(str(share).rstrip("%")) / (100 if "%" in str(share) else 1)
    assert wanted - 0.15 < after / before <= wanted


@pytest.mark.parametrize("name", ["max_macs", "max_params"])
@pytest.mark.parametrize("write", [int, str])
def test_absolute_limits(name: str, write: Callable[[int], Any]) -> None:
    graph = graph_of(chain(10, 12, 8, 4))
    whole = costs(graph, plan_of(graph, filters=1))[name][0]
    limit = whole // 2
    share: Any = limit / whole
    assert gone(plan_of(graph, **{name: write(limit)})) == gone(plan_of(graph, **{name: share}))


def test_both_limits_hold_together() -> None:
    graph = graph_of(chain(10, 12, 8, 4))
    found = costs(graph, plan_of(graph, max_macs=0.5, max_params=0.3))
    assert found["max_macs"][1] <= 0.5 * found["max_macs"][0]
    assert found["max_params"][1] <= 0.3 * found["max_params"][0]


@pytest.mark.parametrize("seed", [2, 4, 6, 7])  # in the first three the last move saves more than is needed
def test_no_channel_goes_that_a_limit_lets_stay(seed: int) -> None:
    torch.manual_seed(seed)
    graph = graph_of(chain(8, 50, 3, 50, 4))
    scores = surgeon.score(graph, "random", seed=seed)
    kept = surgeon.make_plan(graph, scores, max_macs=0.5).kept(graph)
    cost = Cost(graph)
    limit = int(0.5 * cost.macs(cost.everything()))
    assert cost.macs(kept) <= limit
    for group in graph.groups:
        removed = group.numbers[~kept[group.numbers]]
        if len(removed):
            best = removed[np.argmax(scores.raw[removed])]
            more = kept.copy()
            more[best] = True
            assert cost.macs(more) > limit, group.name


def test_parameters_counted_are_those_of_the_real_model() -> None:
    model = chain(10, 12, 8, 4)
    graph = graph_of(model)
    plan = plan_of(graph, max_params=0.4)
    small = surgeon.rewrite(model, plan)
    counted = tuple(sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert costs(graph, plan)["max_params"] == counted


@pytest.mark.parametrize("name", ["max_macs", "max_params"])
@pytest.mark.parametrize("amount", [1, 0.0001, "0.1%"])
def test_out_of_reach_names_the_least(name: str, amount: Any) -> None:
    graph = graph_of(chain(6, 5, 4))
    least = Cost(graph).macs if name == "max_macs" else Cost(graph).params
    kept = np.ones(graph.structure.count, dtype=bool)
    for group in graph.groups:
        kept[group.numbers[1:]] = False
    with pytest.raises(BudgetError, match=f"out of reach; {name}: .*{least(kept):,} is the least that can be reached"):
        plan_of(graph, **{name: amount})


@pytest.mark.parametrize("step", [2, 4, 8])
@pytest.mark.parametrize("amount", [{"ratio": 0.45}, {"filters": 21}, {"max_macs": 0.5}], ids=str)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_widths_are_multiples(step: int, amount: dict[str, Any], scope: str) -> None:
    model = chain(16, 24, 32, 4)
    small = surgeon.rewrite(model, plan_of(graph_of(model), round_to=step, scope=scope, **amount))
    widths = widths_of(small)
    assert widths != [16, 24, 32, 4]
    assert all(width % step == 0 for width in widths[:-1])


def test_only_layers_that_are_cut_are_rounded() -> None:
    model = chain(15, 16, 4)
    plan = plan_of(graph_of(model), round_to=4, ratio=0.5, scope="local", ignored_layers=["0"])
    assert widths_of(surgeon.rewrite(model, plan)) == [15, 8, 4]


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "EqualSplit", "ResidualIdentity", "GatedLinear"])
@pytest.mark.parametrize("amount", [{"ratio": 0.9}, {"ratio": 0.9, "scope": "local"}], ids=str)
def test_no_group_keeps_fewer_than_said(name: str, amount: dict[str, Any]) -> None:
    graph = graph_of(build(name), ZOO[name].example())
    plan = plan_of(graph, min_channels=3, **amount)
    assert all(group.size - gone(plan).get(group.name, 0) >= min(3, group.size) for group in graph.groups)


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


# --- trials


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


# --- ignored layers


class Nested(nn.Module):
    """Two containers of two convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(conv(3, 8), conv(8, 8))
        self.late = nn.Sequential(conv(8, 8), conv(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.late(self.early(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        (lambda m: [m.early[0]], {"early.1", "late.0", "late.1"}),
        (lambda m: ["late.1"], {"early.0", "early.1", "late.0"}),
        (lambda m: ["*.0"], {"early.1", "late.1"}),
        (lambda m: ["early*"], {"late.0", "late.1"}),
        (lambda m: ["early"], {"late.0", "late.1"}),
        (lambda m: [m.late], {"early.0", "early.1"}),
        (lambda m: [m.late, "early.?"], set()),
        (lambda m: "late", {"early.0", "early.1"}),
        (lambda m: m.late, {"early.0", "early.1"}),
        (lambda m: (n for n in ["late", "early.0"]), {"early.1"}),
    ],
    ids=["module", "name", "glob", "glob of all", "container name", "container", "mixed", "one", "one module", "lazy"],
)
def test_ignored_layers_keep_all(ignored: Callable[[Any], Iterable[Any]], left: set[str]) -> None:
    model = Nested()
    graph = graph_of(model)
    if not left:
        with pytest.raises(NothingToCutError, match=r"early\.0: ignored"):
            plan_of(graph, ratio=0.5, scope="local", ignored_layers=ignored(model))
        return
    assert gone(plan_of(graph, ratio=0.5, scope="local", ignored_layers=ignored(model))) == dict.fromkeys(left, 4)


def test_an_ignored_layer_whose_weight_goes_by_anothers_name_keeps_all() -> None:
    """The filters of a tied decoder are the columns of its encoder's weight."""
    stem, first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(stem, first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = surgeon.channel_graph(surgeon.trace(model, torch.randn(1, 3, 8, 8)))
    scores = surgeon.score(graph, "magnitude")
    for ignored, left in (("3", {1}), ("0", {1})):
        plan = surgeon.make_plan(graph, scores, ratio=0.5, scope="local", ignored_layers=[ignored])
        small = surgeon.rewrite(model, plan)
        biases = {index: small.get_parameter(f"{index}.bias").shape for index in (0, 1, 3)}
        wanted = {0: (8,), 1: (16,), 3: (8,)}
        assert {index for index, shape in biases.items() if shape != wanted[index]} == left, ignored


def test_ignoring_one_of_a_coupled_pair_keeps_both() -> None:
    name = "ResidualIdentity"
    graph = graph_of(build(name), ZOO[name].example())
    assert set(gone(plan_of(graph, ratio=0.5, ignored_layers=["conv2"]))) == {"conv1"}


# --- refusals


@pytest.mark.parametrize(
    ("amounts", "told"),
    [
        ({}, r"^say how much to cut: filters=N, ratio=0\.5, or max_macs=, max_params="),
        ({"filters": 3, "ratio": 0.5}, r"^filters and ratio exclude each other: filters alone, ratio alone, or max_"),
        ({"filters": 3, "max_macs": 0.5}, r"^filters and max_macs exclude each other"),
        ({"ratio": 0.5, "max_params": 0.5}, r"^ratio and max_params exclude each other"),
        ({"filters": 0}, r"^filters=0: expected a positive whole number"),
        ({"filters": -4}, r"^filters=-4: expected a positive whole number"),
        ({"filters": 2.0}, r"^filters=2\.0: expected a positive whole number"),
        ({"filters": True}, r"^filters=True: expected a positive whole number"),
        ({"filters": "3"}, r"^filters='3': expected a positive whole number"),
        ({"filters": 10**9}, r"^filters=1000000000: at most 16 .*; ask for 16 or fewer"),
        ({"ratio": 0}, r"^ratio=0: expected the share of channels to remove, above 0 and below 1"),
        ({"ratio": 1.0}, r"^ratio=1\.0: expected the share"),
        ({"ratio": -0.5}, r"^ratio=-0\.5: expected"),
        ({"ratio": 50}, r"^ratio=50: expected"),
        ({"ratio": math.nan}, r"^ratio=nan: expected"),
        ({"ratio": "0.5"}, r"^ratio='0\.5': expected"),
        ({"ratio": 0.01}, r"^ratio=0\.01: no channel has to go.*smallest step removes 1 channels.*ask for more"),
        ({"max_macs": 0}, r"^max_macs=0: expected a share up to 1 \(0\.5 or '50%'\), or a whole number"),
        ({"max_macs": 1.5}, r"^max_macs=1\.5: expected a share"),
        ({"max_macs": -3}, r"^max_macs=-3: expected"),
        ({"max_macs": "half"}, r"^max_macs='half': expected"),
        ({"max_macs": "-5%"}, r"expected a share"),
        ({"max_macs": "nan"}, r"^max_macs='nan': expected"),
        ({"max_macs": math.nan}, r"^max_macs=nan: expected"),
        ({"max_macs": math.inf}, r"^max_macs=inf: expected"),
        ({"max_macs": "inf"}, r"^max_macs='inf': expected"),
        ({"max_params": "120%"}, r"expected a share"),
        ({"max_params": [1]}, r"^max_params=\[1\]: expected"),
        ({"max_params": 1.0}, r"no channel has to go"),
        ({"ratio": 0.5, "scope": "galactic"}, r"^scope='galactic': expected 'global' or 'local'"),
        ({"max_macs": 0.5, "time_goal": 0.4}, r"^time_goal=0\.4 is for round_to='auto'"),
        ({"ratio": 0.5, "round_to": 0}, r"^round_to=0: expected a positive whole number"),
        ({"ratio": 0.5, "round_to": 2.5}, r"^round_to=2\.5: expected"),
        ({"ratio": 0.5, "min_channels": 0}, r"^min_channels=0: expected a positive whole number"),
        ({"ratio": 0.5, "min_channels": None}, r"^min_channels=None: expected"),
        (
            {"ratio": 0.5, "min_channels": 100},
            r"no group has a smaller width \(at least min_channels=100, multiples of",
        ),
    ],
    ids=str,
)
def test_amounts_that_are_refused(amounts: dict[str, Any], told: str) -> None:
    with pytest.raises(BudgetError, match=told):
        plan_of(graph_of(chain(10, 8, 4)), **amounts)


@pytest.mark.parametrize(
    ("ignored", "told"),
    [
        (["erly"], r"^ignored_layers: 'erly' matches no layer of the model; did you mean 'early', "),
        (["*.9"], r"^ignored_layers: '\*\.9' matches no layer of the model$"),
        ([nn.Linear(2, 2)], r"^ignored_layers holds a Linear that is no part of this model; pass the model's own"),
        (["early", "lat"], r"'lat' matches no layer.*did you mean 'late'"),
        ([3], r"ignored_layers"),
    ],
    ids=["name", "glob", "module", "second", "number"],
)
def test_selections_that_are_refused(ignored: list[Any], told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        plan_of(graph_of(Nested()), ratio=0.5, ignored_layers=ignored)


def test_nothing_to_cut_lists_every_layer() -> None:
    name = "SoftmaxOverChannels"
    graph = graph_of(build(name), ZOO[name].example())
    with pytest.raises(NothingToCutError) as caught:
        plan_of(graph, ratio=0.5, ignored_layers=["last"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "nothing in this model can be cut:"
    assert lines[1].startswith("  conv: mixes channels in _softmax (")
    assert lines[2:] == ["  last: ignored", "  fc: output"]


def test_a_model_without_weights_says_so() -> None:
    with pytest.raises(NothingToCutError, match="it has no convolution or linear weight"):
        plan_of(graph_of(nn.ReLU()), ratio=0.5)


# --- JSON


@pytest.fixture(name="made", scope="module")
def _made() -> tuple[nn.Module, Plan]:
    return a_plan()


@functools.cache
def a_plan() -> tuple[nn.Module, Plan]:
    """A model and a plan for it, never changed."""
    name = "PlainChain"
    model = build(name)
    return model, plan_of(graph_of(model, ZOO[name].example()), filters=9)


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "FusedAttention", "TwoInputs", "EmbeddingMlp"])
def test_a_plan_survives_json_and_fits_a_fresh_copy(name: str) -> None:
    model = build(name)
    plan = plan_of(graph_of(model, ZOO[name].example()), ratio=0.4)
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert read.to_json() == plan.to_json()
    fresh, small = surgeon.rewrite(build(name), read), surgeon.rewrite(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), small.parameters(), strict=True))


def test_the_json_says_what_was_asked(made: tuple[nn.Module, Plan]) -> None:
    data = json.loads(made[1].to_json())
    assert (data["surgeon_plan"], data["model"], data["criterion"]) == (1, "PlainChain", "magnitude")
    assert data["budget"] == {"filters": 9, "scope": "global", "min_channels": 1}
    assert sum(map(len, data["removed"].values())) == 9


def test_an_edited_plan_works_on_a_fresh_model(made: tuple[nn.Module, Plan]) -> None:
    data = json.loads(made[1].to_json())
    name = next(iter(data["removed"]))
    more = next(c for c in range(16) if c not in data["removed"][name])
    data["removed"][name].append(more)
    plan = Plan.from_json(json.dumps(data))
    fresh = build("PlainChain")
    small = surgeon.rewrite(fresh, plan)
    assert filters_of(fresh) - filters_of(small) == 10
    assert surgeon.verify(fresh, small, plan, ZOO["PlainChain"].example()).status == "passed"


def test_an_empty_plan_changes_nothing(made: tuple[nn.Module, Plan]) -> None:
    plan = Plan.from_json('{"surgeon_plan": 1, "removed": {}}')
    small = surgeon.rewrite(made[0], plan, ZOO["PlainChain"].example())
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), made[0].parameters(), strict=True))


def forged(made: tuple[nn.Module, Plan], path: list[str | int], value: Any) -> str:
    """The plan's JSON with one value replaced."""
    data = json.loads(made[1].to_json())
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data)


def apply(made: tuple[nn.Module, Plan], text: str) -> nn.Module:
    return surgeon.rewrite(made[0], Plan.from_json(text))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["surgeon_plan"], 2, r"not a surgeon plan of format 1 \(the field surgeon_plan is missing or different\)"),
        (["model"], 3, r"field 'model' is int, expected str"),
        (["seed"], True, r"field 'seed' is bool, expected int"),
        (["budget"], [], r"field 'budget' is list, expected dict"),
        (["removed"], [], r"field 'removed' is missing or no object"),
        (["removed", "conv9"], [0], r"cuts group 'conv9', which this model doesn't have \(it has conv1, conv2, ...\)"),
        (["removed", "conv1"], [16], r"removes channel 16 of group 'conv1', which has no such channel"),
        (["removed", "conv1"], [10**30], r"which has no such channel"),
        (["removed", "conv1"], [-1], r"channels of group 'conv1' must be distinct whole numbers"),
        (["removed", "conv1"], [1, 1], r"must be distinct"),
        (["removed", "conv1"], [1.0], r"must be distinct whole numbers"),
        (["removed", "conv1"], [True], r"must be distinct whole numbers"),
        (["removed", "conv1"], [[1]], r"must be distinct whole numbers"),
        (["removed", "conv1"], "12", r"must be distinct whole numbers"),
        (["removed", "conv1"], list(range(16)), r"removes all 16 channels of group 'conv1': at least one must stay"),
        (["removed", "fc"], [0], r"cuts group 'fc', which this model doesn't have"),
        (["inputs"], None, r"doesn't say what the model takes; pass example_inputs"),
        (["inputs"], "image", r"description of the example inputs can't be read"),
        (["inputs", "args", "list", 0, "dtype"], "load", r"can't be read: 'load' is no dtype"),
        (["inputs", "args", "list", 0, "tensor"], [1, 3, -1, 8], r"can't be read: .*out of bounds"),
        (["inputs", "args", "list", 0, "tensor"], [10**6, 10**6], r"can't be read: .*out of bounds"),
        (["inputs", "args", "list", 0, "tensor"], [math.inf], r"can't be read"),
        (["inputs", "args", "list", 0, "tensor"], [2**62, 2**62, 4, 4], r"can't be read"),
        (["inputs", "args", "list", 0, "tensor"], [0, 3, 8, 8], r"example inputs|as the plan describes them"),
        (["inputs", "args", "list", 0, "tensor"], [2, 4, 8, 8], r"doesn't run on inputs as the plan describes them"),
        (["inputs", "args", "list"], [], r"tensor"),
        (["inputs", "args", "list"], [{"value": 3}], r"tensor"),
        (["inputs", "kwargs", "dict"], {"more": {"value": 1}}, r"unexpected keyword .*; pass example_inputs"),
        (["inputs", "args", "list", 0], {"opaque": "Image"}, r"type Image can't be made again; pass example_inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_forged_plans(made: tuple[nn.Module, Plan], path: list[str | int], value: Any, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        apply(made, forged(made, path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"plan"', "{}", "[" * 100_000, "\x00", "NaN"])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError, match=r"no JSON|not a surgeon plan"):
        Plan.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PATHS = st.sampled_from(
    [
        ["surgeon_plan"], ["model"], ["criterion"], ["seed"], ["budget"], ["inputs"], ["removed"],
        ["inputs", "args"], ["inputs", "kwargs"], ["inputs", "kwargs", "dict"], ["inputs", "args", "list", 0],
        ["inputs", "args", "list", 0, "tensor"], ["inputs", "args", "list", 0, "dtype"],
        ["removed", "conv1"], ["removed", "conv2"], ["removed", "new"], ["removed", "conv1", 0],
    ]
)  # fmt: skip


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PATHS, JSON)
def test_a_forged_field_is_a_plan_error_or_harmless(path: list[str | int], value: Any) -> None:
    try:
        small = apply(a_plan(), forged(a_plan(), path, value))
    except PlanError:
        return
    assert isinstance(small, ZOO["PlainChain"])


def test_a_plan_for_another_model(made: tuple[nn.Module, Plan]) -> None:
    with pytest.raises(PlanError, match="doesn't have"):
        surgeon.rewrite(chain(4, 4), Plan.from_json(made[1].to_json()), X)


# --- one after another


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "DenseList", "FlattenLinear"])
def test_plans_compose(name: str) -> None:
    """A pruned model is a model: cut again, it loses what the second plan says, and is proven against the first."""
    inputs = ZOO[name].example()
    first = surgeon.prune(build(name), inputs, ratio=0.3, scope="local", criterion="magnitude")
    second = surgeon.prune(first.model, inputs, ratio=0.4, scope="local", criterion="magnitude")
    check = second.report.check
    assert check is not None
    assert check.status == "passed"
    again = surgeon.rewrite(surgeon.rewrite(build(name), first.plan), second.plan)
    torch.testing.assert_close(again(*inputs), second.model(*inputs), rtol=0, atol=0)
    assert filters_of(second.model) < filters_of(first.model)


def test_a_stale_plan_is_not_applied_twice() -> None:
    """Applied to its own result, the plan names channels that are gone, or others: never silently the same ones."""
    model = chain(6, 4)
    plan = plan_of(graph_of(model), filters=4)
    small = surgeon.rewrite(model, plan, inplace=True)
    with pytest.raises(PlanError):
        surgeon.rewrite(small, plan)


def test_the_oracle_notices_another_plan() -> None:
    """The comparison that these tests lean on can fail."""
    model = redraw(chain(6, 4), 0).double().eval()
    plan = plan_of(graph_of(model, X.double()), filters=2)
    source = surgeon.rewriting.fit(model, plan).source
    small = copy.deepcopy(surgeon.rewrite(model, plan))
    judge(model, small, source, X.double())
    with torch.no_grad():
        small[2].weight.mul_(-1)  # type: ignore[index]
    with pytest.raises(OracleError):
        judge(model, small, source, X.double())


@QUICK
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=4))
def test_moves_come_the_least_useful_first_and_each_bundles_in_its_own_order(scores: list[list[int]]) -> None:
    heads, taken = [0] * len(scores), []
    while any(head < len(own) for head, own in zip(heads, scores, strict=True)):
        open_ends = [(own[head], i) for i, (head, own) in enumerate(zip(heads, scores, strict=True)) if head < len(own)]
        _, index = min(open_ends)
        heads[index] += 1
        taken.append((index, heads[index]))
    moves = in_order([stairs(own) for own in scores])
    assert list(zip(moves.bundles.tolist(), moves.counts.tolist(), strict=True)) == taken


def stairs(scores: list[int]) -> Staircase:
    ones = np.ones(len(scores), dtype=np.int64)
    levels = np.cumsum(ones)
    return Staircase(levels, ones, ones, np.array(scores, dtype=np.float64), (levels,), levels[:, None])


def test_a_budget_out_of_reach_says_what_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.Softmax(dim=-1), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = surgeon.channel_graph(surgeon.trace(model, torch.randn(2, 6)))
    with pytest.raises(BudgetError, match=r"that stay, and why: mixes channels in _softmax \(12\)"):
        surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), max_params=0.05)
