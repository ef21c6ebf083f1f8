"""``surgeon demo``: the whole way in about a minute, with nothing but what is installed."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import amount
from ..options import json_option, seed_option


@click.command(name="demo", short_help="See it all in a minute, from training to the report.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("surgeon-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the report and the small model; what an earlier demo left there is replaced.",
)
@click.option(
    "--model",
    default="vgg7_bn",
    show_default=True,
    metavar="NAME",
    help="Another network for small images, such as vgg7_bn-x0.5 or resnet20.",
)
@click.option(
    "--max-macs", default="25%", show_default=True, callback=amount, metavar="AMOUNT", help="How much is to be left."
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    metavar="N",
    help="Passes over the images before the cut; half as many follow it.",
)
@seed_option("Repeats a run.")
@json_option
def command(output: Path, model: str, max_macs: str | float, epochs: int, seed: int, as_json: bool) -> None:
    """Train a small network on handwritten digits, cut it to a quarter of its multiply-adds, and show what came of it.

    Nothing is downloaded: the digits come with scikit-learn. It says at each step what the same is in Python, and
    leaves a report to open in a browser and a file for surgeon.load.

    Example: surgeon demo
    """
    from ..demo import run

    run(output, model, max_macs, epochs, seed, as_json=as_json)
