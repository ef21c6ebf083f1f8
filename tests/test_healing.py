"""Healing of small networks whose right answer is known, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon.criteria import Request
from surgeon.errors import HealingError, PlanError
from surgeon.healing import LEVELS, LayerHealing, calibration, heal, layers
from surgeon.healing.outlook import Outlook, find_outlook
from surgeon.healing.recalibration import recalibrate
from surgeon.tracing import Inputs
from tests.networks import redraw

SIZES = (40, 40, 7)  # the last batch is smaller


def images(*sizes: int, seed: int = 0, shape: tuple[int, ...] = (3, 8, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for size in sizes or SIZES]


class Plain(nn.Module):
    """Channels behind `act`, and a reader with a bias, or without one in front of a norm; `between` both sees them."""

    def __init__(self, act: nn.Module, bias: bool = True, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 8, 3), act
        self.between = between or nn.Identity()
        self.reader = nn.Conv2d(8, 5, 3, bias=bias)
        self.norm = nn.Identity() if bias else nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.reader(self.between(self.act(self.first(x)))))


def made(model: nn.Module) -> nn.Module:
    return redraw(model.double(), 0).eval()


def without(model: nn.Module, layer: str, gone: list[int], **kwargs: Any) -> surgeon.Result:
    """The model without these channels of a layer."""

    def chosen(request: Request) -> Any:
        scores = np.ones(request.graph.structure.count)
        scores[request.graph.structure.along(f"{layer}.weight", 0)[gone]] = 0
        return scores

    return surgeon.prune(model, images(2)[0], filters=len(gone), criterion=chosen, **kwargs)


def error(dense: nn.Module, small: nn.Module, batches: list[Tensor] | None = None) -> float:
    """Relative mean squared error on inputs that healing hasn't seen."""
    with torch.no_grad():
        pairs = [(dense(x), small(x)) for x in batches or images(50, seed=9)]
        return float(sum((a - b).square().mean() / a.var() for a, b in pairs))


# --- known answers


def combined(model: Any) -> Any:
    """The last three channels are linear combinations of the first five."""
    model = made(model)
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.first.parameters():
            parameter[5:] = torch.tensordot(mix, parameter[:5], 1)
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_linear_combinations_of_kept_channels_are_restored(bias: bool) -> None:
    model = combined(Plain(nn.Identity(), bias))
    result = without(model, "first", [5, 6, 7])
    before = error(model, result.model)
    heal(model, result.model, result.plan, images())
    assert before > 1e-2
    assert error(model, result.model) < 1e-6


def test_the_channel_gram_restores_them_at_every_place_alike() -> None:
    model = combined(Plain(nn.Identity()))
    result = without(model, "first", [5, 6, 7])
    before = error(model, result.model)
    heal(model, result.model, result.plan, images(), "gram")
    assert error(model, result.model) < 1e-4 * before


@pytest.mark.parametrize("level", ["bias", "gram", "lstsq"])
@pytest.mark.parametrize("bias", [True, False])
def test_constant_channels_go_into_the_bias_or_the_norms_mean(bias: bool, level: str) -> None:
    model: Any = made(Plain(nn.ReLU(), bias))
    with torch.no_grad():
        model.first.weight[[1, 4]] = 0
        model.first.bias[[1, 4]] = torch.tensor([0.7, 2.0], dtype=torch.float64)
    batches = images(40, 40)
    recalibrate(model, [Inputs((x,)) for x in batches])  # which these levels do once more at their end
    result = without(model, "first", [1, 4])
    before = error(model, result.model)
    heal(model, result.model, result.plan, batches, level)
    assert before > 1e-2
    assert error(model, result.model) < 1e-6


class Residual(nn.Module):
    """Blocks around one stream; what the first gets wrong the others can make up for."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(6, 12, 3, padding=1) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Conv2d(12, 6, 3, padding=1, bias=False) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(blocks))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for inner, outer, norm in zip(self.inner, self.outer, self.norms, strict=True):
            x = x + norm(outer(torch.relu(inner(x))))
        return x


def test_branches_make_up_for_what_the_shortcut_is_off_by(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Residual())
    errors = []
    one = torch.ones(1)
    for find in (find_outlook, lambda *_: Outlook(one.shape, None, one, one, 0.0)):
        monkeypatch.setattr(calibration, "find_outlook", find)
        result = without(model, "inner.0", list(range(8)))
        heal(model, result.model, result.plan, images())
        errors.append(error(model, result.model))
    assert errors[0] < 0.95 * errors[1]


# --- what is left alone, and what comes back


class Normed(nn.Module):
    """A norm of every kind, an auxiliary head for train mode, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.second, self.two = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(1, 12)
        self.third, self.three = nn.Conv2d(12, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.aux, self.norm = nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4)
        self.second.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        x = F.gelu(self.two(self.second(torch.relu(self.one(self.first(x))))))
        out = self.three(self.third(x)).mean((2, 3))
        return (out, self.norm(self.aux(x))) if self.training else out


def cut(model: nn.Module) -> surgeon.Result:
    example = images(2)[0].to(next(model.parameters()).dtype)
    return surgeon.prune(model, example, ratio=0.5, scope="local", criterion="magnitude", verify=False)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def alike(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    model: Any = made(Normed())
    recalibrate(model, [Inputs((x,)) for x in images()])
    model.train()
    model.one.eval()
    result, dense = cut(model), state(model)
    small: Any = result.model
    before, sliced, aux = error(model.eval(), copy.deepcopy(small).eval()), state(small), state(small.norm)
    model.train()
    model.one.eval()
    rows: list[LayerHealing] = []
    heard: list[tuple[str, int, int]] = []
    found = heal(model, small, result.plan, [(x, None) for x in images()], level, on_layer=rows.append,
                 progress=lambda *args: heard.append(args))  # fmt: skip
    assert alike(state(model), dense)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert all(norm.momentum == 0.1 for norm in (small.one, small.three))
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["second.weight"]
    assert alike(state(small.norm), aux)  # which no batch reaches
    assert alike(state(small), sliced) == (level == "none")
    assert [row.weight for row in rows] == (["second.weight", "third.weight"] if level not in ("none", "bn") else [])
    assert heard == [("heal", number, 2) for number in range(1, len(rows) + 1)]
    assert all(row.healed <= min(row.sliced, row.shifted) for row in rows)
    assert found is result.model
    if level in ("bias", "gram", "lstsq"):
        assert error(model.eval(), small.eval()) < 0.9 * before


def test_healing_again_changes_next_to_nothing() -> None:
    """The mean that a bias is folded into starts from the dense one each time, not from where it was left."""
    model = made(Residual())
    result = cut(model)
    means, errors = [], []
    for _ in range(3):
        heal(model, result.model, result.plan, images())
        means.append(torch.cat([norm.running_mean for norm in result.model.norms]))  # type: ignore[union-attr]
        errors.append(error(model, result.model))
    torch.testing.assert_close(means[1], means[0], rtol=0.05, atol=0.05)
    torch.testing.assert_close(means[2], means[0], rtol=0.05, atol=0.05)
    assert max(errors) < 1.05 * errors[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = made(Residual()).to(dtype)
    result = cut(model)
    batches = [x.to(dtype) for x in images(10, 6)]
    before = error(model, result.model, batches)
    heal(model, result.model, result.plan, batches)
    assert {t.dtype for t in state(result.model).values() if t.is_floating_point()} == {dtype}
    assert error(model, result.model, batches) < before


def test_a_seed_makes_it_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_LEAST_ROWS", 300)
    monkeypatch.setattr(layers, "_ROWS_PER_INPUT", 1)
    model = made(Residual())
    result = cut(model)
    found = []
    for seed in (3, 3, 4):
        small = copy.deepcopy(result.model)
        heal(model, small, result.plan, images(), seed=seed)
        found.append(state(small))
    assert alike(found[0], found[1])
    assert not alike(found[0], found[2])


def test_rows_in_pieces_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Residual())
    result = cut(model)
    pieces = copy.deepcopy(result.model)
    heal(model, result.model, result.plan, images())
    monkeypatch.setattr(calibration, "_MOST_NUMBERS", 9 * 6 * 100)
    heal(model, pieces, result.plan, images())
    for name, tensor in state(pieces).items():
        torch.testing.assert_close(tensor, state(result.model)[name], rtol=1e-7, atol=1e-7)


def test_batches_of_one_example_are_judged_by_some_of_them() -> None:
    model = made(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5)))
    result = cut(model)
    before = error(model, result.model)
    heal(model, result.model, result.plan, images(*[1] * 64))
    assert error(model, result.model) < 0.9 * before


# --- what can't be


def broken(*_: Any) -> None:
    raise KeyboardInterrupt


FAILING: dict[str, tuple[Callable[[nn.Module, surgeon.Result], Any], type[BaseException], str | None]] = {
    "level": (lambda m, r: heal(m, r.model, r.plan, images(), "lstsqr"), HealingError, "'lstsqr': expected one of"),
    "no data": (lambda m, r: heal(m, r.model, r.plan, []), HealingError, "gave no batch; pass one that yields inputs"),
    "no data, bn": (lambda m, r: heal(m, r.model, r.plan, [], "bn"), HealingError, "gave no batch"),
    "small is dense": (lambda m, r: heal(m, m, r.plan, images()), HealingError, "isn't what the plan makes"),
    "other plan": (
        lambda m, r: heal(m, r.model, surgeon.prune(m, images(2)[0], filters=1, criterion="magnitude").plan, images()),
        HealingError,
        "heal with the plan that it was cut by",
    ),
    "foreign plan": (lambda m, r: heal(m, r.model, cut(made(Residual())).plan, images()), PlanError, "doesn't have"),
    "no variance": (
        lambda m, r: heal(m, r.model, r.plan, images(40, 1, shape=(3, 3, 3)), "bias"),
        HealingError,
        'one value per channel at a batch norm.*"lstsq"',
    ),
    "interrupted": (
        lambda m, r: heal(m, r.model, r.plan, images(), on_layer=broken), KeyboardInterrupt, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_changes_nothing(name: str) -> None:
    call, kind, message = FAILING[name]
    model = made(Normed())
    result = cut(model)
    dense, small = state(model), state(result.model)
    with pytest.raises(kind, match=message):
        call(model, result)
    assert alike(state(model), dense)
    assert alike(state(result.model), small)
