"""surgeon.compare: a grid at equal epochs, cells that are kept, fronts, and networks that start anew."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor, nn

import surgeon
from surgeon.errors import CheckpointError, SurgeonError, TuningError
from surgeon.experiments import Cell, Compared, Experiment, Summary, running
from surgeon.experiments.running import renew
from surgeon_cli.grid import read
from tests.cli_run import Ran, surgeon_cli
from tests.factories import Small
from tests.pictures import draw

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOADER = [(IMAGES[:6], torch.arange(6) % 5), (IMAGES[6:], torch.arange(6) % 5)]
GRID = Experiment(("magnitude",), ({"ratio": 0.5},), ("linear", "one-shot", "scratch"), (0, 1), steps=2, epochs=2)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_ROUNDS", 2)


def dense() -> Small:
    torch.manual_seed(3)
    return Small()


def compare(grid: Experiment, **options: Any) -> Compared:
    return surgeon.compare(dense(), IMAGES[:1], LOADER, LOADER, grid, tuning={"lr": 0.01, "device": "cpu"}, **options)


def test_all_cells_train_as_long_and_cut_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    tune = surgeon.tune

    def counting(*args: Any, **given: Any) -> Any:
        epochs.append(given["epochs"])
        return tune(*args, **given)

    monkeypatch.setattr("surgeon.iteration.running.tune", counting)
    monkeypatch.setattr(running, "tune", counting)
    found = compare(GRID)
    assert [(cell.key.schedule, cell.key.seed) for cell in found.cells] == [
        ("linear", 0), ("linear", 1), ("one-shot", 0), ("one-shot", 1), ("scratch", 0), ("scratch", 1), ("dense", 0),
        ("dense", 1),
    ]  # fmt: skip
    assert epochs == [1, 1] * 2 + [2] * 6
    whole = found.cells[-1]
    assert whole.params == sum(p.numel() for p in dense().parameters())
    assert {cell.params < whole.params for cell in found.cells[:-2]} == {True}
    assert found.cells[2].params == found.cells[4].params


def test_options_of_steps_are_none_of_a_network_from_scratch() -> None:
    seen: list[str] = []
    options: dict[str, Any] = {
        "carry_optimizer": False, "after_cut": lambda *_: seen.append("healed"), "dataloader": iter(LOADER),
    }  # fmt: skip
    grid = Experiment(("taylor",), ({"ratio": 0.5},), ("one-shot", "scratch"), (0,), steps=1, epochs=1, dense=False)
    found = compare(grid, **options)
    assert [cell.key.schedule for cell in found.cells] == ["one-shot", "scratch"]
    assert seen == ["healed"]


def test_least_mean_and_greatest_of_the_seeds() -> None:
    found = compare(GRID)
    one = next(summary for summary in found.summaries if summary.schedule == "linear")
    seen = [cell.accuracy for cell in found.cells if cell.key.schedule == "linear" and cell.accuracy is not None]
    assert (one.runs, one.least, one.most) == (2, min(seen), max(seen))
    assert one.mean == pytest.approx(sum(seen) / 2)


def test_finished_cells_are_kept_and_a_grid_can_grow(tmp_path: Path) -> None:
    begun: list[Cell] = []

    def stop(cell: Cell) -> None:
        begun.append(cell)
        if len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(GRID, directory=tmp_path, on_cell=stop)
    later: list[Cell] = []
    found = compare(GRID, directory=tmp_path, on_cell=later.append)
    assert (*begun, *later) == found.cells
    figures = [(c.key, c.accuracy, c.loss, c.macs, c.params) for c in compare(GRID).cells]
    assert [(c.key, c.accuracy, c.loss, c.macs, c.params) for c in found.cells] == figures
    grown: list[Cell] = []
    larger = Experiment(("magnitude",), ({"ratio": 0.5},), ("one-shot",), (0, 1, 2), steps=2, epochs=2, dense=False)
    assert len(compare(larger, directory=tmp_path, on_cell=grown.append).cells) == 3
    assert [cell.key.seed for cell in grown] == [2]


def test_a_folder_belongs_to_one_comparison(tmp_path: Path) -> None:
    small = Experiment(("magnitude",), ({"ratio": 0.5},), ("one-shot",), (0,), steps=1, epochs=1, dense=False)
    compare(small, directory=tmp_path, about={"model": "a"})
    with pytest.raises(CheckpointError, match=r"belong to {'model': 'a'}, these to {'model': 'b'}"):
        compare(small, directory=tmp_path, about={"model": "b"})
    with pytest.raises(CheckpointError, match=r"belong to {'scope': None}, these to {'scope': 'local'}"):
        compare(small, directory=tmp_path, about={"model": "a"}, scope="local")
    with pytest.raises(CheckpointError, match=r"belong to {'lr': 0.01}, these to {'lr': 0.02}"):
        surgeon.compare(dense(), IMAGES[:1], LOADER, LOADER, small, directory=tmp_path, about={"model": "a"},
                        tuning={"lr": 0.02})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"belong to {'weights'"):
        surgeon.compare(Small(), IMAGES[:1], LOADER, LOADER, small, directory=tmp_path, about={"model": "a"},
                        tuning={"lr": 0.01})  # fmt: skip
    (tmp_path / "cells.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        compare(small, directory=tmp_path, about={"model": "a"})


def summary(macs: float, mean: float) -> Summary:
    return Summary("a", (), f"{macs}", 1, mean, mean, mean, macs, 1.0, 1.0, 1.0)


def test_the_front_is_what_nothing_beats() -> None:
    rows = [summary(3, 0.7), summary(1, 0.5), summary(2, 0.4), summary(3, 0.8), summary(4, 0.8)]
    assert [(s.macs, s.mean) for s in Compared((), tuple(rows)).front("macs")] == [(1, 0.5), (3, 0.8)]


def test_new_weights_are_all_new_and_follow_the_seed() -> None:
    models = [dense() for _ in range(3)]
    for model, seed in zip(models[1:], (1, 1), strict=True):
        torch.manual_seed(seed)
        renew(model)
    old, new, again = (dict(model.state_dict()) for model in models)
    assert all(torch.equal(new[name], again[name]) for name in new)
    assert not any(torch.equal(old[name], new[name]) for name in old if name.endswith("weight") and old[name].ndim > 1)


def test_a_network_from_scratch_has_nothing_of_the_trained_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Tensor] = []
    tune = surgeon.tune

    def seeing(model: nn.Module, *args: Any, **given: Any) -> Any:
        started.append(model.get_parameter("first.weight").detach().clone())
        return tune(model, *args, **given)

    monkeypatch.setattr(running, "tune", seeing)
    compare(Experiment(("magnitude",), ({"ratio": 0.5},), ("scratch",), (0,), steps=1, epochs=1, dense=False))
    trained = dense().first.weight.detach()
    assert len(started) == 1
    assert not any(torch.equal(new, old) for new in started[0] for old in trained)


class Bare(nn.Module):
    """A parameter that no layer's class can start anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_weights_that_would_stay_are_told() -> None:
    with pytest.raises(TuningError, match=r"1 \(Bare\) has parameters and no reset_parameters"):
        renew(nn.Sequential(nn.Linear(3, 3), Bare()))


BAD = [
    ({"criterion": ["taylor"]}, "no field 'criterion'"),
    ({"seeds": [0.5]}, "seeds"),
    ({"budgets": ["50%"]}, "budgets"),
    ({"schedules": []}, "schedules is empty"),
    ({"steps": 3, "epochs": 10}, "shared evenly"),
    ({"steps": 0}, "at least one step"),
    ({"criteria": ["taylor", "tayler"]}, "criteria: no criterion called 'tayler'; did you mean 'taylor'"),
    ({"schedules": ["linear", "lineal"]}, "schedules: there is no 'lineal'; there are: linear, .*, scratch"),
    ({"schedules": ["dense"]}, "schedules: there is no 'dense'"),
    ({"budgets": [{"max_latency": "50%"}]}, "budgets: there is no 'max_latency' in steps"),
    ({"budgets": [{"max_activations": 0.5}]}, "budgets: there is no 'max_activations' in steps"),
]


@pytest.mark.parametrize(("fields", "told"), BAD)
def test_experiments_that_are_none(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(TuningError, match=told):
        Experiment.read(fields)


AHEAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "above one": (
        {"budgets": ({"ratio": 0.5}, {"max_macs": 1.5})},
        {},
        "budget {'max_macs': 1.5}, .*max_macs=1.5: exp",
    ),
    "out of reach": ({"budgets": ({"ratio": 0.5}, {"max_params": 3})}, {}, "budget {'max_params': 3}, .* out of reach"),
    "only as asked": ({}, {"min_channels": 1000}, "budget {'ratio': 0.5}, schedule 'linear': .*no channel can go"),
    "too many in all": ({"budgets": ({"filters": 18},), "schedules": ("one-shot", "per-step")}, {}, "'per-step': .*36"),
    "a ratio in every step": ({"schedules": ("linear", "per-step")}, {}, "schedule 'per-step': .*counts filters"),
    "two budgets": ({"budgets": ({"ratio": 0.5, "max_macs": 0.5},)}, {}, "give filters=, or ratio="),
    "an option that there isn't": ({}, {"carry": False}, "compare has no option 'carry'.* carry_optimizer"),
    "what the grid says": ({}, {"steps": 3}, "compare has no option 'steps', or the grid says it"),
    "what would train longer": ({}, {"final_epochs": 3}, "compare has no option 'final_epochs'"),
    "a rate for each step": ({}, {"tuning": {"lr": (0.1, 0.2)}}, "lr lists 2 rates, and 'one-shot' trains 1 time"),
}


@pytest.mark.parametrize("name", AHEAD)
def test_cells_that_can_not_be_run_are_told_before_the_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.Runner, "cell", pytest.fail)
    fields, options, told = AHEAD[name]
    cells = Experiment(**{"criteria": ("magnitude",), "budgets": ({"ratio": 0.5},), "steps": 2, "epochs": 2, **fields})
    with pytest.raises(SurgeonError, match=told):
        surgeon.compare(dense(), IMAGES[:1], LOADER, LOADER, cells, directory=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_layer_that_can_not_start_anew_is_told_before_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.Runner, "cell", pytest.fail)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 3), Bare())
    with pytest.raises(TuningError, match=r"4 \(Bare\) has parameters and no reset_parameters"):
        surgeon.compare(model, IMAGES[:1], LOADER, LOADER, GRID)


def test_a_model_that_is_small_enough_already_is_trained() -> None:
    cells = Experiment(("magnitude",), ({"max_macs": 1.0},), ("one-shot",), (0,), steps=1, epochs=1)
    assert len({cell.macs for cell in compare(cells).cells}) == 1


@pytest.mark.parametrize(
    ("tuning", "rates"),
    [({}, (0.1, 0.01)), ({"lr": 0.02}, (0.02, 0.02)), ({"optimizer": "adamw"}, (0.001, 0.001))],
)
def test_new_weights_have_a_rate_of_their_own(
    tuning: dict[str, Any], rates: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    tune = surgeon.tune

    def seeing(*args: Any, **given: Any) -> Any:
        tuned = tune(*args, **given)
        seen.append(tuned.optimizer.param_groups[0]["lr"])
        return tuned

    monkeypatch.setattr(running, "tune", seeing)
    cells = Experiment(("magnitude",), ({"ratio": 0.5},), ("scratch",), (0,), steps=1, epochs=1)
    surgeon.compare(dense(), IMAGES[:1], LOADER, LOADER, cells, tuning={"device": "cpu", **tuning})
    assert seen == pytest.approx(rates)


# ---------------------------------------------------------------- the command


def command(*words: object) -> Ran:
    return surgeon_cli("compare", "--model", "tests.factories:two_classes", "--data", "photos", "--image-size", 16,
                       "--device", "cpu", "--train-batch-size", 6, *words)  # fmt: skip


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos" / "train", 6)
    draw(tmp_path / "photos" / "test", 3, seed=1)


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_an_experiment_file(suffix: str) -> None:
    fields = {"criteria": ["magnitude"], "budgets": [{"max_macs": 0.5}], "schedules": ["linear"], "seeds": [0, 1],
              "steps": 2, "epochs": 2}  # fmt: skip
    toml = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items() if name != "budgets")
    text = json.dumps(fields) if suffix == "json" else f"{toml}\nbudgets = [{{max_macs = 0.5}}]"
    Path(f"grid.{suffix}").write_text(text)
    ran = command("--experiment", f"grid.{suffix}", "--plot", "fronts.svg", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["judged"] == "test"
    assert [row["runs"] for row in ran.json["summaries"]] == [2, 2]
    assert ran.json["fronts"]["macs"]
    assert Path("fronts.svg").stat().st_size > 1000
    assert "test accuracy at equal epochs" in " ".join(ran.err.split())
    assert "holds a run" in command("--experiment", f"grid.{suffix}").err
    again = command("--experiment", f"grid.{suffix}", "--resume", "--json")
    assert again.json["cells"] == ran.json["cells"]
    for option, *words in (
        ("cutout", 3), ("flip",), ("val_share", 0.3), ("seed", 1), ("samples", 4), ("image_size", 12), ("lr", 0.5),
    ):  # fmt: skip
        name = option.replace("_", "-")
        other = command("--experiment", f"grid.{suffix}", "--resume", "--no-flip" if option == "flip" else f"--{name}",
                        *words)  # fmt: skip
        assert other.code == 2
        assert f"'{option}'" in other.err


def test_toml_is_read_before_python_had_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 3.10 there is no tomllib, and tomli, which became it, is installed."""
    reader: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    fields = ('criteria = ["magnitude"]', "budgets = [{ ratio = 0.5 }]", 'schedules = ["linear"]', "seeds = [3]")
    text = "\n".join((*fields, "steps = 1", "epochs = 1"))
    (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", reader)
    assert read(tmp_path / "grid.toml").seeds == (3,)
    wanted = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    (told,) = reader.loads(wanted)["project"]["dependencies"][-1:]
    assert told.startswith("tomli")
    marker = Requirement(told).marker
    assert marker is not None
    assert [marker.evaluate({"python_version": version}) for version in ("3.10", "3.11")] == [True, False]


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("criteria = [", (), "grid.toml"),
        ("criterias = []", (), "no field 'criterias'"),
        ("", ("--model", "tests.factories:small"), "one output for each of the 2 classes"),
        ("", ("--resume",), "holds no run"),
        ("", ("--plot", "gone/a.svg"), "no such folder"),
    ],
)
def test_bad_input_is_one_clear_message(text: str, words: tuple[str, ...], told: str) -> None:
    Path("grid.toml").write_text(text)
    ran = command("--experiment", "grid.toml", *words)
    assert ran.code == 2, ran.err
    assert told in " ".join(ran.err.split())
