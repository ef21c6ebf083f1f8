"""Options that several commands share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .files import amount, is_file, ratio

_F = TypeVar("_F", bound=Callable[..., Any])

#: What --data takes, for the help.
DATA = "DIR|digits|cifar10|cifar100"
#: Those that are read from --data-root.
_CIFAR = ("cifar10", "cifar100")
#: What --model and MODEL_OR_FILE take, for the help.
MODELS = "torchvision name, cifar:NAME, timm:NAME, package.module:factory, or a file of surgeon's"


class _WithAlias(click.Option):
    """An option with an older name, which works and is not in the help."""

    def __init__(self, *names: Any, alias: str, **given: Any) -> None:
        super().__init__(*names, **given)
        self._shown = copy.copy(self)
        self.opts = [*self.opts, alias]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """That of the option without the alias."""
        return click.Option.get_help_record(self._shown, ctx)


factory_option = click.option(
    "--factory",
    "factory",
    cls=_WithAlias,
    alias="--model",
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
    if typed := _typed(names):
        raise click.UsageError(f"{typed} {why}")


def refuse_together(amounts: Collection[str]) -> None:
    """Refuse ``filters`` or ``ratio`` beside another of these amounts, which are named as the library names them.

    Raises
    ------
    click.UsageError
        If they exclude each other.
    """
    if len(amounts) > 1 and not {"filters", "ratio"}.isdisjoint(amounts):
        both = " and ".join(f"--{name.replace('_', '-')}" for name in amounts)
        raise click.UsageError(f"{both} together: give --filters alone, --ratio alone, or any of --max-*")


def warn_typed(names: Collection[str], why: str) -> None:
    """As :func:`refuse_typed`, of options that the same command looks at in another case: it goes on."""
    from .output import warn

    if typed := _typed(names):
        warn(f"{typed} {why}")


def _typed(names: Collection[str]) -> str:
    """Those of the options that were typed, as the beginning of a sentence; empty if none was."""
    here = click.get_current_context()
    typed = [
        flag_of(param)
        for param in here.command.params
        if param.name in names and here.get_parameter_source(param.name) is not ParameterSource.DEFAULT
    ]
    if len(typed) > 1:
        return f"{', '.join(typed[:-1])} and {typed[-1]} are"
    return f"{typed[0]} is" if typed else ""


def refuse_of_files(models: Iterable[str | Path | None]) -> None:
    """Refuse --factory where no file is opened.

    Raises
    ------
    click.UsageError
        If it was typed, and none of the models is a file.
    """
    if not any(name is not None and is_file(str(name)) for name in models):
        refuse_typed(["factory"], "for a file of surgeon's, and none is given")


def refuse_of_cifar(data: str | None) -> None:
    """Refuse --data-root where nothing is read from there.

    Raises
    ------
    click.UsageError
        If it was typed, and --data is no CIFAR.
    """
    if data not in _CIFAR:
        refuse_typed(["data_root"], f"for {' and '.join(f'--data {name}' for name in _CIFAR)}")


def flag_of(param: click.Parameter) -> str:
    """An option as it is typed: its long name."""
    return max(param.opts, key=len)
