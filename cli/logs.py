"""``--log-json``: what happens, as lines of JSON for machines to read."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

#: The library's one logger; the command line's own messages go through it, too.
LOGGER = logging.getLogger("surgeon")
LOGGER.addHandler(logging.NullHandler())  # the library adds one too, once it is imported
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without control characters: names in files and models are not to steer a terminal."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


class Lines(logging.Formatter):
    """One JSON object a line: time (UTC), level, stage, message, and seconds where a stage has ended."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        told = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": getattr(record, "stage", None),
            "message": printable(record.getMessage()),
        }
        if (seconds := getattr(record, "seconds", None)) is not None:
            told["seconds"] = round(seconds, 6)
        return json.dumps(told)


class _File(logging.FileHandler):
    """Where the file can't be written any more, that is said once, and the work goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Of the error that is being handled."""
        problem = sys.exc_info()[1]
        if not isinstance(problem, OSError):
            super().handleError(record)
            return
        LOGGER.removeHandler(self)
        sys.stderr.write(f"WARNING: {self.baseFilename}: {problem.strerror}; nothing more is logged there\n")


@contextlib.contextmanager
def logged_to(path: str | None) -> Iterator[None]:
    """Write the log into a file, behind what is there (``-``: to standard error); None: nowhere.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    if path is None:
        yield
        return
    handler = logging.StreamHandler(sys.stderr) if path == "-" else _File(Path(path), encoding="utf-8")
    handler.setFormatter(Lines())
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(handler)
        with contextlib.suppress(OSError):  # a line that doesn't fit; it is told
            handler.close()
