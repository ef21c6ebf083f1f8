"""The `surgeon` program: finds its commands in the folder `commands`, turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from . import commands
from .logs import LOGGER, logged_to, printable
from .options import MODELS
from .several import launched, refuse
from .stopping import Stopped, endable
from .wording import by_options

#: Folder that surgeon demo makes; the examples of --help begin there.
DEMO = "surgeon-demo"
#: Distribution whose version `--version` shows.
DISTRIBUTION = "filter-surgeon"
#: What the disk answers where nothing is wrong with the path: it is full, the quota or the largest file is reached, or
#: it is broken.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: In front of a paragraph whose lines click is to leave alone.
_AS_IT_IS = "\b"


class Mistake(click.ClickException):
    """Wrong usage or bad input: exit code 2."""

    exit_code = 2


class Failure(click.ClickException):
    """The work was done and failed: exit code 1."""

    exit_code = 1


class Elsewhere(Failure):
    """Another process failed, and has said why."""

    def show(self, file: Any = None) -> None:
        """Say nothing a second time."""


class Commands(click.Group):
    """A group whose commands are the modules of :mod:`surgeon_cli.commands`, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names of all commands."""
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, if there is one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{commands.__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        command.help = _as_shown(command.help or "")
        return command

    def resolve_several(self, name: str) -> None:
        """Refuse a command of one process in several; those that work together say SEVERAL in their modules."""
        if not getattr(importlib.import_module(f"{commands.__name__}.{name}"), "SEVERAL", False):
            refuse(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's own, with the nearest name in the error."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known commands: {', '.join(known)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        if launched() > 1 and args[0] in known:
            self.resolve_several(args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what surgeon raises on purpose becomes one message."""
        with endable(), told(), logged_to(ctx.params.get("log_json")), _noted(ctx):
            return super().invoke(ctx)


def _as_shown(text: str) -> str:
    """A command's docstring as its help: with what MODEL_OR_FILE may be, and the example on one line, to be copied."""
    text = inspect.cleandoc(text).replace("{MODELS}", MODELS)
    return text if _AS_IT_IS in text else text.replace("Example: ", f"{_AS_IT_IS}\nExample: ")


@contextlib.contextmanager
def _noted(ctx: click.Context) -> Iterator[None]:
    """The log says how the command ended."""
    try:
        yield
    except click.exceptions.Exit as end:  # so --help ends
        if end.exit_code:
            raise
        _note(logging.INFO, f"{_name(ctx)}: done")
        raise
    except (KeyboardInterrupt, Stopped):
        _note(logging.WARNING, f"{_name(ctx)}: stopped")
        raise
    except Exception as problem:
        _note(logging.ERROR, f"{type(problem).__name__}: {problem}")
        raise
    _note(logging.INFO, f"{_name(ctx)}: done")


def _note(level: int, message: str) -> None:
    LOGGER.log(level, message, extra={"stage": "cli"})


def _name(ctx: click.Context) -> str:
    return f"surgeon {ctx.invoked_subcommand}" if ctx.invoked_subcommand else "surgeon"


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn surgeon's errors and the operating system's into a message with an exit code; bugs pass through."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped("nothing half-written is left; the same command starts again", stop) from stop
    except BrokenPipeError:
        raise  # click's own business
    except OSError as problem:
        kind = Failure if problem.errno in _OF_THE_DISK else Mistake
        raise kind(_os_message(problem)) from problem
    except Exception as problem:
        wrapped = _wrap(problem)
        if wrapped is None:
            raise
        raise wrapped from problem


def _wrap(problem: Exception) -> click.ClickException | None:
    """The message for an error, or None for a bug. Reads modules already loaded: this file imports no torch."""
    errors, torch = sys.modules.get("surgeon.errors"), sys.modules.get("torch")
    if errors is not None and isinstance(problem, errors.SurgeonError):
        if isinstance(problem, errors.ProcessError):
            message = printable(str(problem))
            return Failure(message) if os.environ.get("RANK", "0") == "0" else Elsewhere(message)
        message = printable(_spoken(str(problem)))
        return Failure(message) if problem.failed else Mistake(message)
    if torch is not None and isinstance(problem, torch.OutOfMemoryError):
        first = str(problem).splitlines()[0]
        return Failure(f"the device's memory is full: {first} Try a smaller --batch-size, or --device cpu.")
    return None


def _spoken(message: str) -> str:
    """An error of the library in the words of the command that was typed."""
    here = click.get_current_context(silent=True)
    if here is None or not isinstance(here.command, click.Group) or here.invoked_subcommand is None:
        return message
    command = here.command.get_command(here, here.invoked_subcommand)
    return message if command is None else by_options(message, command)


def _os_message(problem: OSError) -> str:
    place = f"{problem.filename}: " if problem.filename else ""
    missing = isinstance(problem, FileNotFoundError) and str(problem.filename).startswith(f"{DEMO}{os.sep}")
    hint = "; surgeon demo makes it" if missing else ""
    return printable(f"{place}{problem.strerror or problem}{hint}")


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(_version(), prog_name="surgeon")
@click.option(
    "--log-json",
    metavar="FILE|-",
    help="Also say what happens as lines of JSON (time, level, stage, message); - is standard error.",
)
def cli(log_json: str | None) -> None:  # the group itself reads it
    """Cut the least useful filters out of a PyTorch model, and prove that the cut was right.

    Results are written to standard error, or as JSON to standard output with --json. Start with surgeon demo: it needs
    nothing, and the examples of the other commands run on what it leaves.
    Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="surgeon")
