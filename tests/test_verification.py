"""Verification: what is wrong is caught and named, what says nothing is not called proven."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import rewriting
from surgeon.errors import VerificationError
from surgeon.planning import Plan
from surgeon.tracing import named_tensors
from surgeon.trial import Fit
from tests import factories
from tests.planned import chain
from tests.test_zoo import build
from tests.zoo import ZOO

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cut(model: nn.Module, inputs: Any = X, criterion: str = "random") -> tuple[nn.Module, Plan]:
    """Half of every group gone, not yet verified."""
    result = surgeon.prune(model, inputs, ratio=0.5, scope="local", criterion=criterion, verify=False)
    return result.model, result.plan


def small_model() -> factories.Small:
    torch.manual_seed(0)
    return factories.Small().double().eval()


# --- caught


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "SqueezeExcite", "LayerNormLast", "TiedWeights"])
def test_every_wrong_tensor_is_caught(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    small, plan = cut(model, inputs)
    assert surgeon.verify(model, small, plan, inputs).status == "passed"
    for key, tensor in named_tensors(small).items():
        if not tensor.is_floating_point():
            continue
        wrong = copy.deepcopy(small)
        with torch.no_grad():
            named_tensors(wrong)[key].view(-1)[-1] += 0.5
        with pytest.raises(VerificationError, match=r"first at \w+ in "):
            surgeon.verify(model, wrong, plan, inputs)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("first.weight", "first"), ("norm.running_mean", "norm"), ("second.bias", "second"), ("head.weight", "head")],
)
def test_the_message_names_the_first_node(tensor: str, layer: str) -> None:
    model = small_model()
    small, plan = cut(model)
    with torch.no_grad():
        named_tensors(small)[tensor].add_(1)
    told = rf"on the model's own weights: first at \w+ in {layer} \(.*\.py:\d+\), relative error .*allowed 1e-09"
    with pytest.raises(VerificationError, match=told):
        surgeon.verify(model, small, plan, X)


@pytest.mark.parametrize(("silent", "reader"), [("norm", "second.weight"), ("second", "head.weight")])
def test_a_wrong_weight_behind_channels_that_are_never_active_is_caught(silent: str, reader: str) -> None:
    """No activation on the model's own weights shows it, but after the next training step it would matter."""
    model = small_model()
    with torch.no_grad():
        model.get_parameter(f"{silent}.bias")[:-1] = -1e3
    small, plan = cut(model, criterion="magnitude")
    with torch.no_grad():
        small.get_parameter(reader)[0, 0] += 0.5
    assert float(small.get_parameter(f"{silent}.bias").detach()[0]) == -1e3
    with pytest.raises(VerificationError):
        surgeon.verify(model, small, plan, X)


def test_another_plan_is_caught() -> None:
    model = small_model()
    small, plan = cut(model)
    other = Plan(plan.model, {name: tuple(c + 1 for c in gone if c + 1 < 8) for name, gone in plan.removed.items()})
    with pytest.raises(VerificationError):
        surgeon.verify(model, small, other, X)


def test_the_dense_model_itself_is_no_cut() -> None:
    model = small_model()
    _, plan = cut(model)
    with pytest.raises(VerificationError):
        surgeon.verify(model, copy.deepcopy(model), plan, X)


class Switched(factories.Small):
    """Its activation can be exchanged behind the back of the plan."""

    other = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = torch.tanh(x) if self.other else torch.relu(x)
        scores: Tensor = self.head(torch.relu(self.second(x)).mean((2, 3)))
        return scores


def test_another_forward_is_caught() -> None:
    model = Switched().double().eval()
    small, plan = cut(model)
    small.other = True  # type: ignore[assignment]  # a plain attribute
    with pytest.raises(VerificationError):
        surgeon.verify(model, small, plan, X)


def test_the_twin_catches_a_wiring_that_the_own_weights_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """All filters alike: on the model's own weights any order of the channels gives the same numbers."""
    model = chain(8, 6).double()
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.1)  # type: ignore[arg-type]
        nn.init.constant_(layer.bias, 0.2)  # type: ignore[arg-type]
    right = Fit.positions

    def rolled(self: Fit, name: str, axis: int) -> Tensor:
        found = right(self, name, axis)
        return found.roll(1) if (name, axis) == ("2.weight", 1) else found

    monkeypatch.setattr(Fit, "positions", rolled)
    with pytest.raises(VerificationError, match=r"on redrawn weights: first at convolution in 2, .*allowed 1e-09"):
        surgeon.prune(model, X, ratio=0.5, criterion="random")
    monkeypatch.setattr(Fit, "positions", right)
    assert surgeon.prune(model, X, ratio=0.5, criterion="random").report.check is not None


def test_nothing_is_returned_and_nothing_changed_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    right = Fit.positions
    monkeypatch.setattr(Fit, "positions", lambda self, name, axis: right(self, name, axis).flip(0))
    monkeypatch.setattr(surgeon.cutting, "run_check", _fails)
    with pytest.raises(VerificationError):
        surgeon.prune(model, X, ratio=0.5, criterion="random", inplace=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.first.out_channels == 8


def _fails(*_: Any, **__: Any) -> None:
    raise VerificationError("made up")


# --- unproven


def test_a_head_of_zeros_is_unproven() -> None:
    model = small_model()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    small, plan = cut(model)
    check = surgeon.verify(model, small, plan, X)
    assert check.status == "unproven"
    assert any("head" in row for row in check.unproven)


def test_a_head_of_zeros_hides_no_wrong_weight_before_it() -> None:
    model = small_model()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    small, plan = cut(model)
    with torch.no_grad():
        small.get_parameter("second.weight").flatten()[0] += 1
    with pytest.raises(VerificationError, match="in second"):
        surgeon.verify(model, small, plan, X)


@pytest.mark.parametrize("tensor", ["first.weight", "norm.running_var", "second.bias", "head.weight"])
@pytest.mark.parametrize("where", ["both", "small"])
def test_weights_that_are_no_numbers_never_pass(tensor: str, where: str) -> None:
    model, value = small_model(), float("nan")
    if where == "both":
        named_tensors(model)[tensor].detach().fill_(value)
    small, plan = cut(model)
    named_tensors(small)[tensor].detach()[0] = value
    try:
        check = surgeon.verify(model, small, plan, X)
    except VerificationError:
        return
    assert check.status == "unproven"


def test_what_ended_a_comparison_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small, plan = cut(small_model())

    def fails(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("surgeon.verification.comparison._apart", fails)
    check = surgeon.verify(small_model(), small, plan, X)
    assert check.status == "unproven"
    assert re.fullmatch(r"\w+ in first.*: RuntimeError: no such kernel", check.stopped)


# --- passed


class OwnFilter(nn.Module):
    """A forward that makes the filter of a convolution itself, in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x, row = self.conv(x).relu(), torch.tensor([1.0, 2.0, 1.0])
        x = nn.functional.conv2d(x.flatten(0, 1)[:, None], torch.outer(row, row)[None, None]).view(*x.shape[:2], 6, 6)
        return self.head(x.square().mean((2, 3)))


class MaskedScores(nn.Module):
    """torch's attention adds a mask of infinities to its scores in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(3, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).triu(1)
        return self.head(x + self.attention(x, x, x, attn_mask=mask)[0])


class OverItsPast(nn.Module):
    """A first step whose past is zeros that go through a convolution and a layer, as in Tacotron 2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score, self.head = nn.Linear(3, 16), nn.Linear(16, 1), nn.Linear(16, 5)
        self.past, self.dense = nn.Conv1d(2, 8, 3, padding=1, bias=False), nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        weights = total = torch.zeros(x.shape[:2], dtype=x.dtype)
        for _ in range(2):
            seen = self.past(torch.stack((weights, total), 1)).transpose(1, 2)
            weights = self.score(torch.tanh(x + self.dense(seen))).squeeze(-1).softmax(-1)
            total = total + weights
        return self.head((x * weights[..., None]).sum(1))


@pytest.mark.parametrize("network", [MaskedScores, OverItsPast])
def test_a_mask_of_infinities_and_a_past_of_zeros_leave_nothing_unproven(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3)
    model = network().eval()
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert (result.report.check.status, result.report.check.unproven) == ("passed", ())
    for name in ("embed.weight", "head.weight"):
        wrong = copy.deepcopy(result.model)
        with torch.no_grad():
            named_tensors(wrong)[name].view(-1)[-1] += 0.5
        with pytest.raises(VerificationError, match=r"first at \w+ in "):
            surgeon.verify(model, wrong, result.plan, x)


def test_numbers_that_the_forward_makes_are_in_double_precision_too() -> None:
    result = surgeon.prune(OwnFilter().eval(), X.float(), ratio=0.5, criterion="random")
    assert result.report.check is not None
    assert (result.report.check.status, result.report.check.stopped) == ("passed", "")


class Scattered(nn.Module):
    """Adds up messages in a table that it makes without naming a type, as graph networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, target: Tensor) -> Any:
        messages = self.first(x)
        return self.head(torch.zeros(4, messages.shape[1]).index_add(0, target, messages))


class Encoded(nn.Module):
    """Encodes positions that it makes without naming a type."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(1, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        steps = torch.linspace(0, 1, x.shape[1]) * (torch.arange(x.shape[1]) / 2)
        return self.head(torch.tanh(self.first(steps[:, None]))) + x.mean()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(Scattered(), (torch.ones(6, 5), torch.tensor([0, 1, 1, 2, 0, 3]))), (Encoded(), (torch.ones(2, 7),))],
)
def test_numbers_made_without_naming_a_type_are_proven(model: nn.Module, inputs: Any) -> None:
    result = surgeon.prune(model.eval(), inputs, ratio=0.5, criterion="random")
    assert result.report.check is not None
    assert (result.report.check.status, result.report.check.stopped) == ("passed", "")
    assert result.report.check.error < 1e-12
    assert torch.get_default_dtype() is torch.float32


def test_a_check_says_what_it_saw() -> None:
    model = small_model()
    small, plan = cut(model)
    check = surgeon.verify(model, small, plan, X)
    assert (check.status, check.unproven, check.kept_statistics) == ("passed", (), ())
    assert check.nodes >= 7
    assert check.error < 1e-12
    assert check.own_error < 1e-12


def test_statistics_over_channels_are_named() -> None:
    name = "LayerNormLast"
    model, inputs = build(name), ZOO[name].example()
    small, plan = cut(model, inputs)
    assert surgeon.verify(model, small, plan, inputs).kept_statistics == ("norm",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_proven_in_more(dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    small, plan = cut(model, X.to(dtype))
    check = surgeon.verify(model, small, plan, X.to(dtype))
    assert (check.status, check.error < 1e-12) == ("passed", True)


def test_a_plan_from_json_verifies_like_the_fitted_one() -> None:
    model = small_model()
    small, plan = cut(model)
    assert surgeon.verify(model, small, Plan.from_json(plan.to_json()), X) == surgeon.verify(model, small, plan, X)


def test_verifying_changes_neither_model() -> None:
    model = small_model().train()
    small, plan = cut(model)
    before = [copy.deepcopy(m.state_dict()) for m in (model, small)]
    surgeon.verify(model, small, plan, X)
    for module, state in zip((model, small), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
        assert all(m.training for m in module.modules())


def test_wrappers_are_taken_off() -> None:
    model = small_model()
    small, plan = cut(model)
    assert surgeon.verify(nn.DataParallel(model), nn.DataParallel(small), plan, X).status == "passed"


class Steep(nn.Module):
    """Makes so much of the last digit of its features that single precision says nothing of what comes behind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        result: Tensor = self.head(torch.sin(1e5 * x).mean((2, 3)))
        return result


def test_rounding_that_the_model_makes_much_of_is_no_difference() -> None:
    model = Steep().eval()
    small, plan = cut(model, X.float())
    check = surgeon.verify(model, small, plan, X.float())
    assert check.status == "passed"
    assert check.own_error < 1e-9


def test_a_difference_that_looks_like_rounding_is_one() -> None:
    model = Steep().eval()
    small, plan = cut(model, X.float())
    with torch.no_grad():
        named_tensors(small)["first.weight"].view(-1)[0] *= 1 + 1e-6
    with pytest.raises(VerificationError, match="own weights"):
        surgeon.verify(model, small, plan, X.float())


def test_it_is_run_on_the_inputs_that_are_given() -> None:
    """Also where the plan still knows the recording that it was made from."""
    model = small_model()
    graph = surgeon.channel_graph(surgeon.trace(model, X))
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), ratio=0.3)
    small = surgeon.rewrite(model, plan)
    assert surgeon.verify(model, small, plan, X).status == "passed"
    assert surgeon.verify(model, small, plan, X[:, :, :6, :6].contiguous()).status == "passed"
    assert surgeon.verify(model, small, plan, torch.full_like(X, float("nan"))).status == "unproven"
    with pytest.raises(RuntimeError, match="conv2d"):
        surgeon.verify(model, small, plan, torch.zeros(1, dtype=torch.float64))


def test_a_fit_is_one_on_the_inputs_that_are_given() -> None:
    model = small_model()
    graph = surgeon.channel_graph(surgeon.trace(model, X))
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), ratio=0.3)
    other = X[:, :, :6, :6].contiguous()
    assert rewriting.fit(model, plan, X) is plan.fitted
    assert rewriting.fit(model, plan, other).graph.trace.inputs.args[0] is other


class Centred(nn.Module):
    """A norm over channels written by hand, behind one of torch's: the mean that it takes is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.gain = nn.Parameter(torch.ones(16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return self.head(x * self.gain)  # type: ignore[no-any-return]  # torch's modules are untyped


def test_what_cancels_to_rounding_is_no_difference() -> None:
    torch.manual_seed(0)
    model = Centred().eval()
    result = surgeon.prune(model, torch.randn(5, 8), ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.get_submodule("stem").weight.shape == (8, 8)
    small = copy.deepcopy(result.model)
    with torch.no_grad():
        small.get_parameter("gain")[0] += 1e-6
    with pytest.raises(VerificationError, match="first at mul"):
        surgeon.verify(model, small, result.plan, torch.randn(5, 8))
