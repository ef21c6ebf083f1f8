"""Options that several commands share."""

from __future__ import annotations

import click

factory_option = click.option(
    "--model",
    "--factory",
    "factory",
    metavar="package.module:factory",
    help="Makes the dense model of a file from elsewhere than torchvision; timm:NAME too.",
)
image_size_option = click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the images.  [default: the model's]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
