"""``surgeon train``: a baseline from scratch, or a trained network with a new head for one's own images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..files import check_outputs, named_after, run_folder, there
from ..options import DATA, MODELS, refuse_of_cifar, refuse_of_files
from ..several import joined
from ..training_options import training_options
from .compare import as_in_prune

#: Several processes share the work.
SEVERAL = True


@as_in_prune("factory", "threads", "device", "seed", "image_size")
@click.command(name="train", short_help="Train a network on a folder of images or on CIFAR.")
@click.option(
    "--model",
    required=True,
    callback=there,
    metavar="MODEL",
    help=f"{MODELS}; for small images cifar:resnet20, cifar:vgg16_bn, cifar:wrn16-4, ...",
)
@click.option(
    "--data",
    required=True,
    metavar=DATA,
    help="DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with val/ and test/ beside it.",
)
@click.option(
    "--weights",
    metavar="DEFAULT|none|FILE",
    help="Start from pretrained weights, with a new head where the classes are others.  [default: none]",
)
@click.option("--epochs", type=click.IntRange(min=0), required=True, metavar="N", help="Passes over the images.")
@click.option(
    "--frozen-epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Before them, so many that train the new head alone.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=128, show_default=True, metavar="N", help="Images at a time."
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "one-cycle", "constant"]),
    default="cosine",
    show_default=True,
    help="How the rate goes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: MODEL-trained.safetensors]",
)
@click.option(
    "--keep-epoch",
    "keep_epochs",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Keep the weights after this epoch too (0: before the first), to rewind to; repeatable.",
)
@training_options
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Training curves: png, svg or pdf.")
@click.option("--json", "as_json", is_flag=True, help="All epochs as JSON on standard output.")
def command(**options: Any) -> None:
    """Train a network, and write it to a file that every --model takes.

    The best epoch is chosen on images held out of the training images; those of test/ (of CIFAR: the test set) are
    looked at once, at the end. An interrupted run goes on with --resume. Nothing is downloaded but weights that
    --weights asks for.

    Example: surgeon train --model cifar:vgg7_bn --image-size 8 --data digits --crop 1 --no-flip --epochs 10
    """
    refuse_of_files([options["model"]])
    refuse_of_cifar(options["data"])
    if (last := max(options["keep_epochs"], default=0)) > options["epochs"]:
        raise click.UsageError(f"--keep-epoch {last}: there are {options['epochs']} epochs")
    run(options)


def target_of(options: Mapping[str, Any]) -> Path:
    """Where the file goes."""
    return options["output"] or Path(f"{named_after(options['model'], 'trained')}.safetensors")


def run(options: Mapping[str, Any]) -> None:
    """The whole command."""
    with joined():
        target = target_of(options)
        folder = options["folder"] or run_folder(target)
        check_outputs([target], [options["model"], options["weights"]], plots=[options["plot"]], folder=folder)
        from .. import baseline

        baseline.run(options, target, folder)
