"""Shared values: the best ones, zeros apart, trained by summed gradients."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgeon
from surgeon import finegrained
from surgeon.errors import BudgetError, ScoreError, SelectionError
from surgeon.finegrained import clustering
from surgeon.finegrained.clustering import Clusters, Floats, cluster
from tests import factories

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
DATA = [(X + step, torch.arange(4)) for step in range(3)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return factories.small()


def weight(model: nn.Module, layer: str) -> Tensor:
    """What the forward computes with."""
    found = getattr(model.get_submodule(layer), "weight")  # noqa: B009  # a property here, no parameter
    assert isinstance(found, Tensor)
    return found.detach()


def count(values: Tensor) -> int:
    """How many distinct values."""
    return len(set(values.flatten().tolist()))


# ---------------------------------------------------------------- the values


def distance(numbers: Floats, found: Clusters) -> float:
    return float(((numbers - found.centres[found.index]) ** 2).sum())


def least(numbers: Floats, k: int) -> float:
    """The least sum of squared distances, from all ways to cut the ascending numbers into k."""
    rising = np.sort(numbers)
    best = math.inf
    for cuts in itertools.combinations(range(1, len(rising)), min(k, len(rising)) - 1):
        parts = np.split(rising, cuts)
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return best


@given(st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_no_other_values_are_nearer(values: list[float], k: int) -> None:
    numbers = np.array(values)
    found = cluster(numbers, k)
    assert found.exact
    assert len(found.centres) <= k
    assert bool((np.diff(found.centres) > 0).all())
    assert set(found.index.tolist()) == set(range(len(found.centres)))
    assert distance(numbers, found) <= least(numbers, k) + 1e-9


def test_few_values_are_kept_as_they_are() -> None:
    numbers = np.array([0.1, 0.2, 0.1, 0.3, 0.1] * 99)
    found = cluster(numbers, 3)
    assert np.array_equal(found.centres[found.index], numbers)


def test_more_numbers_than_the_tables_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0).standard_normal(6000)
    best = cluster(numbers, 8)
    monkeypatch.setattr(clustering, "_MOST_ENTRIES", 8 * 500)
    found = cluster(numbers, 8)
    assert (best.exact, found.exact) == (True, False)
    assert distance(numbers, best) <= distance(numbers, found) <= 1.01 * distance(numbers, best)


# ---------------------------------------------------------------- sharing


def test_every_layer_has_so_many_values() -> None:
    model, dense = small(), small()
    done = finegrained.share(model, {"second": 3, "conv": 4, "linear": 2})
    assert [(row.name, row.values) for row in done.layers] == [("first", 4), ("second", 3), ("head", 2)]
    assert [row.zeros for row in done.layers] == [0, 0, 0]
    for row in done.layers:
        new, old = weight(model, row.name), weight(dense, row.name)
        assert count(new) == row.values
        assert row.error == pytest.approx(float((new - old).norm() / old.norm()))
        assert row.error**2 * float(old.square().sum()) == pytest.approx(
            distance(old.flatten().double().numpy(), cluster(old.flatten().double().numpy(), row.values)), rel=1e-4
        )


def test_zeros_are_kept_apart() -> None:
    model = small()
    finegrained.sparsify(model, 0.6)
    gone = {name: weight(model, name) == 0 for name in ("first", "second", "head")}
    done = finegrained.share(model, 4)
    surgeon.tune(model, DATA, epochs=2, optimizer="adamw")
    for row in done.layers:
        assert row.zeros == int(gone[row.name].sum())
        assert torch.equal(weight(model, row.name) == 0, gone[row.name])
        assert count(weight(model, row.name)) == 5


def test_the_gradient_of_a_value_is_the_sum_over_its_weights() -> None:
    model = small()
    finegrained.sparsify(model, 0.3)
    finegrained.share(model, 4)
    plain = finegrained.plain_copy(model)
    for each in (model, plain):
        F.cross_entropy(each(X), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    slopes, values = plain.get_parameter("second.weight").grad, weight(plain, "second")
    codebook = model.get_parameter("second.parametrizations.weight.original")
    assert slopes is not None
    assert codebook.grad is not None
    sums = torch.stack([slopes[values == value].sum() for value in codebook.detach()])
    assert torch.allclose(codebook.grad, sums, rtol=1e-4, atol=1e-7)


def test_tuning_trains_the_values_and_nothing_else_of_the_layer() -> None:
    model = small()
    finegrained.share(model, 4)
    index = model.get_buffer("second.parametrizations.weight.0.index").clone()
    before = weight(model, "second").clone()
    surgeon.tune(model, DATA, epochs=3, optimizer="adamw")
    after = weight(model, "second")
    assert torch.equal(model.get_buffer("second.parametrizations.weight.0.index"), index)
    assert not torch.equal(after, before)
    assert count(after) == 4


def test_an_interrupted_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    def run(epochs: tuple[int, ...], folder: Path) -> Tensor:
        for count in epochs:
            model = small()
            finegrained.sparsify(model, 0.5)
            finegrained.share(model, 4)
            calls = iter(range(3 * count))

            def progress(*_: object, calls: object = calls) -> None:
                if next(calls, None) is None:  # type: ignore[call-overload]
                    raise KeyboardInterrupt

            try:
                surgeon.tune(model, DATA, epochs=2, optimizer="adamw", resume_dir=folder, progress=progress)
            except KeyboardInterrupt:
                continue
        return weight(model, "second")

    assert torch.equal(run((1, 9), tmp_path / "a"), run((9,), tmp_path / "b"))


def test_the_rate_is_the_formulas() -> None:
    model = small()
    finegrained.sparsify(model, {"second": 0.5})
    done = finegrained.share(model, 7)
    bits = 216 * math.log2(7) + 7 * 32 + 864 * math.log2(8) + 8 * 32 + 60 * math.log2(7) + 7 * 32
    assert done.rate == pytest.approx(32 * (216 + 864 + 60) / bits)


def test_one_value_and_nothing_but_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(1, 1))
    nn.init.constant_(model.get_parameter("0.weight"), 0.25)
    nn.init.zeros_(model.get_parameter("1.weight"))
    done = finegrained.share(model, 4)
    assert [(row.values, row.zeros, row.error) for row in done.layers] == [(1, 0, 0.0), (0, 9, 0.0), (1, 0, 0.0)]
    assert torch.equal(weight(model, "0"), torch.full((3, 3), 0.25))
    assert torch.equal(weight(model, "1"), torch.zeros(3, 3))
    assert math.isfinite(done.rate)


def test_tied_weights_share_one_codebook() -> None:
    torch.manual_seed(0)
    model = factories.tied()
    finegrained.sparsify(model, 0.5)
    done = finegrained.share(model, 5)
    assert [row.name for row in done.layers] == ["first", "once", "head"]
    surgeon.tune(model, DATA, epochs=1, optimizer="adamw")
    once, again = (model.get_submodule(name) for name in ("once", "again"))
    codebook = "parametrizations.weight.original"
    assert once.get_parameter(codebook) is again.get_parameter(codebook)
    assert torch.equal(weight(model, "once"), weight(model, "again"))
    finegrained.make_permanent(model)
    assert once.get_parameter("weight") is again.get_parameter("weight")


def test_shared_again_with_another_k() -> None:
    model = small()
    finegrained.share(model, 8)
    finegrained.share(model, 2)
    assert count(weight(model, "second")) == 2


def test_masks_come_before_sharing() -> None:
    model = small()
    finegrained.share(model, 8)
    with pytest.raises(SelectionError, match="sparsify first"):
        finegrained.sparsify(model, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = small().to(dtype)
    finegrained.share(model, 4)
    assert weight(model, "second").dtype is dtype
    assert count(weight(model, "second")) <= 4


# ---------------------------------------------------------------- copies


def test_copies_of_a_shared_model_do_not_depend_on_each_other() -> None:
    model = small().eval()
    finegrained.share(model, 4)
    twin = copy.deepcopy(model)
    outputs = model(X)
    finegrained.make_permanent(twin)
    assert torch.equal(model(X), outputs)
    assert torch.equal(twin(X), outputs)
    assert type(twin.get_submodule("first")) is nn.Conv2d
    finegrained.make_permanent(model)
    assert torch.equal(model(X), outputs)


def test_other_parametrizations_of_a_shared_layer_survive() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    parametrizations.weight_norm(model[0], "bias")
    finegrained.share(model, 2)
    twin = copy.deepcopy(model)
    finegrained.make_permanent(twin)
    assert torch.equal(twin(X[0, 0, :, :4]), model(X[0, 0, :, :4]))
    assert len(list(twin.parameters())) == 3


def test_a_sweep_leaves_the_model_as_it_is() -> None:
    model = small().eval()
    finegrained.sparsify(model, 0.5)
    model(X).sum().backward()  # masked weights that autograd holds on to
    before = model(X)

    def change(trial: nn.Module) -> float:
        return float((trial(X) - before).detach().abs().mean())

    rows = finegrained.sweep(model, [2, 4, 255], change, ignored_layers=[model.get_submodule("head")])
    assert [row.k for row in rows] == [2, 4, 255]
    assert rows[0].rate > rows[1].rate > rows[2].rate
    assert rows[0].metric > rows[1].metric > rows[2].metric
    assert torch.equal(model(X), before)
    assert "second.weight_mask" in model.state_dict()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("k", [0, -1, 2.5, 256, True, "four"])
def test_a_k_that_is_none_is_refused(k: int) -> None:
    with pytest.raises(BudgetError, match="k="):
        finegrained.share(small(), k)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = factories.not_a_number()
    with pytest.raises(ScoreError, match="head holds NaN"):
        finegrained.share(model, 4)
    assert type(model.get_submodule("first")) is nn.Conv2d


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(SelectionError, match="no layer"):
        finegrained.share(nn.Sequential(nn.BatchNorm2d(3)), 4)
