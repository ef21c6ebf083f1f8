"""Exchanges between pairs of bundles: never worse, never out of bounds, and the best there is for two bundles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from surgeon.planning.allocation import Allocator
from surgeon.planning.exchange import Bound, charged, with_partner
from surgeon.planning.meters import Floats, Meter, Stairs, State


class Grid:
    """A cost of every combination of widths, from a table."""

    def __init__(self, table: Floats) -> None:
        self.table = table

    def total(self, state: State) -> float:
        return float(self.table[tuple(state)])

    def along(self, bundle: int, state: State) -> Floats:
        where: tuple[Any, ...] = (*state[:bundle], slice(None), *state[bundle + 1 :])
        found: Floats = self.table[where]
        return found


class Given(Stairs):
    """Staircases of which only the losses are known."""

    def __init__(self, losses: Sequence[Floats]) -> None:
        self.lengths, self.losses = [len(one) for one in losses], list(losses)


def meters_of(**tables: Any) -> dict[str, Meter]:
    return {name: cast(Meter, Grid(np.asarray(table, dtype=float))) for name, table in tables.items()}


@st.composite
def problems(draw: st.DrawFn) -> tuple[Allocator, float]:
    """Two bundles of three or four widths: any losses that grow, any costs, and bounds that some widths hold."""
    lengths = [draw(st.integers(3, 4)) for _ in range(2)]
    rises = [draw(st.lists(st.floats(0.01, 1), min_size=n - 1, max_size=n - 1)) for n in lengths]
    losses = [np.append(0.0, np.cumsum(rise)) for rise in rises]
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    macs, time = random.random(lengths), random.random(lengths)
    meters = meters_of(macs=macs, time=time)
    return Allocator(Given(losses), meters, {"macs": float(np.quantile(macs, 0.6))}), float(np.quantile(time, 0.6))


@given(problems())
def test_of_two_bundles_it_finds_the_best(case: tuple[Allocator, float]) -> None:
    search, most = case
    states = [list(state) for state in itertools.product(*map(range, search.stairs.lengths))]
    allowed = [s for s in states if search.within(s) and search.meters["time"].total(s) <= most]
    best = min(map(search.loss, allowed), default=None)
    for start in allowed:
        found = search.exchanged(start, {"time": most})
        assert found in allowed
        assert search.loss(found) <= search.loss(start) + 1e-9
        assert search.loss(found) == best


def test_what_must_stay_in_use_does() -> None:
    losses = [np.array([0.0, 1.0, 3.5]), np.array([0.0, 2.0, 5.0])]
    macs = np.array([[1.0, 0.7, 0.4], [0.5, 0.48, 0.3], [0.45, 0.2, 0.1]])
    time = np.array([[1.0, 0.9, 0.8], [0.9, 0.5, 0.4], [0.3, 0.3, 0.1]])
    stairs, meters = Given(losses), meters_of(macs=macs, time=time)
    search = Allocator(stairs, meters, {"macs": 0.5})
    assert search.exchanged([1, 2], {"time": 0.6}) == [1, 1]
    assert search.exchanged([1, 1], {"time": 0.35}, 0.8) == [2, 0], "out of bounds as it stands"
    quick = Bound(0.0, 0.35)
    assert with_partner(stairs, meters, {"macs": Bound(0.0, 0.5), "time": quick}, 1, [2, 1]) == [2, 0]
    assert with_partner(stairs, meters, {"macs": Bound(0.46, 0.5), "time": quick}, 1, [2, 1]) == [2, 1]


def test_what_is_over_can_be_charged() -> None:
    stairs = Given([np.array([0.0, 1.0]), np.array([0.0, 2.0])])
    meters = meters_of(time=[[1.0, 0.8], [0.7, 0.4]])
    for price, best in ((0.5, [0, 0]), (4.0, [1, 0]), (10.0, [1, 1])):
        bounds = {"time": Bound(0.0, 0.4, price)}
        states = [list(state) for state in itertools.product(range(2), range(2))]
        assert min(states, key=lambda state: charged(stairs, meters, bounds, state)) == best
