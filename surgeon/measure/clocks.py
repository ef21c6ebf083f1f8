"""Stopwatches: seconds that a number of calls takes, on the CPU's clock or by a CUDA device's own events."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: A call to be timed.
Call = Callable[[], object]
#: Seconds that a number of calls takes altogether.
Stopwatch = Callable[[Call, int], float]

_MOST_CALLS = 1000


def stopwatch_for(device: torch.device, clock: Callable[[], float] = time.perf_counter, cuda: Any = None) -> Stopwatch:
    """The stopwatch of a device; `clock` gives seconds, for CPU, and `cuda` stands for :mod:`torch.cuda` in tests."""
    return event_stopwatch(device, cuda or torch.cuda) if device.type == "cuda" else clock_stopwatch(clock)


def clock_stopwatch(clock: Callable[[], float]) -> Stopwatch:
    """Reads a clock before and after."""

    def seconds(call: Call, count: int) -> float:
        start = clock()
        for _ in range(count):
            call()
        return clock() - start

    return seconds


def event_stopwatch(device: torch.device, cuda: Any) -> Stopwatch:
    """Reads the device's own events: what is queued on the host's side is not counted as done."""

    def seconds(call: Call, count: int) -> float:
        with cuda.device(device):
            start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            cuda.synchronize(device)
            start.record()
            for _ in range(count):
                call()
            end.record()
            cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000  # events count in milliseconds

    return seconds


@dataclass
class Timer:
    """Seconds per call, and what the system takes of this process's CPU time meanwhile.

    Attributes
    ----------
    call, stopwatch, count:
        What is timed, with what, and how often for one sample.
    used, taken:
        CPU seconds of all samples so far, and those among them that the operating system spent.
    """

    call: Call
    stopwatch: Stopwatch
    count: int
    used: float = 0.0
    taken: float = 0.0

    def __call__(self) -> float:
        """One sample."""
        before = os.times()
        seconds = self.stopwatch(self.call, self.count)
        after = os.times()
        taken = after.system - before.system
        self.taken, self.used = self.taken + taken, self.used + taken + after.user - before.user
        return seconds / self.count

    @property
    def system(self) -> float:
        """Share of the CPU time that the operating system spent; 0 where no clock tick was seen."""
        return self.taken / self.used if self.used else 0.0


def calibrate(call: Call, stopwatch: Stopwatch, warmup: int, sample_seconds: float) -> int:
    """Warm up, then choose how many calls make one sample: short ones are repeated, for the clock's sake."""
    for _ in range(warmup):
        call()
    once = stopwatch(call, 1)
    if once <= 0:
        return _MOST_CALLS
    return min(_MOST_CALLS, max(1, math.ceil(sample_seconds / once)))
