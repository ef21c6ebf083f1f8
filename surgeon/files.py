"""Files that are replaced whole or not at all, and folders that belong to one run at a time."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import filelock

from surgeon.errors import BusyError

__all__ = ["beside", "check_name", "locked", "write_beside"]

_log = logging.getLogger("surgeon")
#: Name of the file by which a run holds its folder. It stays; that nobody holds it is known to the system alone.
LOCK = ".lock"
#: Characters of a name: file systems allow 255 bytes, and one takes up to four.
_SHORT = 50
#: What killed writers leave: our own temporary files, and those that safetensors makes beside them.
_LEFT = re.compile(r"\.(.+\.[0-9a-f]{8}\.tmp|tmp\w{6})")


@contextlib.contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder; renamed to `path` if the body succeeds, removed if it doesn't.

    The bytes are on the disk before the name is, so whatever ends the process or the machine leaves the old file or the
    new one. The file has the rights that the umask says, whoever wrote it in the body.

    Where `path` is a symbolic link, the file that it leads to is replaced, and the link stays.

    Raises
    ------
    OSError
        If the folder is missing or can't be written to, or `path` is there and is no regular file. Errors name
        the file that was asked for, never the temporary one.
    """
    target = _target(Path(path))
    temporary = beside(target)
    try:
        temporary.touch(exist_ok=False)  # a plain open: the file gets the rights that the user's umask says
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        _to_disk(temporary)
        temporary.replace(target)
        with contextlib.suppress(OSError):  # not every system can; the rename itself is done
            _to_disk(target.parent)
    except OSError as problem:
        if problem.filename not in (None, str(temporary)):  # what fails while it writes has no name
            raise
        told = problem.strerror or str(problem)
        raise OSError(problem.errno or errno.EIO, told, os.fspath(path)) from problem
    finally:
        with contextlib.suppress(OSError):  # whatever took the folder away is told already
            temporary.unlink(missing_ok=True)


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse a path that is no text: the safetensors library can't open it, here or anywhere.

    Raises
    ------
    OSError
        If its bytes are no UTF-8.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in os.fspath(path)):
        raise OSError(errno.EILSEQ, "the name is no UTF-8, which safetensors needs; give another", os.fspath(path))


def beside(target: Path) -> Path:
    """A name for what is to become `target`, in the same folder; short enough where that one's name is a long one."""
    return target.with_name(f".{target.name[:_SHORT]}.{uuid.uuid4().hex[:8]}.tmp")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Hold a run's folder, made if it isn't there, for the body; what killed writers left half-written in it goes.

    The lock is the system's own (``flock``): it ends with the process, however that ends. None holds nothing; where the
    file system has no locks, that is logged.

    Raises
    ------
    BusyError
        If another run holds it, in this process or another.
    OSError
        If the folder can't be made.
    """
    if folder is None:
        yield
        return
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / LOCK, timeout=0, is_singleton=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(f"{folder}: another run is at work there; wait for it, or give another folder") from None
    except NotImplementedError:
        _log.warning("%s: its file system has no locks; see to it that one run at a time is at work there", folder)
    try:
        for left in place.iterdir():
            if _LEFT.fullmatch(left.name) and left.is_file():
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


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
