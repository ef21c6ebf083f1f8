"""What happens when the user stops a command: one line that says how to go on, and exit code 130."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Any

import click


class Stopped(click.ClickException):
    """Ctrl-C: 128 and the number of the signal, as shells have it."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it; it is no error."""
        click.echo(f"stopped; {self.message}", file=file, err=True)


@contextlib.contextmanager
def resumable(option: str = "--resume") -> Iterator[None]:
    """What is stopped inside is taken up with this option."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(f"the same command with {option} goes on from here") from stop
