"""Which processes there are, and which of them this one is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch.distributed as dist

_alone: ContextVar[bool] = ContextVar("surgeon_alone", default=False)


def start() -> None:
    """Join the processes that a launcher started with this one (``accelerate launch``, ``torchrun``), if it did.

    The device of each is then the one that accelerate gives it. A program that has called
    ``torch.distributed.init_process_group``, or made an ``accelerate.Accelerator``, needs no start.
    """
    if dist.is_available() and not dist.is_initialized() and launched() > 1:
        from accelerate import PartialState

        PartialState()


def launched() -> int:
    """How many processes the launcher says that there are, be they joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def count() -> int:
    """How many processes work together."""
    return 1 if _alone.get() or not dist.is_available() or not dist.is_initialized() else dist.get_world_size()


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the body this process works by itself: for work that not every process does."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
