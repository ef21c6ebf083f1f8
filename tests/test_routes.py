"""Layers that the example doesn't reach: the cut model runs wherever the data takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.channels import channel_graph
from surgeon.criteria.gates import GatedModel
from surgeon.errors import VerificationError
from surgeon.rewriting import fit
from tests.oracle import compare
from tests.test_zoo import build, inputs_of
from tests.zoo.base import conv, draw
from tests.zoo.routes import ELSEWHERE, RoutedByDigits, RoutedByTest


def prune(model: nn.Module, inputs: Any, **options: Any) -> surgeon.Result:
    return surgeon.prune(model, inputs, ratio=0.5, scope="local", criterion="random", **options)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_cut_model_is_exact_on_data_that_goes_elsewhere(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    result = prune(model, inputs)
    compare(model, result.model, fit(model, result.plan, inputs).source, ELSEWHERE[name])


def test_a_detour_is_taken_only_where_layers_are_unreached() -> None:
    model = build("RoutedByTest")
    assert surgeon.trace(model, draw(2, 3, 8, 8)).passes == ("detour",)
    del model.hard
    assert surgeon.trace(model, draw(2, 3, 8, 8)).passes == ()


def test_a_detour_costs_nothing() -> None:
    """Neither work nor time of layers that the example doesn't reach is counted."""
    model = build("RoutedByTest")
    report = prune(model, draw(2, 3, 8, 8)).report
    del model.hard
    assert report.macs_before == prune(model, draw(2, 3, 8, 8)).report.macs_before


class Converging(RoutedByTest):
    """A loop that only the data ends, and a check that only good data passes."""

    def forward(self, x: Tensor) -> Any:
        while x.abs().max() > 1:
            x = x / 2
        if not x.isfinite().all():
            raise ValueError("not finite")
        return super().forward(x)


def test_a_loop_that_would_not_end_is_left() -> None:
    model = Converging().double().eval()
    result = prune(model, draw(2, 3, 8, 8))
    assert result.model.get_parameter("hard.weight").shape == (8, 6, 3, 3)


class Unused(RoutedByTest):
    """A layer that nothing calls beside a test that is taken both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = conv(12, 16)


def test_a_layer_that_no_decision_leads_to_holds_nothing() -> None:
    result = prune(Unused().double().eval(), draw(2, 3, 8, 8))
    assert result.model.get_parameter("stem.weight").shape[0] == 6
    assert {pin.layer: pin.reason for pin in result.report.pinned}["unused"] == "not reached by the example inputs"


def test_what_stays_for_an_unseen_layer_names_it_and_the_line() -> None:
    pins = {pin.layer: pin for pin in prune(build("RoutedByDigits"), draw(2, 3, 8, 8)).report.pinned}
    assert pins["stem"].reason == "as wide as hard, which other data may reach: pass example inputs that do"
    assert "routes.py" in str(pins["stem"].source)


class NothingLeft(RoutedByTest):
    """A layer that runs only where a mask picks nothing, on what no label says anything about."""

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        rows = stem[x.mean((1, 2, 3)) > -100]
        y = self.easy(rows) if len(rows) else self.hard(rows).split([0])[0]
        return self.fc(y.mean((2, 3)))


def test_a_way_that_labels_follow_to_a_call_alone_is_followed_so_far() -> None:
    model, x = NothingLeft().double().eval(), draw(2, 3, 8, 8)
    assert surgeon.trace(model, x).passes == ("detour",)
    result = prune(model, x)
    reasons = {pin.layer: pin.reason for pin in result.report.pinned}
    assert reasons["hard"] == "operator split_with_sizes: its rule failed"
    assert result.model.get_parameter("hard.weight").shape == (
        16,
        6,
        3,
        3,
    )  # goes with the stem
    nothing = torch.full_like(x, -1000.0)  # the other way
    assert result.model(nothing).shape == model(nothing).shape == (0, 5)


class Concatenated(RoutedByDigits):
    """The unseen branch reads two values at once, so nothing that is seen is as wide as it."""

    hard_reads = 28
    usual = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.after = conv(8, 8)

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        easy = self.easy(stem)
        near = 1e-9 < abs(stem.mean().item() - self.usual) < 1
        y = self.hard(torch.cat([stem, easy], 1)) if near else easy
        return self.fc(torch.relu(self.after(self.last(y))).mean((2, 3)))

    def settle(self, x: Tensor) -> None:
        self.usual = torch.relu(self.stem(x)).mean().item()


def test_a_cut_model_that_fails_on_its_own_decisions_is_planned_again() -> None:
    torch.manual_seed(0)
    model, x = Concatenated().double().eval(), draw(2, 3, 8, 8)
    model.settle(x)
    result = prune(model, x)
    assert any("not exact" in note for note in result.report.notes)
    assert result.model.get_parameter("after.weight").shape[0] == 4
    result.model(x)


def test_a_cut_model_that_fails_on_its_own_decisions_does_not_verify() -> None:
    torch.manual_seed(0)
    model, x = Concatenated().double().eval(), draw(2, 3, 8, 8)
    model.settle(x)
    result = prune(model, x, verify=False)
    with pytest.raises(VerificationError, match="fails on its own decisions"):
        surgeon.verify(model, result.model, result.plan, x)


def test_gates_follow_data_that_goes_elsewhere() -> None:
    """Each gate is the derivative of scaling what its own channel is read by, whatever layers the batch runs first."""
    model, batch = build("SparseExperts"), draw(8, 20, 10)
    structure = channel_graph(surgeon.trace(model, draw(2, 2, 10))).structure
    gated = GatedModel(structure, model)
    gated(batch).sum().backward()
    for number in range(8):
        weight = model.get_parameter(f"mixer.experts.{number}.2.weight")
        channel = structure.along(f"mixer.experts.{number}.0.weight", 0)[3]
        (gradient,) = torch.autograd.grad(model(batch).sum(), weight)
        expected = (gradient * weight)[:, 3].sum().detach()
        torch.testing.assert_close(gated.gates[:, channel].sum(), expected)
