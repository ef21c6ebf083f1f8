"""What happens when a command is stopped: one line that says how to go on, and an exit code that names the signal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any

import click

from .several import launched

#: What asks a process to end, beside Ctrl-C: a scheduler, a terminal that is closed.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A signal that asks to end; all that holds for Ctrl-C holds for it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Stopped(click.ClickException):
    """Stopped by a signal, Ctrl-C or another; the exit code is 128 and its number, as shells have it."""

    def __init__(self, message: str, stop: KeyboardInterrupt) -> None:
        super().__init__(message)
        number = stop.number if isinstance(stop, Ended) else signal.SIGINT
        self.exit_code = 128 + number  # type: ignore[misc]  # click reads it off the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it; it is no error."""
        click.echo(f"stopped; {self.message}", file=file, err=True)


@contextlib.contextmanager
def resumable(option: str = "--resume") -> Iterator[None]:
    """What is stopped inside is taken up with this option."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(f"the same command with {option} goes on from here", stop) from stop


@contextlib.contextmanager
def endable() -> Iterator[None]:
    """In the body SIGTERM and SIGHUP stop the work as Ctrl-C does, once; a second one ends the process at once.

    Not where several processes work together: one that waits for another in native code wouldn't hear of it, and the
    launcher, which sends it when one has failed, would have to wait.
    """

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # as signal calls it
        signal.signal(number, signal.SIG_DFL)
        raise Ended(number)

    ours = []
    if threading.current_thread() is threading.main_thread() and launched() == 1:
        ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores one
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
