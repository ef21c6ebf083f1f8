"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["write_beside"]


@contextlib.contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder; renamed to `path` if the body succeeds, removed if it doesn't.

    Where `path` is a symbolic link, the file that it leads to is replaced, and the link stays.

    Raises
    ------
    OSError
        If the folder is missing or can't be written to, or `path` is there and is no regular file. Errors name
        the file that was asked for, never the temporary one.
    """
    target = _target(Path(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch(exist_ok=False)  # a plain open: the file gets the rights that the user's umask says
        yield temporary
        temporary.replace(target)
    except OSError as problem:
        if problem.filename != str(temporary):
            raise
        raise OSError(problem.errno, problem.strerror, os.fspath(path)) from problem
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The regular file, there or not yet, that `path` means."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give a file name", str(path))
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # replacing a device would take it from everybody
        raise OSError(errno.EINVAL, "is a device or a pipe, no regular file; give another name", str(path))
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link that leads to itself", str(path))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.absolute().parent))
    return target
