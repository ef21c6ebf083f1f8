"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .files import amount, ratio

_F = TypeVar("_F", bound=Callable[..., Any])

#: What --data takes, for the help.
DATA = "DIR|digits|cifar10|cifar100"

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
#: How much goes in one cut; surgeon prune's also take a list, for several.
_ONE_CUT = (
    click.option("--ratio", callback=ratio, metavar="R", help="Remove this share of the channels, such as 0.5."),
    click.option(
        "--max-macs",
        callback=amount,
        metavar="AMOUNT",
        help="Keep within: 50%, 0.5, or a count such as 2G (1 multiply-add is 1).",
    ),
    click.option(
        "--max-params", callback=amount, metavar="AMOUNT", help="Keep within: 50%, 0.5, or a count such as 5M."
    ),
)


def seed_option(words: str) -> Callable[[_F], _F]:
    """--seed, and what it is good for in this command."""
    kind = click.IntRange(0, 2**63 - 1)
    return click.option("--seed", type=kind, default=0, show_default=True, metavar="N", help=words)


json_option = click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")


def one_cut_options(function: _F) -> _F:
    """Give a command --ratio, --max-macs and --max-params of one amount each."""
    for option in reversed(_ONE_CUT):
        function = option(function)
    return function


def refuse_typed(names: Collection[str], why: str) -> None:
    """Refuse options of the command at hand that were typed and would not be looked at.

    Raises
    ------
    click.UsageError
        If there are such; `why` ends the sentence that their names begin.
    """
    here = click.get_current_context()
    typed = [
        flag_of(param)
        for param in here.command.params
        if param.name in names and here.get_parameter_source(param.name) is not ParameterSource.DEFAULT
    ]
    if typed:
        told = f"{', '.join(typed[:-1])} and {typed[-1]} are" if len(typed) > 1 else f"{typed[0]} is"
        raise click.UsageError(f"{told} {why}")


def flag_of(param: click.Parameter) -> str:
    """An option as it is typed: its long name."""
    return max(param.opts, key=len)
