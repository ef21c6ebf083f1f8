"""Cut and train in steps, also where these are interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset

import surgeon
import surgeon.iteration.running
from surgeon.composition import compose
from surgeon.errors import BudgetError, CheckpointError, TuningError
from surgeon.rewriting import fit
from tests.test_streaming import Box, Unboxing
from tests.tuned import Breaking, Net, Stop, X, Y, loader, net, same


def iterate(
    folder: Path | None = None, data: Dataset[Any] | None = None, optimizer: str = "sgd", **kwargs: Any
) -> surgeon.PrunedAndTuned:
    given: dict[str, Any] = {"filters": 3, "steps": 2, "epochs_per_step": 2, "final_epochs": 1, **kwargs}
    batches = DataLoader(data or Breaking(0), 8, shuffle=True)
    return surgeon.prune_and_tune(
        net().eval(),
        X[:2],
        batches,
        loader(12, shuffle=False),
        directory=folder,
        **{"tuning": {"lr": 0.05, "optimizer": optimizer}, **given},
    )


def test_steps_reach_the_budget_and_the_plans_compose(tmp_path: Path) -> None:
    result = iterate(tmp_path)
    assert [step.filters for step in result.steps] == [11, 8]
    assert [len(step.history) for step in result.steps] == [2, 3]
    assert sum(map(len, result.plan.removed.values())) == 6
    for name in ("step-2", "step-2-cut"):
        opened = surgeon.load(tmp_path / f"{name}.safetensors", net)
        assert [p.shape for p in opened.parameters()] == [p.shape for p in result.model.parameters()]
    loaded = surgeon.load(tmp_path / "step-2.safetensors", net)
    assert same(loaded, result.model)
    assert torch.equal(loaded.eval()(X), result.model.eval()(X))
    assert json.loads((tmp_path / "run.json").read_text())["steps"][1]["filters"] == 8


@pytest.mark.parametrize("schedule", ["linear", "cubic", "equal-ratio", "one-shot"])
def test_each_schedule_ends_within_the_budget(schedule: str) -> None:
    result = iterate(filters=None, max_macs=0.5, schedule=schedule, epochs_per_step=0, final_epochs=0, steps=2)
    dense = 2 * (36 * 9 * (3 * 6 + 6 * 8) + 16)  # of two images
    assert result.steps[-1].macs <= 0.5 * dense
    assert result.steps[0].macs <= dense


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_that_are_stopped_end_as_ones_that_are_not(tmp_path: Path, optimizer: str) -> None:
    whole = iterate(optimizer=optimizer)
    draw = random.Random(2)
    items = (2 + 3) * len(X) + 2 * len(X)  # training and ranking
    for number in range(3):
        with pytest.raises(Stop):
            iterate(tmp_path / str(number), Breaking(draw.randrange(1, items + 1)), optimizer=optimizer)
        with contextlib.suppress(Stop):  # unless it is through by then
            iterate(tmp_path / str(number), Breaking(draw.randrange(1, items + 1)), optimizer=optimizer)
        resumed = iterate(tmp_path / str(number), optimizer=optimizer)
        assert same(whole.model, resumed.model)
        assert whole.plan.removed == resumed.plan.removed
        assert [(s.filters, s.best_epoch) for s in whole.steps] == [(s.filters, s.best_epoch) for s in resumed.steps]


def test_steps_stopped_between_a_cut_and_its_training_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = iterate(tmp_path / "whole")
    real, calls = surgeon.tune, iter(range(9))

    def stopping(*args: Any, **kwargs: Any) -> surgeon.Tuned:
        if next(calls) == 1:
            raise Stop
        return real(*args, **kwargs)

    monkeypatch.setattr(surgeon.iteration.running, "tune", stopping)
    with pytest.raises(Stop):
        iterate(tmp_path / "run")
    assert (tmp_path / "run" / "step-2-cut.safetensors").exists()
    assert same(whole.model, iterate(tmp_path / "run").model)
    with pytest.raises(CheckpointError, match=r"run\.json: its run was asked"):
        iterate(tmp_path / "run", filters=4)
    with pytest.raises(CheckpointError, match=r"was asked {'after_cut': False}, this one {'after_cut': True}"):
        iterate(tmp_path / "run", after_cut=print)
    with pytest.raises(CheckpointError, match=r"was asked {'criterion': None}, this one {'criterion': 'random'}"):
        iterate(tmp_path / "run", criterion="random")


def test_steps_belong_to_one_model_and_what_they_are_about(tmp_path: Path) -> None:
    def run(bias: float = 0.0, **about: Any) -> surgeon.PrunedAndTuned:
        model = net().eval()
        nn.init.constant_(model.get_parameter("head.bias"), bias)
        return surgeon.prune_and_tune(
            model, X[:2], loader(12), ratio=0.3, criterion="magnitude", steps=1, directory=tmp_path, about=about,
            tuning={"device": "cpu"},
        )  # fmt: skip

    run(images=12, classes=("a", "b"))
    run(images=12, classes=("a", "b"))  # the same in JSON
    with pytest.raises(CheckpointError, match=r"was asked {'images': 12}, this one {'images': 13}"):
        run(images=13, classes=("a", "b"))
    with pytest.raises(CheckpointError, match=r"was asked {'weights': '\w{32}'}, this one"):
        run(0.5, images=12, classes=("a", "b"))
    with pytest.raises(TuningError, match=r"about holds {'images': 'Tensor'}: expected text, numbers"):
        run(images=X)


def test_what_follows_a_cut_is_called_before_training() -> None:
    seen = []

    def heal(small: nn.Module, before: nn.Module, plan: surgeon.Plan) -> None:
        seen.append((type(small), type(before), sum(map(len, plan.removed.values()))))
        nn.init.zeros_(small.get_parameter("head.bias"))

    result = iterate(after_cut=heal, epochs_per_step=0, final_epochs=0)
    assert seen == [(Net, Net, 3), (Net, Net, 3)]
    assert not result.model.get_parameter("head.bias").any()


def test_each_step_can_have_a_rate_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = surgeon.tune, []

    def watching(*args: Any, **kwargs: Any) -> surgeon.Tuned:
        held = kwargs["optimizer"]
        seen.append((kwargs["lr"], None if isinstance(held, str) else held.param_groups[0]["lr"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(surgeon.iteration.running, "tune", watching)
    iterate(tuning={"lr": (0.05, 0.01), "optimizer": "sgd"})
    assert seen == [(0.05, None), (0.01, 0.01)]  # the second goes on with the optimizer of the first


def test_what_a_cut_leaves_starts_again_from_early_weights(tmp_path: Path) -> None:
    early = net()
    with torch.no_grad():
        for parameter in early.parameters():
            parameter.mul_(0.5)
    result = iterate(tmp_path, rewind=early, epochs_per_step=0, final_epochs=0)
    assert same(result.model, surgeon.rewrite(early, dataclasses.replace(result.plan, fitted=None)))
    with pytest.raises(CheckpointError, match="rewind"):
        iterate(tmp_path, epochs_per_step=0, final_epochs=0)


def test_early_weights_of_a_model_that_takes_what_a_plan_cannot_describe() -> None:
    box, data = Box(torch.randn(2, 8)), [(Box(torch.randn(8, 8)), torch.randint(4, (8,)))]
    options: dict[str, Any] = {"steps": 1, "ratio": 0.3, "criterion": "magnitude", "epochs_per_step": 0}
    result = surgeon.prune_and_tune(Unboxing(), box, data, rewind=Unboxing(), **options)
    assert result.model(box).shape == (2, 4)
    assert result.plan.removed


def test_early_weights_of_another_model_are_refused_before_anything_is_cut(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match=r"rewind: \S+ has shape .* there and .* in the model; pass the dense model"):
        iterate(tmp_path / "run", rewind=nn.Linear(8, 4), epochs_per_step=0, final_epochs=0)
    assert not (tmp_path / "run").exists()


def test_bad_steps_are_told() -> None:
    for given, error, message in (
        ({"steps": 0}, TuningError, "steps=0"),
        ({"filters": None}, BudgetError, "give filters="),
        ({"filters": (2, 4, 6)}, BudgetError, "other numbers of targets .filters: 3."),
        ({"ratio": 0.5}, BudgetError, "give filters="),
        ({"as_graph": True}, surgeon.ModelError, "a graph can be passed"),
        ({"tuning": {"lr": (0.1, 0.1, 0.1)}}, TuningError, "lr lists 3 rates for 2 steps"),
        ({"rewind": net(), "after_cut": print}, TuningError, "leave after_cut out"),
    ):
        with pytest.raises(error, match=message):
            iterate(**given)


def test_one_layer_and_batches_that_run_out() -> None:
    """Every step ranks anew, and has modules of its own."""
    result = iterate(ignored_layers="second", dataloader=iter([(X, Y)]), criterion="taylor", filters=2)
    assert [step.widths["first"] for step in result.steps] == [4, 2]
    assert [step.widths["second"] for step in result.steps] == [8, 8]


def test_two_cuts_at_once_are_the_two_cuts() -> None:
    torch.manual_seed(0)
    dense = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    first = surgeon.prune(dense, x, ratio=0.2, criterion="magnitude", verify=False)
    second = surgeon.prune(first.model, x, ratio=0.3, criterion="random", verify=False)
    plan = compose(dense, first.plan, fit(first.model, second.plan, x), x)
    assert same(surgeon.rewrite(dense, plan), second.model)
