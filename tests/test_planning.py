"""Plans: exact amounts, and clear refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import surgeon
from surgeon.cost import Cost
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.planning.moves import Staircase, in_order
from tests.networks import Spec, networks
from tests.planned import QUICK, chain, costs, filters_of, gone, graph_of, plan_of, widths_of
from tests.test_zoo import build
from tests.zoo import ZOO

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
        ({"max_macs": 0.5, "time_goal": 0.4}, r"^time_goal=0\.4 is for round_to='auto', .*: give both, or neither"),
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
