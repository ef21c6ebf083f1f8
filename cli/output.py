"""What the user sees: tables and progress on standard error, JSON on standard output; of several processes once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from surgeon.processes import first

from .logs import LOGGER, printable

_PLAIN_WIDTH = 120  # columns where there is no terminal to ask
_QUIET_SECONDS = 10.0  # between two plain progress lines
_AT_ONCE = 0.2  # seconds from the beginning of a stage
_MOST_REASONS = 12
#: What the library calls its stages, in words of a person at work.
_STAGES = {
    "trace": "tracing",
    "score": "ranking",
    "plan": "planning",
    "rewrite": "cutting",
    "verify": "checking",
    "heal": "healing",
    "tune": "training",
    "measure": "measuring",
    "time": "timing",
    "judge": "judging the final weights",
    "evaluate": "evaluating",
    "share": "sharing",
    "rewrite shards": "cutting shards",
}


#: The bars that are on the screen.
_SHOWN: list[Progress] = []


def console() -> Console:
    """Rich on standard error; wide enough for long layer names where it is no terminal."""
    probe = Console(stderr=True, highlight=False)
    return probe if probe.is_terminal else Console(stderr=True, highlight=False, width=_PLAIN_WIDTH)


def say(message: str) -> None:
    """One line on standard error."""
    LOGGER.info(message, extra={"stage": "cli"})
    _write(printable(message))


def warn(message: str) -> None:
    """A line that nobody can miss."""
    LOGGER.warning(message, extra={"stage": "cli"})
    _write(f"WARNING: {printable(message)}", fg="yellow", bold=True)


def _write(line: str, **style: Any) -> None:
    """A line above the bar that is on the screen, if there is one: the bar would be drawn over it."""
    if not first():
        return
    if _SHOWN:
        _SHOWN[-1].console.print(Text.from_ansi(click.style(line, **style)), soft_wrap=True)
    else:
        click.secho(line, err=True, **style)


def emit_json(value: Any) -> None:
    """One JSON document on standard output; what is not finite becomes null, for JSON has no word for it."""
    if not first():
        return
    text = json.dumps(_finite(value), indent=2, sort_keys=True, default=str, allow_nan=False)
    try:
        click.echo(text)
    except BrokenPipeError:
        raise  # nobody reads any more; click ends quietly
    except OSError as problem:
        _silence()
        raise OSError(problem.errno, problem.strerror, "standard output") from problem


def _silence() -> None:
    """What couldn't be written is not tried again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: int = 1) -> None:
    """A table on standard error; the first `left` columns hold text, the others numbers."""
    grid = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(printable(cell) if isinstance(cell, str) else f"{cell:,}") for cell in row))
    if first():
        console().print(grid)


def percent_change(before: float, after: float) -> str:
    """How much less, such as "-41.2 %"."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"


def size(count: float) -> str:
    """Bytes in decimal units, such as "527.8 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def reasons(pins: Iterable[Mapping[str, Any]]) -> None:
    """Why layers keep their filters, one line a reason."""
    layers: dict[str, list[str]] = defaultdict(list)
    for pin in pins:
        layers[f"{pin['reason']}" + (f" ({pin['source']})" if pin.get("source") else "")].append(pin["layer"])
    if not layers:
        return
    say("Left whole, and why:")
    for reason, names in list(layers.items())[:_MOST_REASONS]:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        say(f"  {shown}: {reason}")
    if len(layers) > _MOST_REASONS:
        say(f"  ... and {len(layers) - _MOST_REASONS} more reasons; --json has all of them")


@dataclass
class _Pace:
    """How fast a stage goes, from when it begins, or begins again.

    What is done at once, such as what an earlier run has left, says nothing about the rest.
    """

    begun: float
    since: float
    start: int
    done: int

    @classmethod
    def at(cls, now: float, done: int) -> _Pace:
        """A stage that begins `now` (seconds), of which so much is done."""
        return cls(now, now, done, done)

    def begins_again(self, now: float, done: int) -> bool:
        """Whether the count starts anew, as in the next step of a cut; takes note of what is done."""
        if done < self.done or (done == self.start and now - self.begun > _AT_ONCE):
            return True
        if now - self.begun <= _AT_ONCE:
            self.since, self.start = now, done
        self.done = done
        return False

    def left(self, now: float, total: int) -> float | None:
        """Seconds that the rest will take at the pace so far; None where there is no pace yet, or no rest."""
        if self.done <= self.start or self.done >= total:
            return None
        return (now - self.since) / (self.done - self.start) * (total - self.done)


class Watch:
    """Progress as surgeon reports it: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar = _bar() if sys.stderr.isatty() and first() else None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}

    def __enter__(self) -> Watch:  # noqa: PYI034  # typing.Self is Python 3.11's
        """Start showing."""
        if self._bar is not None:
            self._bar.start()
            _SHOWN.append(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""
        if self._bar is not None:
            _SHOWN.remove(self._bar)
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage` are done; 0 in all where nobody knows."""
        name, now = _STAGES.get(stage, stage), time.monotonic()
        pace = self._paces.get(name)
        if pace is None or pace.begins_again(now, done):
            pace = self._paces[name] = _Pace.at(now, done)
        if self._bar is None:
            self._line(name, total, pace, now)
        else:
            self._draw(self._bar, name, total, pace, now)

    def _draw(self, bar: Progress, name: str, total: int, pace: _Pace, now: float) -> None:
        left = pace.left(now, total)
        if name not in self._tasks:
            self._tasks[name] = bar.add_task(name, total=total or None, until=None)
        if pace.start == pace.done:
            bar.reset(self._tasks[name], completed=pace.done, total=total or None)
        until = None if left is None else now + left
        visible = not total or pace.done < total  # what is finished makes room
        bar.update(self._tasks[name], completed=pace.done, total=total or None, visible=visible, until=until)

    def _line(self, name: str, total: int, pace: _Pace, now: float) -> None:
        if total == 1:  # one step: its start is news, its end is the next one's start
            if pace.done == 0:
                say(f"{name} ...")
            return
        last = self._last.get(name)
        if last is None or (total and pace.done >= total) or now - last >= _QUIET_SECONDS:
            self._last[name] = now
            left = pace.left(now, total)
            of, told = f"/{total}" if total else "", "" if left is None else f" (about {duration(left)} left)"
            say(f"{name}: {pace.done}{of}{told}")


def duration(seconds: float) -> str:
    """A time in words, such as "12 s" or "1 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Left(ProgressColumn):
    """The time that is left. Rich's own forgets what is half a minute ago, and so has none for slow stages."""

    def render(self, task: Task) -> Text:
        """As of now: it runs down between two steps."""
        until = task.fields["until"]
        return Text("" if until is None else f"about {duration(max(until - time.monotonic(), 0))} left")


def _bar(stream: Console | None = None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _Left(),
        console=stream or Console(stderr=True),
        transient=True,
    )
