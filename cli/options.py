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
#: Of commands whose --model is what they work on.
file_factory_option = click.option(
    "--factory",
    metavar="package.module:factory",
    help="Makes the dense model of a file from elsewhere than torchvision; timm:NAME too.",
)
ignore_option = click.option(
    "--ignore", multiple=True, metavar="LAYER", help="Layer (name or glob) that keeps all its filters; repeatable."
)
image_size_option = click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the images.  [default: the model's]",
)
scope_option = click.option(
    "--scope",
    type=click.Choice(["global", "local"]),
    default="global",
    show_default=True,
    help="Rank all channels together, or cut the same ratio in every group.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
