"""``surgeon evaluate``: models and files side by side: accuracy, size, and how many weights are not zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..files import check_outputs, is_file, there
from ..options import (
    DATA,
    factory_option,
    image_size_option,
    json_option,
    refuse_of_cifar,
    refuse_of_files,
    refuse_typed,
)
from ..training_options import data_root_option


@click.command(name="evaluate", short_help="Accuracy and size of models and files, as one table.")
@click.argument("models", metavar="MODEL_OR_FILE...", nargs=-1, required=True, callback=there)
@click.option(
    "--data",
    required=True,
    metavar=DATA,
    help="Images with labels of the models' classes.",
)
@data_root_option
@click.option(
    "--part",
    type=click.Choice(["train", "val", "test"]),
    help="Which part of them.  [default: test where there is one, else val, else train]",
)
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="How many of them, drawn evenly.  [default: all]"
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Images at a time."
)
@click.option(
    "--weights", metavar="DEFAULT|none|FILE", help="Of models that are given by name; see surgeon prune --help."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, ...")
@image_size_option
@factory_option
@click.option("--layers", is_flag=True, help="Also show how many weights of each layer are not zero.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), metavar="FILE", help="The table.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Error against MACs and parameters: png, svg, pdf.",
)
@click.option(
    "--histograms",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Weights of each layer, of all models over each other: png, svg or pdf.",
)
@json_option
def command(models: tuple[str, ...], **options: Any) -> None:
    """Show what models and files are worth side by side: top-1 and top-5, loss, MACs, parameters, zeros, bytes.

    MODEL_OR_FILE is a {MODELS}, such as those that surgeon prune --steps leaves after each step. How long they take
    says surgeon bench.

    Example: surgeon evaluate surgeon-demo/small.safetensors --data digits --layers
    """
    refuse_of_files(models)
    refuse_of_cifar(options["data"])
    if all(map(is_file, models)):
        refuse_typed(["weights"], "for models by name: files bring theirs")
    check_outputs([options["csv_file"]], models, plots=[options["plot"], options["histograms"]])
    from ..evaluating import run

    run(models, options)
