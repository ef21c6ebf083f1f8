"""What a process has but once, used by one thread at a time.

torch's default generator, its switches for fused kernels (with them, results differ in the last bits), the number of
threads, accelerate's state, filters of warnings, and torch.nn.Module itself while ``torch.fx`` traces: what changes one
of them for a while, and puts it back, holds :data:`ALONE`, and so does what computes numbers that matter. Several
threads can thus work on models of their own, and get what they would get one after the other.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["ALONE", "alone"]

#: Held around every use of the above; the thread that holds it may take it again.
ALONE = threading.RLock()

_P = ParamSpec("_P")
_R = TypeVar("_R")


def alone(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Hold :data:`ALONE` while `function` runs."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ALONE:
            return function(*args, **kwargs)

    return run
