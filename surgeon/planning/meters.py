"""What combinations of widths cost, fast enough to try thousands: sums of terms, each of a few widths."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from surgeon.channels.structure import Ints
from surgeon.cost import Cost, Latency
from surgeon.planning.moves import Staircase

Floats = NDArray[np.float64]
#: How many moves of each bundle's staircase are taken.
State = list[int]
#: A term: the places of each of its axes by channel number, and what it costs when so many of them stay.
Term = tuple[Sequence[Ints], Callable[[tuple[int, ...]], float]]


class Stairs:
    """The staircases as arrays: which places of an axis are left after so many moves.

    Attributes
    ----------
    lengths:
        Number of states of each bundle: none of its moves taken, one, two, ...
    losses:
        Of each bundle the score that is gone in each of its states.
    """

    def __init__(self, stairs: Sequence[Staircase], count: int) -> None:
        self.lengths = [len(stair) + 1 for stair in stairs]
        self.losses: list[Floats] = [np.append(0.0, np.cumsum(stair.scores * stair.channels)) for stair in stairs]
        self._bundle = np.full(count + 1, -1, dtype=np.int64)  # the last entry stands for places without a channel
        self._gone = np.zeros(count + 1, dtype=np.int64)
        for index, stair in enumerate(stairs):
            for ranked, gone in zip(stair.ranked, stair.gone.T, strict=True):
                going = ranked[: gone[-1]] if len(gone) else ranked[:0]
                self._bundle[going] = index
                self._gone[going] = np.searchsorted(gone, np.arange(len(going)), side="right") + 1

    def loss(self, state: State) -> float:
        """The score of all channels that are gone in this state."""
        return float(sum(losses[k] for losses, k in zip(self.losses, state, strict=True)))

    def left(self, places: Ints) -> tuple[int, dict[int, Ints]]:
        """Of an axis: how many places always stay, and by bundle how many of its own are left in each state."""
        bundles, fixed = self._bundle[places], 0
        found: dict[int, Ints] = {}
        for bundle in np.unique(bundles).tolist():
            if bundle < 0:
                fixed = int((bundles < 0).sum())
                continue
            gone = np.bincount(self._gone[places[bundles == bundle]], minlength=self.lengths[bundle])
            found[bundle] = gone.sum() - np.cumsum(gone)
        return fixed, found


@dataclass(eq=False)
class _Factor:
    """The terms that depend on the same bundles."""

    bundles: tuple[int, ...]
    lengths: Sequence[int]
    terms: list[tuple[list[tuple[int, dict[int, Ints]]], Callable[[tuple[int, ...]], float]]]
    known: dict[tuple[int, tuple[int, ...]], Floats] = field(default_factory=dict)

    def along(self, bundle: int, state: State) -> Floats:
        """The cost in every state of one bundle, the others being as they are."""
        key = (bundle, tuple(state[other] for other in self.bundles if other != bundle))
        if key not in self.known:
            self.known[key] = self._along(bundle, state)
        return self.known[key]

    def _along(self, bundle: int, state: State) -> Floats:
        total = np.zeros(self.lengths[bundle])
        for axes, cost in self.terms:
            columns = []
            for fixed, left in axes:
                others = fixed + sum(int(kept[state[other]]) for other, kept in left.items() if other != bundle)
                columns.append(others + left[bundle] if bundle in left else np.full(len(total), others))
            sizes = zip(*(column.tolist() for column in columns), strict=True)
            total += [cost(row) for row in sizes]
        return total


class Meter:
    """One cost of every combination of widths.

    Attributes
    ----------
    constant:
        What no width changes.
    """

    def __init__(self, stairs: Stairs, terms: Iterable[Term], constant: float = 0.0) -> None:
        self.constant = constant
        grouped: dict[tuple[int, ...], _Factor] = {}
        for axes, cost in terms:
            found = [stairs.left(places) for places in axes]
            bundles = tuple(sorted({bundle for _, left in found for bundle in left}))
            if not bundles:
                self.constant += cost(tuple(fixed for fixed, _ in found))
                continue
            grouped.setdefault(bundles, _Factor(bundles, stairs.lengths, [])).terms.append((found, cost))
        self._factors = list(grouped.values())
        self._touching: dict[int, list[_Factor]] = defaultdict(list)
        for factor in self._factors:
            for bundle in factor.bundles:
                self._touching[bundle].append(factor)

    def along(self, bundle: int, state: State) -> Floats | float:
        """What depends on the bundle, in each of its states."""
        return sum((factor.along(bundle, state) for factor in self._touching[bundle]), start=0.0)

    def total(self, state: State) -> float:
        """The cost in this state, with what no bundle changes."""
        return self.constant + sum(
            float(factor.along(factor.bundles[0], state)[state[factor.bundles[0]]]) for factor in self._factors
        )


def counted(stairs: Stairs, cost: Cost, name: str) -> Meter:
    """A meter of something that :class:`Cost` counts: each term an amount, times the kept share of each axis."""

    def price(amount: int, axes: Sequence[Ints]) -> Callable[[tuple[int, ...]], float]:
        whole = amount / math.prod(len(axis) for axis in axes)
        return lambda sizes: whole * math.prod(sizes)

    return Meter(stairs, [(axes, price(amount, axes)) for amount, axes in cost.terms(name)])


def timed(stairs: Stairs, latency: Latency) -> Meter:
    """A meter of predicted seconds."""
    calls = latency.work

    def price(call: int) -> Callable[[tuple[int, ...]], float]:
        own = calls.calls[call]
        parts = [calls.variables[index].parts for index in own.variables]

        def seconds(sizes: tuple[int, ...]) -> float:
            values = tuple(max(1, size // part) for size, part in zip(sizes, parts, strict=True))
            return latency.scale * latency.of(own, values)

        return seconds

    terms = [([calls.variables[v].numbers for v in call.variables], price(k)) for k, call in enumerate(calls.calls)]
    return Meter(stairs, terms, latency.overhead)
