"""How processes stay in step: each says what it is about to do before they exchange anything; a failed one says so."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from surgeon.errors import ProcessError
from surgeon.processes.members import count, rank

Item = TypeVar("Item")
#: How long a process that failed waits for the others to hear of it.
_PATIENCE = datetime.timedelta(seconds=60)
_FAILED = 0

_inside: ContextVar[bool] = ContextVar("surgeon_together", default=False)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """The body ends well in all processes or in none: where it fails in one, it fails in the others, too.

    Raises
    ------
    ProcessError
        If it failed elsewhere.
    """
    if count() == 1 or _inside.get():
        yield
        return
    token = _inside.set(True)
    try:
        yield
        meet(f"the end of {what}")
    except ProcessError:
        raise
    except Exception as problem:
        _confess(f"{type(problem).__name__}: {problem}")
        raise
    finally:
        _inside.reset(token)


def meet(what: str) -> None:
    """Wait until all processes are about to do the same.

    Raises
    ------
    ProcessError
        If another one failed, or is about to do something else.
    """
    code = 1 + int.from_bytes(hashlib.blake2b(what.encode(), digest_size=7).digest(), "little")
    codes = _codes(code, None)
    if _FAILED in codes:
        who = codes.index(_FAILED)
        raise ProcessError(f"process {who} failed: {hear(who)}")
    if len(set(codes)) > 1:
        raise ProcessError(f"the processes have come apart before {what}: give each the same model, data and options")


def _confess(message: str) -> None:
    """Let the others know; if they don't come to hear it, be it so."""
    with contextlib.suppress(ProcessError):
        codes = _codes(_FAILED, _PATIENCE)
        who = codes.index(_FAILED)
        if who == rank():
            say(message)
        else:
            hear(who)


def _codes(code: int, patience: datetime.timedelta | None) -> list[int]:
    own = torch.tensor([code], dtype=torch.int64)
    found = [torch.zeros_like(own) for _ in range(count())]
    with told():
        work = dist.all_gather(found, own, group=group(), async_op=True)
        assert work is not None
        if patience is None:
            work.wait()
        else:
            work.wait(patience)
    return [int(code) for code in found]


def say(value: Item) -> Item:
    """Tell all others."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with told():
        dist.broadcast(torch.tensor([len(text)]), src=rank(), group=group())
        dist.broadcast(text, src=rank(), group=group())
    return value


def hear(who: int) -> Any:
    """What process `who` says."""
    length = torch.zeros(1, dtype=torch.int64)
    with told():
        dist.broadcast(length, src=who, group=group())
        text = torch.zeros(int(length), dtype=torch.uint8)
        dist.broadcast(text, src=who, group=group())
    return json.loads(text.numpy().tobytes())


@contextlib.contextmanager
def told() -> Iterator[None]:
    """A lost connection in the body is a ProcessError."""
    try:
        yield
    except RuntimeError as problem:  # a connection that was closed, a time that is over
        raise ProcessError(f"lost the other processes: {str(problem).splitlines()[0]}") from problem


_groups: dict[int, tuple[Any, Any]] = {}


def group() -> Any:
    """A group of our own: what the program itself sends, or a training step, never gets mixed up with ours."""
    whole = dist.group.WORLD
    known = _groups.get(os.getpid())
    if known is None or known[0] is not whole:
        known = whole, dist.new_group(backend="gloo")
        _groups[os.getpid()] = known
    return known[1]
