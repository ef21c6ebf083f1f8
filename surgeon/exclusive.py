"""What a process has but once, used by one thread at a time.

torch's default generator, its switches for fused kernels (with them, results differ in the last bits), the number of
threads, accelerate's state, filters of warnings, the garbage collector, and torch.nn.Module itself while ``torch.fx``
traces: what changes one of them for a while, and puts it back, holds :data:`ONE_AT_A_TIME`, and so does what computes
numbers that matter. Several threads can thus work on models of their own, and get what they would get one after the
other.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

__all__ = ["ONE_AT_A_TIME", "collecting_new", "one_at_a_time"]

#: Held around every use of the above; the thread that holds it may take it again.
ONE_AT_A_TIME = threading.RLock()

_P = ParamSpec("_P")
_R = TypeVar("_R")


def one_at_a_time(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Hold :data:`ONE_AT_A_TIME` while `function` runs."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ONE_AT_A_TIME:
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def collecting_new() -> Iterator[None]:
    """Let the garbage collector look at nothing that is older than the body; what the body leaves goes at its end.

    Recordings are cycles of many small objects. Each hundred thousand of them would have it go through all that torch
    and the caller have made, for a quarter of a second each time.
    """
    if not gc.isenabled() or gc.get_freeze_count():  # the caller has a way of their own, or it is done already
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
