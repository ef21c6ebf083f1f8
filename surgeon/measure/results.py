"""What a measurement found, as data: latencies with their spread, speed-ups with their interval, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from surgeon.errors import InputError

#: Share of the CPU time from which on it is said that the operating system spends it.
TAKEN = 0.10
#: Interquartile range over median from which on a latency is called noisy.
NOISY = 0.10

_RESAMPLES = 2000
_CONFIDENCE = 0.95


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
    system:
        Share of the CPU time that the operating system spent: on most machines, handing memory out for large tensors.
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
    system: float = 0.0

    @classmethod
    def of(cls, name: str, samples: tuple[float, ...], calls: int, system: float = 0.0) -> Latency:
        """Summarise samples, in seconds per forward."""
        low, median, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
        spread = (high - low) / median if median else math.inf
        return cls(name, median, low, high, high - low, spread, spread > NOISY, len(samples), calls, system)

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
        """All of it, as values that JSON can hold."""
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
    conditions:
        How: ``backend``, ``dtype``, ``layout``, ``batch_size``, ``fold_bn``, ``versions``; the same for all models.
    differences:
        Largest difference between each model as it was timed and as it was given, relative to the largest number of
        each output (:func:`surgeon.agreement.distance`: NaN where all are zero or not finite); only models that a back
        end or folding made anew.
    """

    latencies: tuple[Latency, ...]
    samples: Mapping[str, tuple[float, ...]]
    device: str
    threads: int
    conditions: Mapping[str, Any] = field(default_factory=dict)
    differences: Mapping[str, float] = field(default_factory=dict)

    @property
    def noisy(self) -> bool:
        """Whether the spread of any model's time is above 10 %."""
        return any(latency.noisy for latency in self.latencies)

    def speed_up(self, name: str, base: str, *, seed: int = 0) -> SpeedUp:
        """How many times faster `name` is than `base`.

        Raises
        ------
        KeyError
            If one of them was not measured.
        """
        return compare(name, self.samples[name], base, self.samples[base], seed=seed)

    def pooled(self, other: Comparison) -> Comparison:
        """Two measurements of the same models as one."""
        samples = {name: values + other.samples[name] for name, values in self.samples.items()}
        parts = {own.name: [own, *(one for one in other.latencies if one.name == own.name)] for own in self.latencies}
        latencies = tuple(
            Latency.of(own.name, samples[own.name], own.calls, _share(parts[own.name])) for own in self.latencies
        )
        return replace(self, samples=samples, latencies=latencies)

    def to_dict(self, base: str | None = None) -> dict[str, Any]:
        """JSON-able; times in seconds. With a `base`, the rows of the others say how many times faster they are."""
        rows = [latency.to_dict() for latency in self.latencies]
        if base is not None:
            for row in rows:
                if row["name"] != base:
                    row |= {"base": base, "speed_up": self.speed_up(row["name"], base).to_dict()}
        return {
            "device": self.device,
            "threads": self.threads,
            "conditions": dict(self.conditions),
            "latencies": rows,
            "samples": {name: list(values) for name, values in self.samples.items()},
            "differences": dict(self.differences),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Comparison:
        """Read :meth:`to_dict` back."""
        latencies = tuple(Latency(**latency) for latency in found["latencies"])
        samples = {name: tuple(values) for name, values in found["samples"].items()}
        return cls(latencies, samples, found["device"], found["threads"], found["conditions"], found["differences"])


def _share(parts: Sequence[Latency]) -> float:
    """The system's share over several measurements of one model."""
    rounds = sum(part.rounds for part in parts)
    return sum(part.system * part.rounds for part in parts) / rounds if rounds else 0.0


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
