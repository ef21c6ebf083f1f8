"""Plans as JSON that can be edited but not abused, and one after another."""

from __future__ import annotations

import copy
import functools
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import surgeon
from surgeon.errors import PlanError
from surgeon.planning import Plan
from tests.networks import redraw
from tests.oracle import OracleError
from tests.oracle import compare as judge
from tests.planned import X, chain, filters_of, graph_of, plan_of
from tests.test_zoo import build
from tests.zoo import ZOO


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
