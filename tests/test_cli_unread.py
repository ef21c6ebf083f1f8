"""No option counts for nothing in silence: what a command would not look at is refused, or told where it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import torch

import surgeon
from tests.cli_run import commands, surgeon_cli
from tests.factories import Small
from tests.test_cli_prune import folder

SMALL = "tests.factories:small"
NAMED = ("--model", SMALL, "--image-size", 16)
FILE = ("--model", "cut.safetensors", "--factory", SMALL)
NO_FILE = "--factory is for a file of surgeon's, and none is given"
NO_CIFAR = "--data-root is for --data cifar10 and --data cifar100"

#: Command, further words, what is said.
REFUSED: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "prune: a factory of no file": ("prune", (*NAMED, "--filters", 2, "--factory", SMALL), NO_FILE),
    "compare: a factory of no file": ("compare", (*NAMED, "--factory", SMALL), NO_FILE),
    "sensitivity: a factory of no file": ("sensitivity", (*NAMED, "--factory", SMALL), NO_FILE),
    "share: a factory of no file": ("share", (*NAMED, "--factory", SMALL), NO_FILE),
    "sparsify: a factory of no file": ("sparsify", (*NAMED, "--amount", 0.5, "--factory", SMALL), NO_FILE),
    "train: a factory of no file": (
        "train", (*NAMED, "--data", "digits", "--epochs", 1, "--factory", SMALL), NO_FILE,
    ),
    "bench: a factory of no file": ("bench", (SMALL, "--factory", SMALL), NO_FILE),
    "bench: by its older name": ("bench", (SMALL, "--model", SMALL), NO_FILE),
    "evaluate: a factory of no file": ("evaluate", (SMALL, "--data", "digits", "--factory", SMALL), NO_FILE),
    "export: a factory of no file": ("export", (SMALL, "--format", "pt2", "--factory", SMALL), NO_FILE),
    "inspect: a factory of no file": ("inspect", (SMALL, "--factory", SMALL), NO_FILE),
    "prune: cifar's place": ("prune", (*NAMED, "--filters", 2, "--data-root", "copies"), NO_CIFAR),
    "compare: cifar's place": ("compare", (*NAMED, "--data", "photos", "--data-root", "copies"), NO_CIFAR),
    "sensitivity: cifar's place": ("sensitivity", (*NAMED, "--data-root", "copies"), NO_CIFAR),
    "share: cifar's place": ("share", (*NAMED, "--data-root", "copies"), NO_CIFAR),
    "sparsify: cifar's place": ("sparsify", (*NAMED, "--amount", 0.5, "--data-root", "copies"), NO_CIFAR),
    "train: cifar's place": (
        "train", (*NAMED, "--data", "digits", "--epochs", 1, "--data-root", "copies"), NO_CIFAR,
    ),
    "evaluate: cifar's place": ("evaluate", (SMALL, "--data", "digits", "--data-root", "copies"), NO_CIFAR),
    "prune: weights of a file": ("prune", (*FILE, "--filters", 2, "--weights", "none"), "brings its weights"),
    "train: weights of a file": (
        "train", (*FILE, "--data", "photos", "--epochs", 1, "--weights", "none"), "brings its weights",
    ),
    "compare: weights of a file": ("compare", (*FILE, "--weights", "none"), "brings its weights"),
    "sensitivity: weights of a file": ("sensitivity", (*FILE, "--weights", "none"), "brings its weights"),
    "share: weights of a file": ("share", (*FILE, "--weights", "none"), "--weights is for models by name"),
    "sparsify: weights of a file": (
        "sparsify", (*FILE, "--amount", 0.5, "--weights", "none"), "--weights is for models by name",
    ),
    "evaluate: weights of files": (
        "evaluate", ("cut.safetensors", "--factory", SMALL, "--data", "photos", "--weights", "none"),
        "--weights is for models by name",
    ),
    "share: images of none": (
        "share", (*NAMED, "--samples", 4, "--batch-size", 2), "--samples and --batch-size are for images of your own",
    ),
    "sparsify: images of none": (
        "sparsify", (*NAMED, "--amount", 0.5, "--samples", 4), "--samples is for images of your own",
    ),
    "share: a size of none": ("share", (*FILE, "--image-size", 16), "--image-size is for images of your own"),
    "sparsify: of a threshold": (
        "sparsify", (*NAMED, "--threshold", 0.1, "--of", "survivors", "--scope", "local"),
        "--of and --scope are for a share of the weights: give --amount",
    ),
    "prune: a schedule of one cut": (
        "prune", (*NAMED, "--filters", 2, "--schedule", "cubic"),
        "--schedule cubic is for several cuts: give --steps N",
    ),
    "prune: one cut and training": (
        "prune", (*NAMED, "--filters", 2, "--schedule", "linear", "--epochs", 1, "--data", "photos"),
        "--schedule linear is for several cuts: give --steps N",
    ),
    "prune: a recipe without training": (
        "prune", (*NAMED, "--filters", 2, "--ema", 0.9, "--clip", 1, "--warmup-epochs", 1, "--label-smoothing", 0.1,
                  "--teacher-weight", 0.5, "--temperature", 2),
        "--temperature are for cuts with training between: give --epochs N",
    ),
    "prune: a temperature of no teacher": (
        "prune", (*NAMED, "--filters", 2, "--epochs", 1, "--data", "photos", "--temperature", 2),
        "--temperature is for what the dense model teaches: give --teacher-weight R",
    ),
    "sensitivity: a criterion of weights": (
        "sensitivity", (*NAMED, "--what", "weights", "--criterion", "lamp"), "--criterion is for --what filters",
    ),
    "sensitivity: a part of none": ("sensitivity", (*NAMED, "--part", "val"), "--part is for images of your own"),
    "compare: training without an experiment": (
        "compare", (*NAMED, "--clip", 1), "--clip is for an experiment: give --experiment FILE",
    ),
    "bench: layers of another back end": (
        "bench", (SMALL, "--backend", "onnxruntime", "--layers"), "--layers is for the back end",
    ),
    "shards: the length of no text": (
        "shards", ("--model", "a:b", "--weights", "w", "--output", "o", "--ratio", 0.5, "--inputs", "a:c", "--tokens",
                   9),
        "--tokens is for text: leave --inputs out",
    ),
    "train: an epoch that there isn't": (
        "train", (*NAMED, "--data", "digits", "--epochs", 2, "--keep-epoch", 3), "--keep-epoch 3: there are 2 epochs",
    ),
}  # fmt: skip

#: The same of what another choice of the same option would look at: it goes on.
TOLD: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "prune: images of a criterion that needs none": (
        "prune", (*NAMED, "--filters", 2, "--criterion", "random", "--data", "photos", "--samples", 4, "--batch-size",
                  2, "--micro-batch", 1),
        "--data, --samples, --batch-size and --micro-batch are not looked at: --criterion random needs no images",
    ),
    "prune: pieces of what only heals": (
        "prune", (*NAMED, "--filters", 2, "--criterion", "random", "--heal", "bn", "--samples", 4, "--micro-batch", 1),
        "--micro-batch is not looked at",
    ),
    "prune: with training": (
        "prune", ("--model", "tests.factories:two_classes", "--image-size", 16, "--filters", 2, "--criterion",
                  "magnitude", "--data", "photos", "--samples", 4, "--epochs", 1, "--train-batch-size", 4),
        "--samples is not looked at: --criterion magnitude needs no images",
    ),
    "compare: images of criteria that need none": (
        "compare", (*NAMED, "--criteria", "lamp,random", "--data", "photos", "--samples", 4),
        "--data and --samples are not looked at: --criteria lamp,random needs no images",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs, and a file of a factory's model."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "photos", cat=6, dog=6)
    model = Small().eval()
    plan = surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(model, torch.zeros(1, 3, 16, 16))))
    surgeon.save("cut.safetensors", model, plan, {"factory": SMALL})


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_looked_at_is_refused(name: str, tmp_path: Path) -> None:
    command, words, told = REFUSED[name]
    ran = surgeon_cli(command, *words)
    assert ran.code == 2, ran.err
    assert told in " ".join(ran.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "photos"]


@pytest.mark.parametrize("name", TOLD)
def test_what_this_choice_does_not_look_at_is_told(name: str) -> None:
    command, words, told = TOLD[name]
    ran = surgeon_cli(command, *words, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert f"WARNING: {told}" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    "words", [("prune", "--filters", 2, "--criterion", "random"), ("compare", "--criteria", "lamp,random")]
)
def test_a_default_is_no_reason_for_a_word(words: tuple[Any, ...]) -> None:
    ran = surgeon_cli(*words, *NAMED)
    assert ran.code == 0, ran.err
    assert "not looked at" not in ran.err


def test_every_command_is_asked() -> None:
    """`demo`, `device` and `report` have no option that another one silences."""
    asked = {command for command, *_ in REFUSED.values()}
    assert asked == set(commands().list_commands(click.Context(commands()))) - {"demo", "device", "report"}
