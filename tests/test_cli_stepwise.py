"""surgeon prune with training between its steps: figures and files after each, and runs that are interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import surgeon
from surgeon.tuning.record import Step
from surgeon_cli import stepwise
from tests.cli_run import Ran, surgeon_cli
from tests.pictures import draw

MODEL = "tests.factories:two_classes"


@pytest.fixture(autouse=True)
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepwise, "_ROUNDS", 2)
    draw(tmp_path / "photos" / "train", 10)
    draw(tmp_path / "photos" / "test", 4, seed=1)


def prune(*words: object, model: str = MODEL, steps: int = 2, data: str = "photos") -> Ran:
    return surgeon_cli(
        "prune", "--model", model, "--data", data, "--steps", steps, "--image-size", 16, "--device", "cpu",
        "--epochs", 1, "--train-batch-size", 6, "--output", "small.safetensors", *words,
    )  # fmt: skip


def make() -> nn.Module:
    from tests.factories import Small

    return Small(2)


def test_the_ancestors_loop_with_figures_and_a_file_after_each_step() -> None:
    ran = prune("--filters", 3, "--final-epochs", 2, "--lr", 0.05, "--json")
    assert ran.code == 0, ran.err
    steps = ran.json["steps"]
    assert [ran.json["dense"]["filters"], *(step["filters"] for step in steps)] == [20, 17, 14]
    assert [len(step["history"]) for step in steps] == [1, 3]
    for step in steps:
        assert 0 <= step["cut"]["accuracy"] <= 1
        assert step["latency"]["speed_up"]["ratio"] > 0
        assert step["latency"]["small"]["rounds"] == 2
        model = surgeon.load(f"small/step-{step['number']}.safetensors", make)
        widths = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        assert {name: step["widths"][name] for name in widths} == widths
        assert sum(p.numel() for p in model.parameters()) == step["params"]
    last, small = (surgeon.load(name, make) for name in ("small/step-2.safetensors", "small.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(last.state_dict().values(), small.state_dict().values(), strict=True))
    assert ran.json["test"]["accuracy"] is not None
    for told in (
        "2 classes; images: 18 train, 2 validation, 8 test",
        "step 1, epoch 1: loss",
        "step 2, epoch 3: loss",
        "3 filters in each of 2 steps, 6 in all",
        "step 1: 17 filters",
        "out-channels",
        "test images: top-1",
        "written: small.safetensors",
    ):
        assert told in ran.err
    lines = [json.loads(line) for line in Path("small/steps.jsonl").read_text().splitlines()]
    assert lines == steps


def test_threads_are_those_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        assert prune("--filters", 2, "--threads", 2, steps=1).code == 0
        assert torch.get_num_threads() == 2
        row = json.loads(Path("small/steps.jsonl").read_text().splitlines()[0])
        assert row["latency"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_the_total_is_reached_in_steps_where_no_other_schedule_is_asked() -> None:
    ran = prune("--max-macs", "50%", "--json", "--heal", "bn")
    assert ran.code == 0, ran.err
    dense, (first, last) = ran.json["dense"]["macs"], (step["macs"] for step in ran.json["steps"])
    assert last <= 0.5 * dense < first < dense


def test_a_trained_file_is_cut_in_steps_and_opens_without_a_factory() -> None:
    ran = surgeon_cli("train", "--model", "cifar:resnet20b-x0.1", "--data", "photos", "--epochs", 1, "--batch-size", 6,
                      "--device", "cpu", "--output", "net.safetensors")  # fmt: skip
    assert ran.code == 0, ran.err
    ran = surgeon_cli("prune", "--model", "net.safetensors", "--data", "photos", "--ratio", 0.3, "--epochs", 1,
                      "--train-batch-size", 6, "--device", "cpu", "--criterion", "magnitude")  # fmt: skip
    assert ran.code == 0, ran.err
    for name in ("net-pruned.safetensors", "net-pruned/step-1.safetensors"):
        assert surgeon.load(name)(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    ran = prune("--ratio", 0.3, model="net-pruned.safetensors")
    assert ran.code == 2
    assert "is cut already" in ran.err


def test_an_interrupted_run_goes_on_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prune("--filters", 6, "--run", "whole", "--json")
    assert whole.code == 0, whole.err
    call: Callable[..., None] = stepwise._Rows.__call__

    def stopping(self: stepwise._Rows, step: Step, small: nn.Module) -> None:
        call(self, step, small)
        raise KeyboardInterrupt

    monkeypatch.setattr(stepwise._Rows, "__call__", stopping)
    ran = prune("--filters", 6, "--run", "run")
    assert ran.code == 130
    assert "--resume goes on" in ran.err
    monkeypatch.setattr(stepwise._Rows, "__call__", call)
    assert "holds a run" in prune("--filters", 6, "--run", "run").err
    ran = prune("--filters", 6, "--run", "run", "--resume", "--json")
    assert ran.code == 0, ran.err
    for one, other in zip(whole.json["steps"], ran.json["steps"], strict=True):
        assert other["latency"] is not None
        for step in (one, other):
            step.pop("latency")
            for epoch in step["history"]:
                epoch.pop("seconds")
        assert one == other


OTHERS: dict[str, tuple[object, ...]] = {
    "cutout": ("--cutout", 3),
    "flip": ("--no-flip",),
    "crop": ("--crop", 1),
    "heal": ("--heal", "bn"),
    "samples": ("--samples", 8),
    "val_share": ("--val-share", 0.3),
    "batch_size": ("--batch-size", 4),
    "train_batch_size": ("--train-batch-size", 9),
    "image_size": ("--image-size", 12),
    "data": ("--data", "others"),
    "weights": ("--weights", "other.safetensors"),
    "seed": ("--seed", 1),
    "criterion": ("--criterion", "random"),
    "lr": ("--lr", 0.5),
    "warmup_epochs": ("--warmup-epochs", 0.5),
    "label_smoothing": ("--label-smoothing", 0.1),
    "ema": ("--ema", 0.9),
    "clip": ("--clip", 1),
    "teacher_weight": ("--teacher-weight", 0.5),
    "temperature": ("--teacher-weight", 0.9, "--temperature", 2),
    "images": (),  # one was added
}


def test_a_run_is_not_taken_up_as_another(tmp_path: Path) -> None:
    begun = ("--filters", 2, "--criterion", "magnitude")
    assert prune(*begun, steps=1).code == 0
    draw(tmp_path / "others" / "train", 10, seed=5)
    save_file(make().state_dict(), "other.safetensors")
    kept = Path("small/run.json").read_bytes()
    Path("small.safetensors").unlink()
    for option, words in OTHERS.items():
        if option == "images":
            shutil.copy("photos/train/blue/0.png", "photos/train/blue/extra.png")
        ran = prune(*begun, "--resume", *words, steps=1)
        assert ran.code == 2, option
        assert f"'{option}'" in ran.err, ran.err
        assert not Path("small.safetensors").exists()
        assert Path("small/run.json").read_bytes() == kept
    Path("photos/train/blue/extra.png").unlink()
    assert prune(*begun, "--resume", "--workers", 1, steps=1).code == 0


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no data": (("--data", "nowhere"), "no such folder"),
    "other classes": (("--model", "tests.factories:small"), "give it a head for them first: surgeon train"),
    "a dry run": (("--dry-run",), "--dry-run and --epochs exclude each other"),
    "a page": (("--report", "page.html"), "--report and --epochs exclude each other"),
    "no run": (("--resume",), "holds no run"),
    "a batch for one cut": (("--latency-batch-size", 4), "--latency-batch-size is for one cut: leave --epochs out"),
    "rates": (("--lr", "0.1,0.2,0.3"), "--lr lists 3 amounts, one for each step, and there are 2"),
    "an output that is the folder": (
        ("--output", "run", "--run", "run"),
        "run: the run's folder (--run) has this name",
    ),
    "a ratio per step": (("--schedule", "per-step"), "give --filters N, not --ratio 0.3"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_message(name: str) -> None:
    words, told = BAD[name]
    ran = prune("--ratio", 0.3, *words)
    assert ran.code == 2, ran.err
    assert told in " ".join(ran.err.split())
    assert not Path("small.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--schedule", "one-shot"), "--schedule one-shot is"),
        (("--resume",), "--resume is"),
        (("--rewind", "early.safetensors"), "--rewind is"),
        (("--lr", 0.5, "--run", "abc", "--crop", 4), "--lr, --crop and --run are"),
    ],
)
def test_what_belongs_to_training_needs_epochs(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli("prune", "--model", MODEL, "--filters", 2, *words)
    assert ran.code == 2
    assert f"{told} for cuts with training between: give --epochs N" in " ".join(ran.err.split())


def test_the_recipe_reaches_the_training_with_the_dense_model_as_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, dict[str, object]]] = []

    def stop(model: nn.Module, *_: object, **options: object) -> None:
        seen.append((model, dict(options["tuning"])))  # type: ignore[call-overload]  # as the command gives it
        raise surgeon.errors.TuningError("seen")

    monkeypatch.setattr(surgeon, "prune_and_tune", stop)
    recipe = {"warmup_epochs": 1.0, "label_smoothing": 0.1, "ema": 0.9, "clip": 1.0}
    words = [word for name, value in recipe.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert "seen" in prune("--filters", 3, *words, "--teacher-weight", 0.9, "--temperature", 3).err
    assert "seen" in prune("--filters", 3).err
    (dense, given), (_, plain) = seen
    assert given["teacher"] is dense
    assert {**recipe, "teacher_weight": 0.9, "temperature": 3.0}.items() <= given.items()
    assert "teacher" not in plain


@pytest.mark.parametrize(
    "words",
    [("--ema", 1), ("--clip", 0), ("--label-smoothing", 1), ("--warmup-epochs", -1), ("--teacher-weight", 1.5),
     ("--temperature", 0)],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_told_before_anything_is_cut(words: tuple[object, ...]) -> None:
    ran = prune("--filters", 3, *words)
    assert ran.code == 2
    assert f"Invalid value for '{words[0]}'" in ran.err
    assert not Path("small").exists()


def test_a_teacher_changes_what_is_trained() -> None:
    losses = []
    for name, words in (("alone", ()), ("taught", ("--teacher-weight", 0.9))):
        ran = prune("--filters", 3, *words, "--run", name, "--json", steps=1)
        assert ran.code == 0, ran.err
        losses.append(ran.json["steps"][0]["history"][0]["train_loss"])
    assert losses[0] != losses[1]


def test_ranking_in_pieces_is_heeded_with_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []

    def stop(*_: object, **options: object) -> None:
        seen.append(options["micro_batch"])  # type: ignore[arg-type]  # as the option has it
        raise surgeon.errors.TuningError("seen")

    monkeypatch.setattr(surgeon, "prune_and_tune", stop)
    assert "seen" in prune("--filters", 3, "--micro-batch", 2).err
    assert seen == [2]


def test_a_list_of_targets_rates_for_each_and_early_weights() -> None:
    words = (
        "--model",
        "cifar:resnet20-x0.1",
        "--data",
        "photos",
        "--image-size",
        16,
        "--batch-size",
        6,
        "--device",
        "cpu",
    )
    ran = surgeon_cli("train", *words, "--epochs", 1, "--keep-epoch", 0, "--output", "net.safetensors")
    assert ran.code == 0, ran.err
    ran = prune(
        "--max-macs", "80%,60%", "--lr", "0.02,0.01", "--rewind", "net/epoch-0.safetensors", "--json", "--criterion",
        "magnitude", model="net.safetensors",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    dense = ran.json["dense"]["macs"]
    shares = [step["macs"] / dense for step in ran.json["steps"]]
    assert 0.6 < shares[0] <= 0.8
    assert shares[1] <= 0.6
    assert surgeon.load("small.safetensors")(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    for wrong, told in (
        (
            ("--max-macs", "80%,60%,50%"),
            "--max-macs lists 3 amounts, one for each step, and there are 2: give --steps 3",
        ),
        (("--ratio", "0.2,x"), "'x': give a share between 0 and 1"),
        (("--ratio", "0.2", "--rewind", "net/epoch-0.safetensors", "--heal", "bn"), "--rewind and --heal exclude"),
    ):
        ran = prune(*wrong, "--run", "other", model="net.safetensors")
        assert ran.code == 2
        assert told in " ".join(ran.err.split())
