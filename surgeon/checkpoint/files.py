"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_beside"]


@contextlib.contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder; renamed to `path` if the body succeeds, removed if it doesn't.

    Raises
    ------
    OSError
        If the folder is missing or can't be written to, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder; give a file name", str(target))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(2, "no such folder; make it first", str(target.absolute().parent))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch(exist_ok=False)  # a plain open: the file gets the rights that the user's umask says
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
