"""Honest timing: cases interleaved round by round, wall and CPU time, medians with spread, never the first call."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from common import say


@dataclass(frozen=True)
class Case:
    """One thing to time: ``run`` gets what ``setup`` returned; only ``run`` is on the clock."""

    name: str
    run: Callable[[Any], object]
    setup: Callable[[], Any] = lambda: None


@dataclass
class Samples:
    """Seconds of every round, on the wall and of CPU time over all threads (``time.process_time``)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Medians, quartiles and the samples themselves, in seconds."""
        return {"wall_s": spread(self.wall), "cpu_s": spread(self.cpu)}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles (inclusive method) of ``values``, and the values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": middle, "q1": low, "q3": high, "n": len(values), "values": [round(v, 6) for v in values]}


def interleaved(cases: Sequence[Case], rounds: int, device: torch.device, warmup: int = 1) -> dict[str, Samples]:
    """Time the cases round by round, each round in a rotated order, after ``warmup`` rounds that don't count.

    Interleaving spreads the machine's slow drifts over all cases; the ratio of two cases is then taken within rounds.
    """
    samples = {case.name: Samples() for case in cases}
    for number in range(-warmup, rounds):
        for case in rotated(cases, number):
            wall, cpu = timed(case, device)
            if number >= 0:
                samples[case.name].wall.append(wall)
                samples[case.name].cpu.append(cpu)
        say(f"round {number + 1} of {rounds} done" if number >= 0 else "warm-up done")
    return samples


def rotated(cases: Sequence[Case], start: int) -> Iterator[Case]:
    """The cases, beginning at another one each round."""
    return (cases[(start + k) % len(cases)] for k in range(len(cases)))


def timed(case: Case, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of one run, the device's queue emptied before and after, rubbish collected before."""
    given = case.setup()
    gc.collect()
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    kept = case.run(given)
    synchronise(device)
    result = time.perf_counter() - wall, time.process_time() - cpu
    del kept  # freed off the clock
    return result


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratio within each round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
