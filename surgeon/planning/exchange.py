"""Exchanges: less of one bundle for more of another.

One price for all bundles finds widths on a hull. What lies between its corners, and what two bundles that feed each
other save only together, pairs of moves find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from surgeon.planning.meters import Floats, Meter, Stairs, State

_NOTHING = 1e-12


@dataclass(frozen=True)
class Bound:
    """The least and the most of a cost; with a `price`, more than the most may be, at so much score for each unit."""

    least: float
    most: float
    price: float = math.inf

    def toll(self, cost: Floats | float) -> Floats:
        """What costs are charged in score; infinite where they can't be."""
        over = np.maximum(np.asarray(cost) - self.most, 0.0)
        charged = np.where(over > 0, math.inf if math.isinf(self.price) else over * self.price, 0.0)
        found: Floats = np.where(np.asarray(cost) < self.least, math.inf, charged)
        return found


def charged(stairs: Stairs, meters: Mapping[str, Meter], bounds: Mapping[str, Bound], state: State) -> float:
    """Score that is gone, and what the costs are charged."""
    return stairs.loss(state) + sum(float(bound.toll(meters[name].total(state))) for name, bound in bounds.items())


def with_partner(
    stairs: Stairs, meters: Mapping[str, Meter], bounds: Mapping[str, Bound], bundle: int, state: State
) -> State:
    """The state with the most score, less what costs are charged, in which `bundle` and one other are elsewhere."""
    best, least = state, charged(stairs, meters, bounds, state)
    for position in _around(state[bundle], stairs.lengths[bundle]):
        tried = [*state[:bundle], position, *state[bundle + 1 :]]
        rest = stairs.loss(tried)
        now = {name: meters[name].total(tried) for name in bounds}
        for partner, losses in enumerate(stairs.losses):
            found = rest + losses - losses[tried[partner]]
            if partner == bundle or not (found < least).any():
                continue
            for name, bound in bounds.items():
                found = found + bound.toll(now[name] + _more(meters[name], partner, tried))
            if found.min() < least - _NOTHING:
                least = float(found.min())
                best = [*tried[:partner], int(np.argmin(found)), *tried[partner + 1 :]]
    return best


def _more(meter: Meter, bundle: int, state: State) -> Floats | float:
    """What each state of a bundle costs more than the one that it is in."""
    along = meter.along(bundle, state)
    return along - along[state[bundle]] if isinstance(along, np.ndarray) else 0.0


def _around(here: int, length: int) -> list[int]:
    """Positions of a staircase, the near ones closer together."""
    steps = [1 << k for k in range(length.bit_length())]
    found = {0, length - 1, *(here + step for step in steps), *(here - step for step in steps)}
    return sorted(position for position in found if 0 <= position < length and position != here)
