"""Masked and shared weights healed: what the answer is, what stays as it is, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import finegrained
from surgeon.errors import HealingError
from surgeon.healing import LayerHealing, Tie
from surgeon.healing.recalibration import recalibrate
from surgeon.healing.ridge import Ridge
from surgeon.tracing import Inputs, named_tensors
from tests.networks import redraw
from tests.test_healing_zoo import drawn, error
from tests.test_zoo import build, inputs_of
from tests.zoo import ZOO

#: Where layers that come nearer need not bring the output nearer: the last one forgets scales.
ONLY_LAYERS = ("CosineClassifier", "CosineSimilarity")


def made(*layers: nn.Module) -> nn.Module:
    return redraw(nn.Sequential(*layers).double(), 0).eval()


def network() -> nn.Module:
    model = made(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip
    recalibrate(model, [Inputs.of(batch) for batch in images()])
    return model


def images(*sizes: int, seed: int = 0) -> list[Tensor]:
    """Mixtures of a few pictures, as images are: what one pixel says, others say as well."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64)
    generator.manual_seed(seed)
    parts = [torch.randn(size, 12, generator=generator, dtype=torch.float64) for size in sizes or (60, 60, 27)]
    return [torch.einsum("np,pchw->nchw", part, pictures) for part in parts]


def off(dense: nn.Module, small: nn.Module) -> float:
    """Relative squared error on images that healing hasn't seen."""
    with torch.no_grad():
        (x,) = images(60, seed=9)
        return float((dense(x) - small(x)).square().sum() / dense(x).square().sum())


# --- ridge problems among weights that may not change freely


def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 12, dtype=torch.float64)
    return x.mT @ x / 50, torch.randn(2, 12, 5, dtype=torch.float64)


def test_masked_numbers_stay_and_the_others_are_the_solution_without_them() -> None:
    matrix, wanted = problem()
    free = torch.rand(2, 12, 5) > 0.4
    ridge = Ridge.of(matrix, 1e-3, tie=Tie(free))
    assert ridge is not None
    found = ridge.solve(wanted)
    for group in range(2):
        for output in range(5):
            on = free[group, :, output]
            direct = torch.linalg.solve(ridge.matrix[group][on][:, on], wanted[group, on, output])
            torch.testing.assert_close(found[group, on, output], direct, rtol=1e-6, atol=1e-7)
            assert not found[group, ~on, output].any()


def test_shared_numbers_change_together_by_the_solution_of_their_sums() -> None:
    matrix, wanted = problem()
    index = torch.randint(0, 4, (2, 12, 5))
    ridge = Ridge.of(matrix, 1e-3, tie=Tie(index, together=True))
    assert ridge is not None
    found = ridge.solve(wanted)
    places = torch.nn.functional.one_hot(index, 4)[..., 1:].double()  # (groups, inputs, outputs, values)
    square = torch.einsum("gioa,gij,gjob->ab", places, ridge.matrix, places)
    values = torch.linalg.solve(square, torch.einsum("gioa,gio->a", places, wanted))
    torch.testing.assert_close(found, places @ values, rtol=1e-6, atol=1e-7)


def test_of_a_part_of_a_shared_weight_nothing_changes() -> None:
    tie = Tie(torch.ones(6, 4, dtype=torch.int32), together=True)
    assert tie.at(torch.arange(24).view(1, 4, 6)).index.all()
    assert not tie.at(torch.arange(12).view(1, 4, 3)).index.any()
    assert Tie(torch.ones(6, 4)).at(torch.arange(12).view(1, 4, 3)).index.all()


# --- known answers


def test_what_another_input_carries_too_is_restored() -> None:
    """Channels come twice, and every filter keeps another one of the two."""
    model: Any = made(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(80, 4))
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    small = copy.deepcopy(model)
    first = torch.rand(5, 4, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.5
    torch.nn.utils.prune.custom_from_mask(small[1], "weight", torch.cat([first, ~first], 1))  # type: ignore[no-untyped-call]
    assert off(model, small) > 0.1
    finegrained.heal(model, small, images())
    assert off(model, small) < 1e-6


def test_values_that_all_moved_alike_are_put_back() -> None:
    """Of a layer whose weights have four values anyway, each off by something of its own."""
    model: Any = network()
    finegrained.share(model, 4)
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[3].parametrizations.weight.original += torch.tensor([0.1, -0.2, 0.05, 0.1], dtype=torch.float64)
    before = off(model, small)
    finegrained.heal(model, small, images())
    assert off(model, small) < 1e-4 * before


@pytest.mark.parametrize("level", ["bn", "bias", "lstsq"])
def test_every_level_comes_nearer(level: str) -> None:
    model, small = network(), network()
    finegrained.sparsify(small, 0.5)
    before = off(model, small)
    finegrained.heal(model, small, images(), level)
    assert off(model, small) < (0.6 if level == "lstsq" else 0.9) * before


# --- what stays as it is


def test_masks_and_what_is_behind_them_stay() -> None:
    model, small = network(), network()
    finegrained.sparsify(small, 0.6)
    before = {name: tensor.clone() for name, tensor in named_tensors(small).items()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    finegrained.heal(model, small, images())
    changed = 0
    for name, tensor in named_tensors(small).items():
        if name.endswith("_mask"):
            assert torch.equal(tensor, before[name])
            weight, known = (tensors[name.replace("_mask", "_orig")] for tensors in (named_tensors(small), before))
            assert torch.equal(weight[~tensor], known[~tensor])
            changed += int((weight != known).sum())
    assert changed
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    assert finegrained.plain_copy(small)(images(2)[0]).isfinite().all()


def test_shared_values_stay_shared_and_zeros_zero() -> None:
    model, small = network(), network()
    finegrained.sparsify(small, 0.5)
    finegrained.share(small, 5)
    indices = {name: tensor.clone() for name, tensor in small.named_buffers() if name.endswith("index")}
    before = off(model, small)
    finegrained.heal(model, small, images(), reassign=False)
    assert off(model, small) < 0.85 * before
    assert all(torch.equal(tensor, indices[name]) for name, tensor in small.named_buffers() if name in indices)
    plain: Any = finegrained.plain_copy(small)
    assert len(plain[3].weight.unique()) == 6
    assert torch.equal(plain[3].weight == 0, indices["3.parametrizations.weight.0.index"] == 0)


def test_weights_go_over_to_values_that_serve_better_and_zeros_stay() -> None:
    model, small = network(), network()
    finegrained.sparsify(small, 0.3)
    finegrained.share(small, 3)
    kept, masks = copy.deepcopy(small), {n: b == 0 for n, b in small.named_buffers() if n.endswith("index")}
    finegrained.heal(model, kept, images(), reassign=False)
    finegrained.heal(model, small, images())
    assert off(model, small) < 0.7 * off(model, kept)
    found = dict(small.named_buffers())
    assert all(torch.equal(found[name] == 0, zeros) for name, zeros in masks.items())
    plain: Any = finegrained.plain_copy(small)
    for layer in (plain[0], plain[3], plain[7]):
        assert len(layer.weight.unique()) <= 4


@pytest.mark.parametrize("k", [2, 9, 20])
def test_a_layer_goes_on_taking_as_many_values(k: int) -> None:
    """Also in single precision, and where a ReLU eases what is asked for."""
    model = network().float()
    small = copy.deepcopy(model)
    finegrained.share(small, k)
    books = {name: value.numel() for name, value in small.named_parameters() if name.endswith("original")}
    finegrained.heal(model, small, [batch.float() for batch in images()])
    assert {n: v.numel() for n, v in small.named_parameters() if n.endswith("original")} == books
    plain: Any = finegrained.plain_copy(small)
    assert all(len(plain[place].weight.unique()) <= k for place in (0, 3, 7))


def test_alone_each_weight_goes_to_the_value_nearest_to_its_optimum() -> None:
    torch.manual_seed(0)
    index, values = torch.randint(0, 4, (1, 40, 6)), torch.tensor([0.0, -1.0, 0.3, 2.0], dtype=torch.float64)
    wanted = torch.randn(1, 40, 6, dtype=torch.float64)
    ridge = Ridge.of(
        torch.eye(40, dtype=torch.float64)[None], 1e-9, tie=Tie(index, together=True, values=values[index])
    )
    assert ridge is not None
    moved = ridge.solve(wanted)
    assert not moved[index == 0].any()
    weights = (values[index] + moved)[index != 0]
    levels = torch.unique(weights.round(decimals=9))
    assert len(levels) == 3
    nearest = ((values[index] + wanted)[index != 0][:, None] - levels).abs().argmin(1)
    torch.testing.assert_close(weights, levels[nearest], rtol=0, atol=0.35)  # the values moved once more behind it


@pytest.mark.parametrize("seed", range(5))
def test_what_may_go_over_is_never_further_off(seed: int) -> None:
    torch.manual_seed(seed)
    matrix, wanted = problem()
    index, values = torch.randint(0, 4, (2, 12, 5)), torch.randn(4, dtype=torch.float64)
    off = []
    for tie in (Tie(index, together=True), Tie(index, together=True, values=values[index])):
        ridge = Ridge.of(matrix, 1e-3, tie=tie)
        assert ridge is not None
        change = ridge.solve(wanted)
        off.append(float((change * (ridge.matrix @ change / 2 - wanted)).sum()))
    assert off[1] < off[0]


def test_what_is_masked_already_is_healed_towards_what_it_was() -> None:
    model = network()
    finegrained.sparsify(model, 0.3)
    small = copy.deepcopy(model)
    finegrained.sparsify(small, 0.6)
    before = off(model, small)
    finegrained.heal(model, small, images())
    assert off(model, small) < 0.5 * before
    assert finegrained.nonzero(small) != finegrained.nonzero(model)


def test_a_model_that_was_cut_before() -> None:
    model = network()
    result = surgeon.prune(model, images(2)[0], ratio=0.4, scope="local", criterion="magnitude")
    finegrained.sparsify(result.model, 0.3)
    before = off(model, result.model)
    finegrained.heal(model, result.model, images(), plan=result.plan)
    assert off(model, result.model) < 0.6 * before


@pytest.mark.parametrize("name", ZOO)
def test_nothing_gets_worse(name: str) -> None:
    model, batches = build(name), drawn(name)
    small, rows = build(name), list[LayerHealing]()
    try:
        finegrained.sparsify(small, 0.5, scope="local")
    except surgeon.SelectionError:
        return
    before = error(model, small, batches)
    plan = surgeon.Plan(type(model).__name__, {}, inputs_of(name).spec())
    finegrained.heal(model, small, batches, plan=plan, inputs_of=lambda batch: batch, on_layer=rows.append)
    for row in rows:
        assert 0 <= row.healed <= min(row.sliced, row.shifted)
    assert error(model, small, batches) <= before * (1 + 1e-9) or name in ONLY_LAYERS


# --- what is refused


def other() -> nn.Module:
    return made(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


@pytest.mark.parametrize(
    ("dense", "masked", "how", "told"),
    [
        (network(), False, {}, "no weight of the model is masked or shared"),
        (network(), True, {"level": "most"}, "level='most': expected one of none, bn, bias"),
        (other(), True, {}, "isn't what the plan makes of the dense one"),
    ],
    ids=["plain", "level", "other"],
)
def test_what_makes_no_sense_is_refused(dense: nn.Module, masked: bool, how: dict[str, Any], told: str) -> None:
    small = network()
    if masked:
        finegrained.sparsify(small, 0.5)
    before = {name: tensor.clone() for name, tensor in named_tensors(small).items()}
    with pytest.raises(HealingError, match=told):
        finegrained.heal(dense, small, images(), **how)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(small).items())


def test_no_data_is_refused() -> None:
    model, small = network(), network()
    finegrained.sparsify(small, 0.5)
    with pytest.raises(HealingError, match="gave no batch"):
        finegrained.heal(model, small, [])


def test_several_inputs_are_taken_as_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.left(a) + self.right(b)
            return out

    model, small = redraw(Two().double(), 0).eval(), redraw(Two().double(), 0).eval()
    finegrained.sparsify(small, 0.5)
    torch.manual_seed(0)
    batches = [tuple(torch.randn(30, 6, dtype=torch.float64) for _ in range(2)) for _ in range(3)]
    before = error(model, small, [Inputs(batch) for batch in batches])
    finegrained.heal(model, small, batches, inputs_of=lambda batch: batch)
    assert error(model, small, [Inputs(batch) for batch in batches]) < before
