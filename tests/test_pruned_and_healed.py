"""``surgeon.prune`` with ``heal=`` and ``steps=``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from tests.test_healing import Normed, Residual, alike, error, images, made, state


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for x in images():
        yield x, torch.arange(len(x)) % 5


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("one_shot", ["dataloader", "calibration"])
def test_data_that_runs_out_is_enough(steps: int, one_shot: str) -> None:
    model = made(Normed())
    data: dict[str, Any] = {"dataloader": list(batches()), one_shot: batches()}
    result = surgeon.prune(model, images(2)[0], ratio=0.5, scope="local", criterion="taylor", heal="lstsq",
                           steps=steps, **data)  # fmt: skip
    assert {row.weight for row in result.report.healing} == {"second.weight", "third.weight"}
    assert result.report.check is not None
    assert result.report.check.status == "passed"


@pytest.mark.parametrize("kind", [Normed, Residual])
def test_a_model_healed_in_steps_is_saved_and_loaded(kind: Callable[[], nn.Module], tmp_path: Any) -> None:
    model = made(kind())
    result = surgeon.prune(model, images(2)[0], ratio=0.5, scope="local", criterion="magnitude", heal="lstsq", steps=3,
                           calibration=images())  # fmt: skip
    once = surgeon.prune(model, images(2)[0], ratio=0.5, scope="local", criterion="magnitude")
    assert result.report.filters_after == once.report.filters_after
    assert error(model, result.model) < error(model, once.model)
    surgeon.save(tmp_path / "small.safetensors", result.model, result.plan)
    loaded = surgeon.load(tmp_path / "small.safetensors", lambda: made(kind()))
    x = images(4, seed=5)[0]
    assert torch.equal(loaded(x), result.model(x))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_schedule_that_there_is_not_is_told_for_any_number_of_steps(steps: int) -> None:
    with pytest.raises(surgeon.BudgetError, match=r"no schedule of steps called 'sudden'; .*per-step"):
        surgeon.prune(Residual(), images(2)[0], ratio=0.3, criterion="magnitude", steps=steps, schedule="sudden")


def test_one_step_is_no_steps_and_in_place_is_the_same() -> None:
    wanted: dict[str, Any] = {
        "ratio": 0.5,
        "scope": "local",
        "criterion": "magnitude",
        "heal": "lstsq",
        "calibration": images(),
    }
    model = made(Residual())
    plain = surgeon.prune(model, images(2)[0], **wanted).model
    assert alike(state(surgeon.prune(model, images(2)[0], steps=1, **wanted).model), state(plain))
    for steps in (1, 3):
        aside = surgeon.prune(model, images(2)[0], steps=steps, **wanted).model
        result = surgeon.prune(again := made(Residual()), images(2)[0], inplace=True, steps=steps, **wanted)
        assert result.model is again
        assert alike(state(again), state(aside))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_graph_is_healed(steps: int) -> None:
    model = made(Normed())
    wanted: dict[str, Any] = {
        "ratio": 0.5,
        "scope": "local",
        "criterion": "magnitude",
        "as_graph": True,
        "steps": steps,
    }
    result = surgeon.prune(model, images(2)[0], heal="lstsq", calibration=images(), **wanted)
    assert isinstance(result.model, torch.fx.GraphModule)
    assert error(model, result.model) < 0.9 * error(model, surgeon.prune(model, images(2)[0], **wanted).model)
