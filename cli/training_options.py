"""Options of the commands that train, and what they mean for the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .files import numbers

if TYPE_CHECKING:
    from surgeon.data import Data
    from surgeon.tuning import Epoch

    from .subjects import Subject

_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)

data_root_option = click.option(
    "--data-root", type=click.Path(), default="data", show_default=True, metavar="DIR", help="Where CIFAR's files are."
)

#: In the order of the help.
_TRAINING = (
    data_root_option,
    click.option(
        "--lr",
        callback=numbers,
        metavar="R",
        help="Peak learning rate.  [default: 0.01; from scratch 0.1; of adamw 0.001]",
    ),
    click.option(
        "--optimizer", type=click.Choice(["sgd", "adamw"]), default="sgd", show_default=True, help="What trains."
    ),
    click.option(
        "--warmup-epochs",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="N",
        help="Of rising rate.",
    ),
    click.option(
        "--label-smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        metavar="R",
        help="Share of the targets spread over all classes.",
    ),
    click.option(
        "--ema",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="R",
        help="Decay of a moving average of the weights, such as 0.999.",
    ),
    click.option(
        "--clip", type=click.FloatRange(min=0, min_open=True), metavar="R", help="Greatest norm of the gradient."
    ),
    click.option("--weight-decay", type=float, default=5e-4, show_default=True, metavar="R", help="Pull to zero."),
    click.option("--mixed-precision", type=click.Choice(["bf16", "fp16"]), help="Reduced precision where it is safe."),
    click.option(
        "--sharded",
        is_flag=True,
        default=None,
        help="Of several processes each holds a part of the weights, gradients and optimizer (FSDP2).",
    ),
    click.option(
        "--crop",
        type=click.IntRange(min=0),
        default=4,
        show_default=True,
        metavar="PIXELS",
        help="Move CIFAR's images by up to so many; random parts of photographs. 0: neither.",
    ),
    click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror half of the images."),
    click.option(
        "--cutout",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="PIXELS",
        help="Side of a square that is greyed out.",
    ),
    click.option(
        "--val-share",
        type=float,
        default=0.1,
        show_default=True,
        metavar="R",
        help="Share of the training images that chooses the best epoch, where there is no val/.",
    ),
    click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Readers."),
    click.option(
        "--run",
        "folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="State after every epoch, and metrics.  [default: as the file, without .safetensors, or with -run]",
    ),
    click.option("--resume", is_flag=True, help="Go on with the run that was interrupted there."),
)
#: Options that are surgeon.tune's, under its names.
_TUNE = (
    "lr", "optimizer", "schedule", "warmup_epochs", "weight_decay", "label_smoothing", "mixed_precision", "ema", "clip",
    "sharded",
)  # fmt: skip


def training_options(command: _Command) -> _Command:
    """Give a command the options of training."""
    for option in reversed(_TRAINING):
        command = option(command)
    return command


def training_names() -> set[str]:
    """Names of :func:`training_options`."""
    return {str(param.name) for param in training_options(click.Command("")).params}


def split_training(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A command's other options, and those of :func:`training_options`."""
    names = training_names()
    own = {name: value for name, value in options.items() if name not in names}
    return own, {name: value for name, value in options.items() if name in names}


def tuning_of(options: Mapping[str, Any], *, leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of surgeon.tune, but those in `leave`."""
    return {name: options[name] for name in _TUNE if name not in leave and options.get(name) is not None}


def augment_of(options: Mapping[str, Any]) -> Any:
    """The random changes of training images."""
    from surgeon.data import Augment

    return Augment(options["crop"], options["flip"], options["cutout"])


#: Options that surgeon.prune_and_tune and surgeon.compare see nothing of, and that make another run.
_ABOUT = (
    "model", "data", "seed", "image_size", "val_share", "samples", "batch_size", "train_batch_size", "crop", "flip",
    "cutout", "heal",
)  # fmt: skip


def about_of(options: Mapping[str, Any], subject: Subject, data: Data) -> dict[str, Any]:
    """What a run that is taken up again must agree in: the options by their names, the images and what becomes of them.

    `data` as it is split.
    """
    counts = [0 if part is None else len(part) for part in (data.train, data.val, data.test)]
    images = {"images": counts, "classes": list(data.classes), "preprocess": subject.preprocess.to_dict()}
    return {name: options[name] for name in _ABOUT if name in options} | {"weights": subject.weights} | images


def check_folder(folder: Path, *, resume: bool) -> None:
    """A run is only taken up where that was asked for.

    Raises
    ------
    click.UsageError
        If there is one and it wasn't, or there is none and it was.
    """
    there = folder.is_dir() and any(folder.iterdir())
    if there and not resume:
        raise click.UsageError(f"{folder}: holds a run; go on with it (--resume), or give another folder (--run)")
    if resume and not there:
        raise click.UsageError(f"{folder}: holds no run to go on with; leave --resume out")


def epoch_line(head: str, row: Epoch, epochs: int | None) -> str:
    """What an epoch came to; `head` says of what."""
    from .output import duration

    top5 = "" if row.val_top5 is None else f" (top-5 {100 * row.val_top5:.2f} %)"
    accuracy = "" if row.val_accuracy is None else f", validation {100 * row.val_accuracy:.2f} %{top5}"
    of = "" if epochs is None else f" of {epochs}"
    return f"{head}, epoch {row.number}{of}: loss {row.train_loss:.4f}{accuracy}, {duration(row.seconds)}"


def announce(subject: Subject, data: Data, new: tuple[str, ...] = ()) -> None:
    """Say what is trained, and on what."""
    from .output import say

    parts = {"train": data.train, "validation": data.val, "test": data.test}
    told = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
    say(f"{data.name}: {len(data.classes)} classes; images: {told}")
    weights = "its own weights" if subject.weights == subject.name else f"weights {subject.weights}"
    say(f"{subject.name}: {weights}" + (f"; new head: {', '.join(new)}" if new else ""))


def percent(share: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if share is None else f"{100 * share:.2f} %"
