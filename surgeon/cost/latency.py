"""Predicted latency of a cut model: the sum of what its calls take, each read off the device's table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.cost.calls import Calls, TimedCall
from surgeon.cost.tables import Place, Table, open_table
from surgeon.processes import from_first
from surgeon.tracing import running

#: Shares of a variable's dense size at which contractions are measured, and all other calls.
GRID = (0.25, 0.5, 0.75, 1.0)
_ALONE = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_MOST_VARIABLES = 3
#: How much longer than a larger call one may take before it is measured again, and how often at most.
_ODD, _REPEATS = 1.15, 3


class Latency:
    """Predicts seconds of one forward of cut models, without building them.

    Parameters
    ----------
    graph:
        The channel graph; shapes, device, number type and layout are those of the example inputs.
    table:
        The device's table; default: the one of the place where the example inputs are.
    dense_seconds:
        What the dense model really takes; default: it is timed. Of what its calls alone don't account for, the way
        through Python (one module call for each) is taken to stay, and the rest to grow and shrink with them.

    Attributes
    ----------
    step:
        Widths at which tables are asked: multiples of it.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        table: Table | None = None,
        *,
        step: int = 16,
        dense_seconds: float | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.graph, self.step = graph, step
        self.table = table or open_table(Place.of(graph.trace.inputs))
        self.work = Calls(graph)
        self._device = torch.device(self.table.place.device)
        self._known: dict[tuple[TimedCall, tuple[int, ...]], float] = {}
        self._measure(progress)
        self.dense = self.seconds_at([self.work.dense(call) for call in self.work.calls], settled=False)
        real = dense_seconds if dense_seconds is not None else self._time_dense()
        self.overhead = min(0.5 * real, len(self.work.calls) * self._module_call())
        self.scale = (real - self.overhead) / self.dense if self.dense else 1.0

    def seconds(self, kept: Flags) -> float:
        """Predicted seconds of the model that keeps these channels."""
        flags = np.append(kept, True)
        sizes = [max(1, int(flags[v.numbers].sum()) // v.parts) for v in self.work.variables]
        return self.seconds_at([tuple(sizes[i] for i in call.variables) for call in self.work.calls])

    def seconds_at(self, sizes: Sequence[tuple[int, ...]], *, settled: bool = True) -> float:
        """Seconds when every call has these sizes; `settled`: as the whole model would take, not the calls alone."""
        total = sum(self.of(call, values) for call, values in zip(self.work.calls, sizes, strict=True))
        return self.overhead + self.scale * total if settled else total

    def exactly(self, kept: Flags) -> float:
        """:meth:`seconds` with every call of that very model measured, none interpolated."""
        flags = np.append(kept, True)
        sizes = [max(1, int(flags[v.numbers].sum()) // v.parts) for v in self.work.variables]
        for call in self.work.calls:
            values = tuple(sizes[i] for i in call.variables)
            self._known[call, values] = self._measured(call, values)
        self.table.save()
        return self.seconds(kept)

    def of(self, call: TimedCall, values: tuple[int, ...]) -> float:
        """Seconds of one call: as measured where it was, else between the nearest that were."""
        key = (call, values)
        if key not in self._known:
            measured = self.table.entries.get(call.key(values))
            known = measured is not None and math.isfinite(measured)
            self._known[key] = measured if measured is not None and known else self._between(call, values)
        return self._known[key]

    def _measure(self, progress: Callable[[str, int, int], None] | None) -> None:
        """Ask the table for every call on its grid; what isn't known is measured."""
        wanted = [(call, values) for call in self.work.calls for values in self._points(call)]
        missing = {call.key(values): (call, values) for call, values in wanted}
        missing = {key: which for key, which in missing.items() if key not in self.table.entries}
        for number, (call, values) in enumerate(missing.values(), 1):
            self._measured(call, values)
            if progress is not None:
                progress("latency table", number, len(missing))
        if missing:
            self._measure_odd_ones_again()
        self.table.save()

    def _measure_odd_ones_again(self) -> None:
        """What took longer than the same call at larger sizes was most likely disturbed by other work."""
        for _ in range(_REPEATS):
            odd = {call.key(values): (call, values) for call in self.work.calls for values in self._odd(call)}
            if not odd:
                break
            for key, (call, values) in odd.items():
                self.table.again(key, self._build(call, values))

    def _odd(self, call: TimedCall) -> list[tuple[int, ...]]:
        """Sizes at which the call took longer than where none of them is smaller."""
        points = self._points(call)
        times = [self.table.entries[call.key(values)] for values in points]
        return [
            values
            for values, taken in zip(points, times, strict=True)
            if math.isfinite(taken)
            and taken > _ODD * min(t for t, other in zip(times, points, strict=True) if _covers(other, values))
        ]

    def _measured(self, call: TimedCall, values: tuple[int, ...]) -> float:
        """From the table; a call that can't be made at these sizes alone costs its share of the dense one's bytes."""
        seconds = self.table.seconds(call.key(values), self._build(call, values))
        dense = self.work.dense(call)
        if math.isfinite(seconds):
            return seconds
        if values == dense:
            return 0.0
        return self._measured(call, dense) * call.elements(values) / max(1, call.elements(dense))

    def _build(self, call: TimedCall, values: tuple[int, ...]) -> Callable[[], Callable[[], Any]]:
        return lambda: call.build(values, self._device, self.table.place.format)

    def _points(self, call: TimedCall) -> list[tuple[int, ...]]:
        """Where the call is measured."""
        dense = self.work.dense(call)
        if _on_grid(call):
            return list(itertools.product(*(self._levels(size, len(dense)) for size in dense)))
        return list(dict.fromkeys(tuple(max(1, round(size * share)) for size in dense) for share in GRID))

    def _levels(self, size: int, count: int) -> tuple[int, ...]:
        """Multiples of the step up to a variable's dense size."""
        shares = _ALONE if count == 1 else GRID
        return tuple(sorted({min(size, max(1, math.ceil(size * s / self.step)) * self.step) for s in shares}))

    def _between(self, call: TimedCall, values: tuple[int, ...]) -> float:
        dense = self.work.dense(call)
        if not dense:
            return self._measured(call, ())
        if _on_grid(call):
            return self._on_grid(call, values, [self._levels(size, len(dense)) for size in dense])
        points = self._points(call)
        xs = [call.elements(point) for point in points]
        ys = [self._measured(call, point) for point in points]
        return _line(xs, ys, call.elements(values))

    def _on_grid(self, call: TimedCall, values: tuple[int, ...], levels: Sequence[tuple[int, ...]]) -> float:
        """Between the corners of the cell, linear in each variable; below the lowest corner along the same line."""
        cells = [_cell(own, value) for own, value in zip(levels, values, strict=True)]
        total = 0.0
        for corner in itertools.product(*cells):
            weight = math.prod(share for _, share in corner)
            if weight:
                total += weight * self._measured(call, tuple(width for width, _ in corner))
        return max(total, 0.0)

    def _module_call(self) -> float:
        """Seconds of a module that does nothing."""
        module, value = nn.Identity().eval(), torch.zeros(1)
        return self.table.seconds("a module that does nothing", lambda: lambda: module(value))

    def _time_dense(self) -> float:
        """Seconds of the dense model's forward, timed as the table's entries are."""
        model, inputs = self.graph.trace.model, self.graph.trace.inputs
        with running(model, inputs) as call:
            return from_first(lambda: self.table.timer(call))


def _covers(sizes: tuple[int, ...], others: tuple[int, ...]) -> bool:
    return all(size >= other for size, other in zip(sizes, others, strict=True))


def _on_grid(call: TimedCall) -> bool:
    return call.contracts and 0 < len(call.variables) <= _MOST_VARIABLES


def _cell(levels: Sequence[int], value: int) -> list[tuple[int, float]]:
    """The two levels around a value, and how much each counts."""
    if len(levels) == 1:
        return [(levels[0], value / levels[0])]
    upper = next((k for k, level in enumerate(levels) if k and level >= value), len(levels) - 1)
    low, high = levels[upper - 1], levels[upper]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _line(xs: Sequence[int], ys: Sequence[float], x: int) -> float:
    order = np.argsort(xs)
    levels, times = np.asarray(xs, dtype=float)[order], np.asarray(ys)[order]
    if x < levels[0]:
        return float(times[0] * x / levels[0])
    return float(np.interp(x, levels, times))
