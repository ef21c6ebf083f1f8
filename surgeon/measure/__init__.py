"""Measure: honest latency of several models, side by side.

Rounds are interleaved (each round times every model once, in an order that rotates), so that a machine that
slows down slows all of them. A speed-up is the ratio of medians over the same rounds, with a bootstrap interval;
a measurement whose spread is above :data:`NOISY` says so.
"""

from surgeon.measure.backends import BACKENDS, Backend, exported
from surgeon.measure.clocks import Stopwatch, calibrate, stopwatch_for
from surgeon.measure.conditions import DTYPES, LAYOUTS, Conditions, batched
from surgeon.measure.footprint import Footprint, file_bytes, footprint
from surgeon.measure.results import NOISY, TAKEN, Comparison, Latency, SpeedUp, compare
from surgeon.measure.timing import interleave, latency, rounds_for, versions

__all__ = [
    "BACKENDS", "DTYPES", "LAYOUTS", "NOISY", "TAKEN", "Backend", "Comparison", "Conditions", "Footprint", "Latency",
    "SpeedUp", "Stopwatch", "batched", "calibrate", "compare", "exported", "file_bytes", "footprint", "interleave",
    "latency", "rounds_for", "stopwatch_for", "versions",
]  # fmt: skip
