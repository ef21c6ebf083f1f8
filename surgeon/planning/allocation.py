"""How far each bundle is cut, so that the most score is kept within what the widths may cost.

What is gone of the score plus a price for every cost is made least: coordinate descent over the bundles (what a layer
costs depends on the widths on both its sides), the price raised until the limits hold, then repaired: whatever fits
again is taken back, what costs nothing first; and pairs of bundles exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from surgeon.planning.exchange import Bound, charged, with_partner
from surgeon.planning.meters import Meter, Stairs, State

_SWEEPS = 12
_HALVINGS = 24
_REWEIGHTS = 6
_EXCHANGES = 6
#: Shares of a counted limit that a plan for time leaves in use: the larger, if it finds widths for it.
_SPENT = (0.97, 0.9)
#: What time above its goal is charged while a state is hastened, in units of what all score buys on average.
_HURRY = 4.0
#: Share of what is gone that a round of exchanges must bring back for another one.
_WORTH_IT = 1e-3
#: Prices of the counted budgets in units of that of time, from "time is free" to "what was counted may be spent".
PRICES = (math.inf, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.0, -0.15, -0.3, -0.45, -0.6)


@dataclass(frozen=True)
class Allocator:
    """Searches combinations of widths.

    Attributes
    ----------
    stairs:
        The staircases.
    meters:
        Costs, by name.
    limits:
        What may not be exceeded, by name of a meter.
    """

    stairs: Stairs
    meters: Mapping[str, Meter]
    limits: Mapping[str, float]

    def dense(self) -> State:
        """No move taken."""
        return [0] * len(self.stairs.lengths)

    def smallest(self) -> State:
        """All moves taken."""
        return [length - 1 for length in self.stairs.lengths]

    def loss(self, state: State) -> float:
        """The score of all channels that are gone in this state."""
        return self.stairs.loss(state)

    def within(self, state: State) -> bool:
        """Whether every limit holds."""
        return self.excess(state) <= 1

    def excess(self, state: State) -> float:
        """The cost that is nearest to its limit or most above it, as a share of it."""
        return max(self.meters[name].total(state) / limit for name, limit in self.limits.items())

    def best(self) -> State:
        """The most score within the limits. If none can be met, the nearest to them that was found."""
        prices = {name: 1.0 / limit for name, limit in self.limits.items()}
        best: State | None = None
        for _ in range(_REWEIGHTS if len(prices) > 1 else 1):
            state = self.exchanged(self.repaired(self.priced(prices)))
            if best is None or (self.within(state), -self.loss(state)) > (self.within(best), -self.loss(best)):
                best = state
            use = {name: self.meters[name].total(state) / limit for name, limit in self.limits.items()}
            # a limit that is met by far needs no price of its own
            prices = {name: price * max(use[name], 0.05) ** 3 for name, price in prices.items()}
        assert best is not None
        return best

    def fastest(self, time: str, goal: float) -> State:
        """Within the limits, a state in which the meter `time` shows at most `goal` and the most score is kept.

        Budgets that only count say nothing of the time, which has other places to fall: each state of the frontier
        gives another answer to what time is worth. What may be counted is spent: time is not to be had by ever smaller
        models. Where the goal is out of reach so, the nearest to it is taken.
        """
        states = [state for state in self._frontier(time, goal) if self.within(state)]
        if not states:
            return self.best()
        chosen, share = self._hastened(states, time, goal)
        most = max(goal, self.meters[time].total(chosen))
        return self.exchanged(chosen, {time: most}, min(share, self.excess(chosen)))

    def _hastened(self, states: Sequence[State], time: str, goal: float) -> tuple[State, float]:
        """The state with the most score that is fast enough, and how much of the limits it leaves in use.

        As much as can be: where no state is fast enough as it is, the one that is nearest to it is exchanged. Where
        that doesn't get there either, the nearest is taken.
        """
        price = _HURRY * self.loss(self.smallest()) / self.meters[time].total(self.dense())
        hurry = {time: Bound(0.0, goal, price)}
        late = partial(charged, self.stairs, self.meters, hurry)
        near = list(states)
        for share in _SPENT:
            spent = [state for state in states if self.excess(state) >= share]
            if spent and not any(self.meters[time].total(state) <= goal for state in spent):
                nearest = min(spent, key=late)
                spent.append(self._exchanged(nearest, {**self._bounds(nearest, share), **hurry}))
            fast = [state for state in spent if self.meters[time].total(state) <= goal]
            if fast:
                return min(fast, key=self.loss), share
            near = spent or near
        return min(near, key=late), share

    def _frontier(self, time: str, goal: float) -> Iterator[State]:
        """States within the limits, from the most score to the least time."""
        whole = self.meters[time].total(self.dense())
        for price in PRICES:
            counted = 1.0 if math.isinf(price) else price
            prices = {name: counted / self.meters[name].total(self.dense()) for name in self.limits}
            if not math.isinf(price):
                prices[time] = 1.0 / whole
            state = self.priced(prices)
            most = math.inf if math.isinf(price) else max(self.meters[time].total(state) * 1.002, goal)
            yield self.repaired(state, {time: most})

    def priced(self, prices: Mapping[str, float]) -> State:
        """The state at the lowest common factor on `prices` at which the limits hold."""
        unit = max(self.loss(self.smallest()), 1e-12)
        low, high = 1e-4 * unit, 1e-4 * unit
        state = over = self.dense()
        while high < 1e8 * unit:
            state = self.descend(over, prices, high)
            if self.within(state):
                break
            low, over, high = high, state, high * 4
        for _ in range(_HALVINGS if self.within(state) else 0):
            middle = math.sqrt(low * high)
            tried = self.descend(over, prices, middle)
            if self.within(tried):
                high, state = middle, tried
            else:
                low, over = middle, tried
        return state

    def descend(self, start: State, prices: Mapping[str, float], factor: float) -> State:
        """From `start`, each bundle to its best state, one after the other, until none moves."""
        state = list(start)
        for _ in range(_SWEEPS):
            before = list(state)
            for bundle, losses in enumerate(self.stairs.losses):
                cost = sum(price * self.meters[name].along(bundle, state) for name, price in prices.items() if price)
                state[bundle] = int(np.argmin(losses + factor * cost))
            if state == before:
                break
        return state

    def exchanged(self, state: State, most: Mapping[str, float] | None = None, least: float = 0.0) -> State:
        """Less of one bundle for more of another, as long as score is gained and all limits, and `most`, hold.

        `least` of the limit that is nearest stays in use.
        """
        bounds = self._bounds(state, least) | {name: Bound(0.0, bound) for name, bound in (most or {}).items()}
        for _ in range(_EXCHANGES if self.within(state) else 0):
            before = self.loss(state)
            state = self.repaired(self._exchanged(state, bounds, 1), most)
            if self.loss(state) > before * (1 - _WORTH_IT):
                break
        return state

    def _exchanged(self, state: State, bounds: Mapping[str, Bound], rounds: int = _EXCHANGES) -> State:
        """Exchanges alone."""
        for _ in range(rounds):
            before = state
            for bundle in range(len(state)):
                state = with_partner(self.stairs, self.meters, bounds, bundle, state)
            if state == before:
                break
        return state

    def _bounds(self, state: State, least: float) -> dict[str, Bound]:
        """The limits; of the one that is nearest, at least so much stays in use."""
        bounds = {name: Bound(0.0, limit) for name, limit in self.limits.items()}
        nearest = max(self.limits, key=lambda name: self.meters[name].total(state) / self.limits[name])
        bounds[nearest] = Bound(least * self.limits[nearest], self.limits[nearest])
        return bounds

    def repaired(self, state: State, most: Mapping[str, float] | None = None) -> State:
        """Moves taken back as long as all limits, and `most` of other meters, hold; cheap ones first."""
        bounds = {**self.limits, **(most or {})}
        state = list(state)
        if not self.within(state):
            return state
        while True:
            choices = [c for bundle in range(len(state)) for c in self._takings(bundle, state, bounds)]
            if not choices:
                return state
            _, bundle, position = max(choices)
            state[bundle] = position

    def _takings(self, bundle: int, state: State, bounds: Mapping[str, float]) -> Iterator[tuple[float, int, int]]:
        """What a bundle could take back: score for its share of the room that is left, the bundle, its new state."""
        here = state[bundle]
        gains = self.stairs.losses[bundle][here] - self.stairs.losses[bundle][:here]
        if not here or not (gains > 0).any():
            return
        price, fits = np.zeros(here), gains > 0
        for name, bound in bounds.items():
            if math.isinf(bound):
                continue
            along = np.broadcast_to(self.meters[name].along(bundle, state), self.stairs.lengths[bundle])
            more = along[:here] - along[here]
            room = bound - self.meters[name].total(state)
            fits &= (more <= room) | (more <= 0)
            price += np.maximum(more, 0) / bound
        for position in np.flatnonzero(fits).tolist():
            yield float(gains[position] / (price[position] + 1e-9)), bundle, position
