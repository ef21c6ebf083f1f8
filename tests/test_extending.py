"""What users add: rules for their own operators, modules that stay as they are. The document's examples run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import ModelError, SelectionError
from surgeon.rules import TABLE, Ledger, Marked, mix, pointwise, rule

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """Leave the table as it was."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_documents_examples(code: str) -> None:
    exec(compile(code, "extending.md", "exec"), {"__name__": "extending"})


def test_the_documents_examples_are_short() -> None:
    assert len(EXAMPLES) == 2
    assert all(sum(bool(line.strip()) for line in code.splitlines()) <= 20 for code in EXAMPLES)


def test_the_documents_rules_can_be_imported() -> None:
    for name in re.findall(r"^\| `(\w+)\(", DOCUMENT, flags=re.MULTILINE):
        assert name in surgeon.rules.__all__


# ---------------------------------------------------------------- operators


@torch.library.custom_op("surgeon_tests::curve", mutates_args=())
def curve(x: Tensor, slope: float) -> Tensor:
    return x * torch.sigmoid(slope * x)


@torch.library.custom_op("surgeon_tests::mul", mutates_args=())
def mul(x: Tensor, slope: float) -> Tensor:
    """Its name is that of another operator; it mixes channels."""
    return slope * x + x.mean(1, keepdim=True) ** 2


def _keep(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.slope = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    share = torch.sigmoid(ctx.slope * x)
    return grad * (share + ctx.slope * x * share * (1 - share)), None


for _operator in (curve, mul):
    _operator.register_fake(lambda x, slope: torch.empty_like(x))
curve.register_autograd(_backward, setup_context=_keep)


class Between(nn.Module):
    """Two convolutions, and an operator between them."""

    def __init__(self, function: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.function(self.first(x), 1.5))
        return result.mean((2, 3))


def between(function: Callable[[Tensor, float], Tensor]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Between(function).eval(), torch.randn(4, 3, 10, 10)


def test_an_operator_with_a_rule_is_cut_ranked_checked_and_trained() -> None:
    rule("surgeon_tests::curve")(pointwise)
    model, x = between(curve)
    result = surgeon.prune(model, x, ratio=0.5, dataloader=[(x, torch.tensor([0, 1, 2, 3]))])
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.get_parameter("first.weight").shape[0] == 6
    result.model(x).square().mean().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_an_operator_with_a_rule_in_a_graph() -> None:
    rule("surgeon_tests::curve")(pointwise)
    model, x = between(curve)
    result = surgeon.prune(model, x, ratio=0.5, criterion="magnitude", as_graph=True)
    assert result.model.get_parameter("first.weight").shape[0] == 6


@pytest.mark.parametrize(("function", "name"), [(curve, "surgeon_tests::curve"), (mul, "surgeon_tests::mul")])
def test_an_operator_without_a_rule_is_named_with_its_library(function: Any, name: str) -> None:
    model, x = between(function)
    pinned = surgeon.channel_graph(surgeon.trace(model, x)).pinned
    assert {pin.layer: pin.reason for pin in pinned}["first"] == f"operator without rule {name}"


def test_a_rule_that_promises_too_much_is_found_out() -> None:
    rule("surgeon_tests::mul")(pointwise)
    model, x = between(mul)
    graph = surgeon.channel_graph(surgeon.trace(model, x))
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), ratio=0.5)
    with pytest.raises(surgeon.VerificationError, match=r"surgeon_tests::mul"):
        surgeon.verify(model, surgeon.rewrite(model, plan), plan, x)


def test_a_rule_of_ones_own() -> None:
    @rule("surgeon_tests::mul")
    def mixed(ledger: Ledger, x: Marked, slope: float) -> Marked:
        return mix(ledger, x, [1])

    model, x = between(mul)
    pinned = surgeon.channel_graph(surgeon.trace(model, x)).pinned
    assert {pin.layer: pin.reason for pin in pinned}["first"] == "mixes channels in surgeon_tests::mul"


def test_two_rules_for_one_operator_are_refused() -> None:
    rule("surgeon_tests::curve")(pointwise)
    with pytest.raises(ValueError, match="two rules for operator 'surgeon_tests::curve'"):
        rule("surgeon_tests::curve")(pointwise)


# ---------------------------------------------------------------- units


class Squeeze(nn.Module):
    """A gate whose forward is its own: what it takes is used twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, 6, 1)
        self.outer = nn.Conv2d(6, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.outer(self.inner(x).relu()))


class Units(nn.Module):
    """One gate in the way, one that nothing with filters reads directly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.gate = Squeeze(8)
        self.middle = nn.Conv2d(8, 10, 3)
        self.norm = nn.BatchNorm2d(10)
        self.other = Squeeze(10)
        self.last = nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.norm(self.middle(self.gate(self.stem(x)).relu())))
        result: Tensor = self.head(self.last(x).mean((2, 3)))
        return result


def cut(model: nn.Module, **options: Any) -> surgeon.Result:
    x = torch.randn(2, 3, 10, 10)
    return surgeon.prune(model.eval(), x, ratio=0.5, scope="local", criterion="magnitude", **options)


def widths(result: surgeon.Result) -> dict[str, int]:
    return {row.name: row.after for row in result.report.layers}


ALL = {"stem": 4, "gate.inner": 3, "gate.outer": 4, "middle": 5, "other.inner": 3, "other.outer": 5, "last": 4}


@pytest.mark.parametrize(
    ("units", "whole"),
    [
        (lambda m: (), {}),
        (lambda m: ["gate"], {"stem": 8, "gate.inner": 6, "gate.outer": 8}),
        (lambda m: [m.other], {"middle": 10, "other.inner": 6, "other.outer": 10}),
        (lambda m: m.norm, {"middle": 10, "other.outer": 10}),
        (lambda m: "gate.i*", {"stem": 8, "gate.inner": 6, "gate.outer": 8}),
        (lambda m: (name for name in ["last"]), {"middle": 10, "other.outer": 10, "last": 8}),
    ],
    ids=["none", "name", "module", "norm", "glob", "lazy"],
)
def test_a_unit_stays_with_all_that_enters_and_leaves_it(units: Any, whole: dict[str, int]) -> None:
    model = Units()
    result = cut(model, units=units(model), strict=True)
    found = widths(result)
    assert {name: found[name] for name in ALL} == ALL | whole
    assert {p.layer for p in result.report.pinned if p.reason == "ignored"} == set(whole)


def test_a_unit_without_weights_keeps_what_meets_in_it() -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y], 1)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(14, 8, 1)
            self.joined, self.head = Joined(), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.three(self.joined(self.one(x), self.two(x))))
            return result

    found = widths(cut(Two(), units=["joined"]))
    assert [found[name] for name in ("one", "two", "three")] == [8, 6, 4]


def test_ignored_layers_give_their_inputs() -> None:
    assert widths(cut(Units(), ignored_layers=["last"])) == ALL | {"last": 8, "head": 5}


def test_a_unit_that_is_not_there_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"^units: 'gat' matches no layer of the model; did you mean 'gate'"):
        cut(Units(), units=["gat"])


def test_units_of_a_graph_are_refused() -> None:
    with pytest.raises(ModelError, match="give as_graph=True or units, not both"):
        cut(Units(), units=["gate"], as_graph=True)
