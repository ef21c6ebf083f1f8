"""Masks on single weights: which ones go, how many, and that they stay gone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import surgeon
from surgeon import finegrained
from surgeon.errors import BudgetError, ModelError, ScoreError, SelectionError, TuningError
from tests import factories

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
DATA = [(X + step, torch.arange(4)) for step in range(3)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return factories.small()


def weight(model: nn.Module, layer: str) -> Tensor:
    """What the forward computes with."""
    found = getattr(model.get_submodule(layer), "weight")  # noqa: B009  # a property or an attribute, never a parameter
    assert isinstance(found, Tensor)
    return found.detach()


def chain(*rows: Sequence[float]) -> nn.Sequential:
    """Linear layers of one output each, with these weights."""
    model = nn.Sequential(*(nn.Linear(len(row), 1, bias=False) for row in rows))
    for layer, row in zip(model, rows, strict=True):
        assert isinstance(layer, nn.Linear)
        layer.weight.data = torch.tensor([list(row)], dtype=torch.float32)
    return model


def zeros(model: nn.Module) -> list[list[int]]:
    return [(weight(model, name) == 0).flatten().nonzero().flatten().tolist() for name, _ in model.named_children()]


# ---------------------------------------------------------------- which, and how many


def test_all_weights_are_ranked_together() -> None:
    model = chain([1, -2, 3, 10], [0.5, -6, 7, 8])
    done = finegrained.sparsify(model, 0.5)
    assert zeros(model) == [[0, 1, 2], [0]]
    assert [(row.before, row.after, row.threshold) for row in done.layers] == [(4, 1, 3.0), (4, 3, 3.0)]
    assert (done.weights, done.before, done.after, done.sparsity) == (8, 8, 4, 0.5)


def test_each_layer_is_ranked_by_itself() -> None:
    model = chain([1, -2, 3, 10], [0.5, -6, 7, 8])
    done = finegrained.sparsify(model, 0.5, scope="local")
    assert zeros(model) == [[0, 1], [0, 1]]
    assert [row.threshold for row in done.layers] == [2.0, 6.0]


def test_kinds_and_layers_apart() -> None:
    model = small()
    done = finegrained.sparsify(model, {"second": 0, "conv": 0.5, "linear": 0.9})
    after = {row.name: row.after for row in done.layers}
    assert after == {"first": 108, "second": 864, "head": 6}
    sizes = weight(small(), "first").abs().flatten()
    assert done.layers[0].threshold == pytest.approx(float(sizes.kthvalue(108).values))


def test_layers_that_no_key_names_stay() -> None:
    model = small()
    done = finegrained.sparsify(model, {"fi*": 0.5})
    assert {row.name: (row.after, row.threshold is None) for row in done.layers} == {
        "first": (108, False),
        "second": (864, True),
        "head": (60, True),
    }
    assert not prune.is_pruned(model.get_submodule("second"))


def test_conv_layers_under_one_key_share_a_threshold() -> None:
    done = finegrained.sparsify(small(), {"conv": 0.6, "linear": 0.3})
    first, second, head = done.layers
    assert first.threshold == second.threshold != head.threshold
    assert first.after + second.after == 1080 - 648


def test_absolute_thresholds() -> None:
    model = chain([1, -2, 3, 10], [0.5, -6, 7, 8])
    finegrained.sparsify(model, threshold=3.0)
    assert zeros(model) == [[0, 1, 2], [0]]


def test_thresholds_in_standard_deviations_of_what_is_there() -> None:
    model = chain([0, 0, 1, -2, 3, 10])
    done = finegrained.sparsify(model, std=0.5)
    spread = float(torch.tensor([1.0, -2, 3, 10]).std(correction=0))
    assert done.layers[0].threshold == pytest.approx(0.5 * spread)
    assert zeros(model) == [[0, 1, 2, 3]]


def test_an_amount_of_all_weights_counts_those_that_are_gone() -> None:
    model = chain(range(1, 101))
    assert finegrained.sparsify(model, 0.5).after == 50
    assert finegrained.sparsify(model, 0.5).after == 50
    assert finegrained.sparsify(model, 0.3).after == 50
    assert finegrained.sparsify(model, 0.6).after == 40


def test_an_amount_of_survivors_compounds() -> None:
    model = chain(range(1, 101))
    left = [finegrained.sparsify(model, 0.5, of="survivors").after for _ in range(4)]
    assert left == [50, 25, 13, 7]  # round half to even: 12.5 and 6.5 go as 12 and 6
    assert zeros(model) == [list(range(93))]


@pytest.mark.parametrize(
    "how", [{"amount": 0.999}, {"threshold": 1e9}, {"std": 1e9}, {"amount": 0.999, "scope": "local"}]
)
def test_the_best_weight_of_every_layer_stays(how: dict[str, Any]) -> None:
    model = chain([1, -2, 3], [0.25, -0.5], [100, 200, 300, -400])
    done = finegrained.sparsify(model, **how)
    assert zeros(model) == [[0, 1], [0], [0, 1, 2]]
    assert [row.after for row in done.layers] == [1, 1, 1]


@given(
    st.lists(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 0.999),
    st.sampled_from(["global", "local"]),
    st.sampled_from(["all", "survivors"]),
)
@settings(deadline=None, max_examples=150)
def test_the_count_is_exact_whatever_the_ties(rows: list[list[float]], amount: float, scope: str, of: str) -> None:
    if not any(any(row) for row in rows):
        return
    model = chain(*rows)
    done = finegrained.sparsify(model, amount, scope=scope, of=of)
    used = [row for row in rows if any(row)]
    pools = [used] if scope == "global" else [[row] for row in used]
    expected = 0
    for pool in pools:
        there = sum(value != 0 for row in pool for value in row)
        size = sum(map(len, pool))
        gone = round(amount * size) - (size - there) if of == "all" else round(amount * there)
        expected += there - min(max(gone, 0), there - len(pool))
    assert done.after == expected
    assert done.after == sum(int((weight(model, name) != 0).sum()) for name, _ in model.named_children())
    for row, layer in zip(rows, model.children(), strict=True):
        kept = weight(layer, "")[0]
        gone_sizes = [abs(v) for v, k in zip(row, kept.tolist(), strict=True) if v and not k]
        assert scope == "global" or max(gone_sizes, default=0) <= min((abs(v) for v in kept.tolist() if v), default=9)


def test_a_gradient_score_is_what_the_loss_would_change_by() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    dense = copy.deepcopy(model)
    x, y = torch.randn(5, 3), torch.randn(5, 2)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).sum()  # linear in the weights: the first order is all there is

    finegrained.sparsify(model, 0.5, by="gradient", dataloader=[(x, y)], loss_fn=loss)
    plain = weight(dense, "0")
    effect = torch.zeros_like(plain)
    for row, column in [(r, c) for r in range(2) for c in range(3)]:
        without = plain.clone()
        without[row, column] = 0
        effect[row, column] = (loss(F.linear(x, plain), y) - loss(F.linear(x, without), y)).abs()
    limit = effect.flatten().kthvalue(3).values
    assert torch.equal(weight(model, "0") == 0, effect <= limit)


def test_batches_do_not_cancel_in_a_gradient_score() -> None:
    model = chain([1.0, 1.0])
    batches = [(torch.tensor([[1.0, 5.0]]), torch.ones(1)), (torch.tensor([[1.0, -5.0]]), torch.ones(1))]
    finegrained.sparsify(model, 0.5, by="gradient", dataloader=batches, loss_fn=lambda out, _: out.sum())
    assert zeros(model) == [[0]]


def test_a_gradient_score_leaves_the_model_as_it_was() -> None:
    model = small().train()
    model.get_submodule("first").requires_grad_(False)
    finegrained.sparsify(model, 0.3, by="gradient", dataloader=DATA)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["first.bias", "first.weight_orig"]
    assert all(module.training for module in model.modules())
    assert torch.equal(model.get_buffer("norm.running_mean"), torch.zeros(8))


# ---------------------------------------------------------------- tied, left whole


def test_a_tied_weight_is_counted_and_masked_once() -> None:
    torch.manual_seed(0)
    model = factories.tied()
    done = finegrained.sparsify(model, 0.7)
    assert [row.name for row in done.layers] == ["first", "once", "head"]
    once, again = model.get_submodule("once"), model.get_submodule("again")
    assert once.get_parameter("weight_orig") is again.get_parameter("weight_orig")
    assert torch.equal(weight(model, "once"), weight(model, "again"))
    finegrained.make_permanent(model)
    assert once.get_parameter("weight") is again.get_parameter("weight")


def test_a_tied_embedding_sees_the_mask() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    done = finegrained.sparsify(model, 0.5)
    assert [row.name for row in done.layers] == ["head"]
    assert torch.equal(model["embed"](torch.arange(6)), weight(model, "head"))
    assert int((weight(model, "embed") == 0).sum()) == 12


class Odd(nn.Module):
    """Weights that can't be masked where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(4, 4)
        self.zero = nn.Linear(4, 4)
        nn.init.zeros_(self.zero.weight)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.old = torch.nn.utils.weight_norm(nn.Linear(4, 4)) if hasattr(torch.nn.utils, "weight_norm") else None
        self.recurrent = nn.LSTM(4, 4)
        self.table = nn.Embedding(4, 4)
        self.complex = nn.Linear(4, 4, dtype=torch.complex64)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_is_left_whole_is_named_with_the_reason() -> None:
    done = finegrained.sparsify(Odd(), 0.5, ignored_layers=[])
    assert [row.name for row in done.layers] == ["plain"]
    told = {left.name: left.reason for left in done.left_whole}
    assert "all its weights are zero" in told["zero"]
    assert "parametrization" in told["normed"]
    assert "weight norm" in told["old.weight_v"]
    assert "belongs to LSTM" in told["recurrent.weight_ih_l0"]
    assert "belongs to Embedding" in told["table"]
    assert "complex64" in told["complex"]


def test_ignored_layers_stay() -> None:
    model = small()
    done = finegrained.sparsify(model, 0.5, ignored_layers=["fir*", model.get_submodule("head")])
    assert [row.name for row in done.layers] == ["second"]
    assert {left.name: left.reason for left in done.left_whole} == {"first": "ignored", "head": "ignored"}


# ---------------------------------------------------------------- kept


def test_masks_are_kept_through_tuning_and_the_rest_is_trained() -> None:
    model = small()
    finegrained.sparsify(model, 0.8)
    before = {name: weight(model, name).clone() for name in ("first", "second", "head")}
    surgeon.tune(model, DATA, DATA, epochs=2, optimizer="adamw", ema=0.5)
    model(X)
    for name, old in before.items():
        new = weight(model, name)
        assert torch.equal(new == 0, old == 0)
        assert not torch.equal(new, old)


def test_an_optimizer_goes_on_with_the_same_parameters() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parameters = set(model.parameters())
    finegrained.sparsify(model, 0.5)
    assert set(model.parameters()) == parameters
    F.cross_entropy(model(X), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    finegrained.make_permanent(model)
    assert set(model.parameters()) == parameters


class Reads(nn.Module):
    """A layer's weight is used without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight)


@pytest.mark.parametrize("make", [Reads, lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)])
def test_weights_that_are_read_without_a_call_are_up_to_date(make: Any) -> None:
    model = make()
    x = torch.randn(2, 3, 4)
    done = finegrained.sparsify(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    plain = finegrained.plain_copy(model)
    assert torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert sum(int((p != 0).sum()) for p in plain.parameters() if p.ndim == 2) == done.after


def test_made_permanent_the_model_is_plain_again() -> None:
    model = small().eval()
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    finegrained.sparsify(model, 0.7)
    outputs = model(X)
    finegrained.make_permanent(model)
    assert sorted(model.state_dict()) == sorted(names)
    assert [type(module) for module in model.modules()] == classes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(X), outputs)


def test_torchs_own_masks_count_and_stack() -> None:
    model = small()
    prune.l1_unstructured(model.get_submodule("second"), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    gone = weight(model, "second") == 0
    done = finegrained.sparsify(model, 0.6, scope="local")
    assert done.layers[1].before == 432
    assert bool((weight(model, "second") == 0)[gone].all())
    prune.l1_unstructured(model.get_submodule("first"), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    outputs = model.eval()(X)
    plain = finegrained.plain_copy(model)
    assert int((weight(plain, "first") != 0).sum()) == round(0.4 * 216 * 0.5)
    assert torch.equal(plain(X), outputs)


def test_a_masked_weight_is_plus_zero_whatever_it_was() -> None:
    model = chain([-1.0, 5.0])
    finegrained.sparsify(model, 0.5)
    assert not bool(weight(model, "0").signbit().any())
    finegrained.make_permanent(model)
    assert not bool(weight(model, "0").signbit().any())


def test_a_cut_model_goes_on() -> None:
    result = surgeon.prune(small().eval(), X, ratio=0.5, criterion="magnitude", verify=False)
    done = finegrained.sparsify(result.model, 0.5)
    assert done.weights < 1140
    assert done.sparsity == 0.5
    assert result.model(X).shape == (4, 5)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "told", "how"),
    [
        (BudgetError, "nothing given", {}),
        (BudgetError, "amount and std", {"amount": 0.5, "std": 1.0}),
        (BudgetError, "amount=1", {"amount": 1}),
        (BudgetError, "amount=-0.1", {"amount": -0.1}),
        (BudgetError, "nan", {"threshold": float("nan")}),
        (BudgetError, "'half'", {"amount": "half"}),
        (BudgetError, "True", {"amount": True}),
        (BudgetError, r"amount\['conv'\]=2", {"amount": {"conv": 2}}),
        (BudgetError, "empty", {"amount": {}}),
        (BudgetError, "measured in weights", {"std": 1.0, "by": "gradient", "dataloader": DATA}),
        (SelectionError, "did you mean 'conv'", {"amount": {"covn": 0.5}}),
        (SelectionError, "scope='layer'", {"amount": 0.5, "scope": "layer"}),
        (SelectionError, "of='some'", {"amount": 0.5, "of": "some"}),
        (SelectionError, "by='size'", {"amount": 0.5, "by": "size"}),
        (SelectionError, r"'zz\*'", {"amount": 0.5, "ignored_layers": "zz*"}),
        (SelectionError, "no layer has weights to mask", {"amount": 0.5, "ignored_layers": "*"}),
        (ScoreError, "needs data", {"amount": 0.5, "by": "gradient"}),
        (ScoreError, "no batch", {"amount": 0.5, "by": "gradient", "dataloader": []}),
        (ScoreError, "not finite", {"amount": 0.5, "by": "gradient", "dataloader": [(X / 0, torch.arange(4))]}),
        (TuningError, "expected \\(inputs, targets\\)", {"amount": 0.5, "by": "gradient", "dataloader": [X]}),
    ],
)
def test_bad_input_is_told(error: type[Exception], told: str, how: dict[str, Any]) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=told):
        finegrained.sparsify(model, **how)
    assert list(model.state_dict()) == list(before)


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ScoreError, match=r"head holds NaN"):
        finegrained.sparsify(factories.not_a_number(), 0.5)


def test_what_is_no_eager_model_is_refused() -> None:
    with pytest.raises(ModelError):
        finegrained.sparsify(factories.lazy(), 0.5)
