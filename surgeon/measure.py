"""Measure: honest latency of several models, side by side.

Rounds are interleaved (each round times every model once, in an order that rotates), so that a machine that
slows down slows all of them. A speed-up is the ratio of medians over the same rounds, with a bootstrap interval;
a measurement whose spread is above :data:`NOISY` says so.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.errors import InputError
from surgeon.tracing import Inputs

__all__ = ["NOISY", "Comparison", "Latency", "SpeedUp", "compare", "interleave", "latency"]

#: Interquartile range over median from which on a latency is called noisy.
NOISY = 0.10

_RESAMPLES = 2000
_CONFIDENCE = 0.95
_SAMPLE_SECONDS = 0.02
_MOST_CALLS = 1000


@dataclass(frozen=True)
class Latency:
    """Time of one forward, over several rounds.

    Attributes
    ----------
    name:
        The model's name.
    median, low, high:
        Median and quartiles, in seconds.
    iqr:
        ``high - low``, in seconds.
    spread:
        ``iqr / median``.
    noisy:
        Whether the spread is above :data:`NOISY`.
    rounds, calls:
        Number of rounds, and of forwards in each of them.
    """

    name: str
    median: float
    low: float
    high: float
    iqr: float
    spread: float
    noisy: bool
    rounds: int
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; times in seconds."""
        return asdict(self)


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster `name` is than `base`: median of `base` over median of `name`, same rounds.

    `low` and `high` bound the 95 % bootstrap interval.
    """

    name: str
    base: str
    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Latencies of several models that were measured together.

    Attributes
    ----------
    latencies:
        One for each model, in the order given.
    samples:
        Seconds per forward of each round, for each model.
    device, threads:
        Where it ran; `threads` is the number of intra-op CPU threads.
    """

    latencies: tuple[Latency, ...]
    samples: Mapping[str, tuple[float, ...]]
    device: str
    threads: int

    def speed_up(self, name: str, base: str, *, seed: int = 0) -> SpeedUp:
        """How many times faster `name` is than `base`.

        Raises
        ------
        KeyError
            If one of them was not measured.
        """
        return compare(name, self.samples[name], base, self.samples[base], seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; times in seconds."""
        return {
            "device": self.device,
            "threads": self.threads,
            "latencies": [latency.to_dict() for latency in self.latencies],
            "samples": {name: list(values) for name, values in self.samples.items()},
        }


def latency(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    rounds: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Time one forward of each model on the same inputs, in eval and inference mode.

    Modes and the number of threads are as before afterwards. On CUDA the device's own events are read.

    Parameters
    ----------
    models:
        Name and model; all on the device of `example_inputs`.
    example_inputs:
        A tensor, a tuple of arguments, or :class:`surgeon.Inputs`.
    rounds:
        Timed rounds; each times every model once.
    warmup:
        Untimed forwards of each model before.
    threads:
        Number of intra-op CPU threads; None leaves it.
    clock:
        Seconds; for CPU.
    progress:
        Called with ("measure", rounds done, rounds).

    Raises
    ------
    InputError
        If there is no model, no round, or no tensor.
    """
    if not models or rounds < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise InputError(
            f"latency needs models, rounds >= 1, warmup >= 0 and threads >= 1; got {len(models)} models, "
            f"rounds={rounds}, warmup={warmup}, threads={threads}"
        )
    inputs = Inputs.of(example_inputs)
    device = next(leaf.device for leaf in inputs.leaves() if isinstance(leaf, torch.Tensor))
    with _quiet(models, threads), torch.inference_mode():
        calls = {name: _call(model, inputs) for name, model in models.items()}
        stopwatch = _cuda_stopwatch if device.type == "cuda" else _stopwatch(clock)
        counts = {name: _calibrate(call, stopwatch, warmup) for name, call in calls.items()}
        timers = {name: _timer(call, stopwatch, counts[name]) for name, call in calls.items()}
        samples = interleave(timers, rounds, progress)
        used = torch.get_num_threads()
    latencies = tuple(_summarise(name, values, counts[name]) for name, values in samples.items())
    return Comparison(latencies, samples, str(device), used)


def interleave(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Ask every timer once a round; the order rotates by one each round, so no model is always first."""
    names = list(timers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(timers[name]())
        if progress is not None:
            progress("measure", number + 1, rounds)
    return {name: tuple(values) for name, values in samples.items()}


def compare(
    name: str, samples: tuple[float, ...], base: str, base_samples: tuple[float, ...], *, seed: int = 0
) -> SpeedUp:
    """Ratio of paired medians: the same rounds are drawn for both in each bootstrap resample.

    Raises
    ------
    InputError
        If the two were not measured over the same number of rounds.
    """
    if len(samples) != len(base_samples) or not samples:
        raise InputError(f"{name} has {len(samples)} rounds and {base} {len(base_samples)}; measure them together")
    ours, theirs = np.asarray(samples), np.asarray(base_samples)
    drawn = np.random.default_rng(seed).integers(len(ours), size=(_RESAMPLES, len(ours)))
    ratios = np.median(theirs[drawn], axis=1) / np.median(ours[drawn], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return SpeedUp(name, base, float(np.median(theirs) / np.median(ours)), float(low), float(high))


def _summarise(name: str, samples: tuple[float, ...], calls: int) -> Latency:
    low, median, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
    spread = (high - low) / median if median else math.inf
    return Latency(name, median, low, high, high - low, spread, spread > NOISY, len(samples), calls)


@contextlib.contextmanager
def _quiet(models: Mapping[str, nn.Module], threads: int | None) -> Iterator[None]:
    """Eval mode and a fixed number of threads; both as before afterwards, module by module."""
    before = torch.get_num_threads()
    modes = [(module, module.training) for model in models.values() for module in model.modules()]
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for model in models.values():
            model.eval()
        yield
    finally:
        torch.set_num_threads(before)
        for module, training in modes:
            module.training = training


def _call(model: nn.Module, inputs: Inputs) -> Callable[[], None]:
    def call() -> None:
        model(*inputs.args, **inputs.kwargs)

    return call


#: Seconds that a number of calls takes altogether.
Stopwatch = Callable[[Callable[[], None], int], float]


def _stopwatch(clock: Callable[[], float]) -> Stopwatch:
    def seconds(call: Callable[[], None], count: int) -> float:
        start = clock()
        for _ in range(count):
            call()
        return clock() - start

    return seconds


def _cuda_stopwatch(call: Callable[[], None], count: int) -> float:
    event: Any = torch.cuda.Event  # untyped in torch
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000  # events count in milliseconds


def _calibrate(call: Callable[[], None], stopwatch: Stopwatch, warmup: int) -> int:
    """Warm up, then choose how many forwards make one sample: short ones are repeated, for the clock's sake."""
    for _ in range(warmup):
        call()
    once = stopwatch(call, 1)
    if once <= 0:
        return _MOST_CALLS
    return min(_MOST_CALLS, max(1, math.ceil(_SAMPLE_SECONDS / once)))


def _timer(call: Callable[[], None], stopwatch: Stopwatch, count: int) -> Callable[[], float]:
    return lambda: stopwatch(call, count) / count
