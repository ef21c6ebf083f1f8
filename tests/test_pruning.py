"""``surgeon.prune``: bad input, data of every shape, repeatability, and a report that adds up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon import cutting
from surgeon.criteria import Request
from surgeon.errors import (
    BudgetError,
    HealingError,
    InputError,
    ModelError,
    NothingToCutError,
    ScoreError,
    SelectionError,
    SurgeonError,
)
from tests import factories
from tests.test_tracing import Picture
from tests.test_zoo import build
from tests.zoo import ZOO

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([1, 3])
BATCHES = [(X, TARGETS), (X.flip(0), TARGETS.flip(0))]


def small_model() -> factories.Small:
    torch.manual_seed(0)
    return factories.Small().eval()


# --- bad input: one clear error, and the model untouched


class _Named(nn.Module):
    """Feature maps by name: no class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Any:
        return {"map": self.two(self.one(x)).mean((1, 2, 3))}


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], type[SurgeonError], str]] = {
    "negative": (small_model, {"filters": -1}, BudgetError, "filters=-1: expected a positive whole number"),
    "zero": (small_model, {"filters": 0}, BudgetError, "filters=0: expected a positive whole number"),
    "too many": (small_model, {"filters": 19}, BudgetError, "at most 18 .* ask for 18 or fewer"),
    "two amounts": (small_model, {"filters": 1, "ratio": 0.5}, BudgetError, "filters and ratio exclude each other"),
    "limit too": (small_model, {"filters": 1, "max_macs": 0.5}, BudgetError, "filters and max_macs exclude"),
    "no amount": (small_model, {}, BudgetError, "say how much to cut"),
    "out of reach": (small_model, {"max_macs": 3}, BudgetError, "is the least that can be reached"),
    "no data": (small_model, {"filters": 1, "criterion": "taylor"}, ScoreError, "pass dataloader=.*'magnitude'"),
    "no batch": (
        small_model,
        {"filters": 1, "criterion": "taylor", "dataloader": []},
        ScoreError,
        r"gave no batch; pass one that yields \(inputs, targets\)",
    ),
    "bare batch": (
        small_model,
        {"filters": 1, "criterion": "taylor", "dataloader": [X]},
        ScoreError,
        r"gave a Tensor; expected \(inputs, targets\), or pass forward_loss",
    ),
    "criterion": (small_model, {"filters": 1, "criterion": "tailor"}, SelectionError, "did you mean 'taylor'"),
    "layer": (small_model, {"filters": 1, "ignored_layers": ["secnd"]}, SelectionError, "did you mean 'second'"),
    "scope": (small_model, {"filters": 1, "scope": "all"}, BudgetError, "expected 'global' or 'local'"),
    "loss is NaN": (
        factories.not_a_number,
        {"filters": 1, "criterion": "taylor", "dataloader": BATCHES},
        ScoreError,
        r"loss of batch 1 is not finite \(nan\); check the data",
    ),
    "loss is a string": (
        small_model,
        {"filters": 1, "criterion": "taylor", "dataloader": BATCHES, "loss_fn": lambda o, t: "low"},
        ScoreError,
        "loss of batch 1 is str; expected one number, or one per example",
    ),
    "loss is a matrix": (
        small_model,
        {"filters": 1, "criterion": "taylor", "dataloader": BATCHES, "loss_fn": lambda o, t: o},
        ScoreError,
        r"loss of batch 1 is \(2, 5\); expected one number",
    ),
    "loss is a constant": (
        small_model,
        {"filters": 1, "criterion": "taylor", "dataloader": BATCHES, "loss_fn": lambda o, t: torch.ones(2)},
        ScoreError,
        "loss of batch 1 doesn't depend on the model's outputs: compute it from them",
    ),
    "no class scores": (
        _Named,
        {"filters": 1, "criterion": "taylor", "dataloader": BATCHES},
        ScoreError,
        "class scores .*, the model gave .*; pass loss_fn or forward_loss",
    ),
    "no such schedule": (
        small_model,
        {"ratio": 0.5, "criterion": "random", "schedule": "fast"},
        BudgetError,
        "no schedule of steps called 'fast'; there are: linear, cubic",
    ),
    "two losses": (
        small_model,
        {"ratio": 0.5, "dataloader": BATCHES, "loss_fn": F.cross_entropy, "forward_loss": lambda m, b: m(b)},
        ScoreError,
        "loss_fn and forward_loss exclude each other",
    ),
    "calibration of nothing": (
        small_model,
        {"ratio": 0.5, "criterion": "random", "calibration": BATCHES},
        HealingError,
        "calibration is what is healed on: give heal=",
    ),
    "wrong custom scores": (
        small_model,
        {"filters": 1, "criterion": lambda request: np.zeros(3)},
        ScoreError,
        r"gave no finite number for each of the \d+ channels: return an array",
    ),
    "nothing to cut": (
        factories.nothing_to_cut,
        {"filters": 1},
        NothingToCutError,
        r"nothing in this model can be cut:\n  0: output",
    ),
    "scripted": (factories.scripted, {"filters": 1}, ModelError, "prune the eager model, then script it"),
    "quantised": (factories.quantised, {"filters": 1}, ModelError, "prune the float model, then quantise it"),
    "lazy": (factories.lazy, {"filters": 1}, ModelError, "run the model once on real inputs"),
    "no module": (factories.no_module, {"filters": 1}, ModelError, "expected a torch.nn.Module, got int"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")  # scripted on purpose
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor")  # quantised on purpose
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name: str) -> None:
    make, options, kind, told = REFUSED[name]
    model = make()
    whole = isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)
    before = Picture.of(model) if whole and name not in ("lazy", "quantised", "loss is NaN") else None
    with pytest.raises(kind, match=told):
        surgeon.prune(model, X, inplace=True, **{"criterion": "magnitude", **options})
    if before is not None:
        before.must_equal(Picture.of(model))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (
            torch.randn(2, 4, 8, 8),
            r"rejects the example inputs at first \(.*factories.py:\d+\): RuntimeError: .*4 chan",
        ),
        ((X, X), r"rejects the example inputs at the model's forward.*: TypeError: .*takes 2 positional arguments"),
        (surgeon.Inputs((X,), {"scale": 2}), r"TypeError: .*unexpected keyword argument 'scale'"),
        (X.long(), r"rejects the example inputs at first .*RuntimeError"),
        ({}, r"holds no tensor \(it is dict\); pass what the forward takes"),
        (None, r"holds no tensor \(it is NoneType\)"),
    ],
    ids=["channels", "too many", "keyword", "integers", "empty", "none"],
)
def test_inputs_that_the_forward_rejects(inputs: Any, told: str) -> None:
    model = small_model()
    before = Picture.of(model)
    with pytest.raises(InputError, match=told):
        surgeon.prune(model, inputs, filters=1, criterion="magnitude")
    before.must_equal(Picture.of(model))


def test_the_users_error_is_the_cause() -> None:
    with pytest.raises(InputError) as caught:
        surgeon.prune(small_model(), X[:, :2], filters=1, criterion="magnitude")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_bad_criteria_are_told_before_any_work() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it ran")

    with pytest.raises(ScoreError):
        surgeon.prune(Fails(), X, filters=1)
    with pytest.raises(SelectionError):
        surgeon.prune(Fails(), X, filters=1, criterion="unknown")


# --- strict


def test_strict_refuses_layers_that_have_to_stay() -> None:
    model, inputs = build("SoftmaxOverChannels"), ZOO["SoftmaxOverChannels"].example()
    told = r"strict: these layers have to keep channels:\n  conv: mixes .*constants\.py:\d+\)\nname them in ignored_"
    with pytest.raises(NothingToCutError, match=told):
        surgeon.prune(model, inputs, ratio=0.5, criterion="random", strict=True)
    ignored = surgeon.prune(model, inputs, ratio=0.5, criterion="random", strict=True, ignored_layers=["conv"])
    assert {row.name for row in ignored.report.layers if row.after < row.before} == {"last"}


def test_strict_names_a_constant_in_the_forward() -> None:
    model, inputs = build("ViewLiteral"), ZOO["ViewLiteral"].example()
    with pytest.raises(NothingToCutError, match=r"conv2: constant in .*constants\.py:\d+"):
        surgeon.prune(model, inputs, ratio=0.5, criterion="random", strict=True)
    loose = surgeon.prune(model, inputs, ratio=0.5, criterion="random")
    assert any("conv2 keeps 32 of 32 channels: constant in" in note for note in loose.report.notes)


def test_strict_lets_a_plain_model_through() -> None:
    assert surgeon.prune(small_model(), X, filters=3, criterion="random", strict=True).report.check is not None


# --- data and criteria


def dict_batches() -> Iterator[dict[str, Any]]:
    for inputs, targets in BATCHES:
        yield {"image": inputs, "label": {"class": targets}}


def dict_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(model(batch["image"]), batch["label"]["class"], reduction="none")


def removed(**options: Any) -> Any:
    return surgeon.prune(small_model(), X, filters=7, **options).plan.removed


def test_forward_loss_takes_any_batch() -> None:
    plain = removed(dataloader=BATCHES)
    assert removed(dataloader=dict_batches(), forward_loss=dict_loss) == plain


def test_a_loss_of_ones_own() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    assert removed(dataloader=BATCHES, loss_fn=loss) == removed(dataloader=BATCHES)


def test_a_generator_of_batches_is_read_once() -> None:
    taken = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in BATCHES:
            taken.append(1)
            yield batch

    assert removed(dataloader=batches()) == removed(dataloader=BATCHES)
    assert len(taken) == len(BATCHES)


def test_a_cut_that_is_ranked_again_finds_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the check of a cut fails, all begins again from the real forward."""
    failed: list[bool] = []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(True)
            raise surgeon.VerificationError("the forward runs otherwise than its shapes alone said")
        return surgeon.verify(*args, **kwargs)

    monkeypatch.setattr(cutting, "run_check", once)
    assert removed(dataloader=iter(BATCHES)) == removed(dataloader=BATCHES)
    assert failed


def test_a_forward_loss_that_fails_comes_through() -> None:
    def fails(model: nn.Module, batch: Any) -> Tensor:
        raise LookupError("no label")

    with pytest.raises(LookupError, match="no label"):
        removed(dataloader=BATCHES, forward_loss=fails)


def test_a_criterion_of_ones_own() -> None:
    def last_goes(request: Request) -> Any:
        scores = np.zeros(request.graph.structure.count)
        for group in request.graph.groups:
            scores[group.numbers] = [10.0 - channel / 100 for channel in group.channels]
        return scores

    result = surgeon.prune(small_model(), X, ratio=0.5, scope="local", criterion=last_goes)
    assert result.plan.removed == {"first": (4, 5, 6, 7), "second": (6, 7, 8, 9, 10, 11)}
    assert result.plan.criterion == "last_goes"


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "magnitude-l1", "random"])
def test_the_same_seed_the_same_plan(criterion: str) -> None:
    plans = [removed(dataloader=BATCHES, criterion=criterion, seed=5) for _ in range(2)]
    torch.rand(3)  # the global generator has no say
    assert removed(dataloader=BATCHES, criterion=criterion, seed=5) == plans[0] == plans[1]
    assert (removed(dataloader=BATCHES, criterion=criterion, seed=6) == plans[0]) == (criterion != "random")


def _numpys_own() -> str:
    return str(np.random.get_state())  # noqa: NPY002  # the one to leave alone


def test_the_global_generators_are_left_alone() -> None:
    model = small_model()
    torch_state, numpy_state = torch.get_rng_state(), _numpys_own()
    surgeon.prune(model, X, filters=3, criterion="random")
    assert torch.equal(torch_state, torch.get_rng_state())
    assert numpy_state == _numpys_own()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    removed(dataloader=BATCHES, progress=lambda *step: told.append(step))
    stages = ["trace", "score", "plan", "rewrite", "verify"]
    assert list(dict.fromkeys(stage for stage, _, _ in told)) == stages
    assert [step for step in told if step[0] == "score"] == [
        ("score", 0, 1),
        ("score", 1, 2),
        ("score", 2, 2),
        ("score", 1, 1),
    ]
    assert all((stage, 0, 1) in told and (stage, 1, 1) in told for stage in stages)


def test_training_mode_and_gradients_are_left_alone() -> None:
    model = small_model().train()
    before = Picture.of(model)
    surgeon.prune(model, X, filters=7, dataloader=BATCHES)
    before.must_equal(Picture.of(model))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_the_callers_gradient_modes(mode: Callable[[], Any]) -> None:
    with mode():
        result = surgeon.prune(small_model(), X, filters=7, dataloader=BATCHES)
    assert result.plan.removed == removed(dataloader=BATCHES)
    result.model(X).sum().backward()


def test_a_wrapped_model_is_healed_in_place() -> None:
    options: dict[str, Any] = {"filters": 7, "criterion": "magnitude", "heal": "lstsq", "calibration": [X, X.flip(2)]}
    plain = surgeon.prune(small_model(), X, **options).model
    wraps: list[Callable[[nn.Module], Any]] = [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
    for wrap in wraps:
        wrapped = wrap(small_model())
        result = surgeon.prune(wrapped, X, inplace=True, **options)
        assert result.model is wrapped
        states = surgeon.tracing.unwrap(wrapped).state_dict(), plain.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in plain.state_dict())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("name", "amount"), [("ratio", np.float32(0.5)), ("filters", np.int64(3)), ("max_params", np.float64(0.6))]
)
def test_numpys_numbers_are_numbers(name: str, amount: Any, steps: int) -> None:
    """A sweep is often an array of them."""
    given, plain = (
        surgeon.prune(small_model(), X, criterion="magnitude", steps=steps, **{name: number})
        for number in (amount, amount.item())
    )
    assert given.plan.to_json() == plain.plan.to_json()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    "amount",
    [
        {"max_macs": "150%"},
        {"max_macs": "inf"},
        {"max_macs": "1000.7"},
        {"ratio": "0.5"},
        {"filters": "3"},
        {"filters": True},
    ],
)
def test_an_amount_is_refused_in_one_cut_and_in_several(amount: dict[str, Any], steps: int) -> None:
    with pytest.raises(BudgetError, match=r"=.*: expected"):
        surgeon.prune(small_model(), X, criterion="magnitude", steps=steps, **amount)


def test_in_place_gives_back_the_same_object() -> None:
    model = small_model()
    fresh = surgeon.prune(model, X, filters=7, criterion="magnitude")
    assert model.first.out_channels == 8
    result = surgeon.prune(model, X, filters=7, criterion="magnitude", inplace=True)
    assert result.model is model
    torch.testing.assert_close(model(X), fresh.model(X), rtol=0, atol=0)


def test_without_a_check_the_report_has_none() -> None:
    assert surgeon.prune(small_model(), X, filters=1, criterion="random", verify=False).report.check is None
