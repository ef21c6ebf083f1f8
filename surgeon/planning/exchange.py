"""Exchanges: less of one bundle for more of another.

One price for all bundles finds widths on a hull. What lies between its corners, and what two bundles that feed each
other save only together, pairs of moves find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from surgeon.planning.meters import Floats, Meter, Stairs, State

#: The least and the most of each cost.
Bounds = Mapping[str, tuple[float, float]]
_NOTHING = 1e-12


def with_partner(stairs: Stairs, meters: Mapping[str, Meter], bounds: Bounds, bundle: int, state: State) -> State:
    """The state with the most score in which `bundle` and one other are elsewhere and all bounds hold."""
    best, gone = state, _loss(stairs, state)
    for position in _around(state[bundle], stairs.lengths[bundle]):
        tried = [*state[:bundle], position, *state[bundle + 1 :]]
        rest = _loss(stairs, tried)
        now = {name: meters[name].total(tried) for name in bounds}
        for partner, losses in enumerate(stairs.losses):
            found = rest + losses - losses[tried[partner]]
            if partner == bundle or not (found < gone).any():
                continue
            for name, (least, most) in bounds.items():
                cost = now[name] + _more(meters[name], partner, tried)
                found = np.where((least <= cost) & (cost <= most), found, math.inf)
            if found.min() < gone - _NOTHING:
                gone = float(found.min())
                best = [*tried[:partner], int(np.argmin(found)), *tried[partner + 1 :]]
    return best


def _loss(stairs: Stairs, state: State) -> float:
    return float(sum(losses[k] for losses, k in zip(stairs.losses, state, strict=True)))


def _more(meter: Meter, bundle: int, state: State) -> Floats | float:
    """What each state of a bundle costs more than the one that it is in."""
    along = meter.along(bundle, state)
    return along - along[state[bundle]] if isinstance(along, np.ndarray) else 0.0


def _around(here: int, length: int) -> list[int]:
    """Positions of a staircase, the near ones closer together."""
    steps = [1 << k for k in range(length.bit_length())]
    found = {0, length - 1, *(here + step for step in steps), *(here - step for step in steps)}
    return sorted(position for position in found if 0 <= position < length and position != here)
