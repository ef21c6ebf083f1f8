"""Learning rates: pure functions of where the run is, so there is no scheduler whose state could be lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

__all__ = ["RATES", "rate"]

#: One cycle starts at 1/25 of the peak, ends at 1/250,000 of it, and rises over 30 % of the run, as in torch.
_CYCLE_START, _CYCLE_END, _CYCLE_RISE = 1 / 25, 1 / 250_000, 0.3


def _glide(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def _constant(position: float, epochs: int, warmup: float) -> float:  # noqa: ARG001  # all have one signature
    return 1.0


def _cosine(position: float, epochs: int, warmup: float) -> float:
    return _glide(1.0, 0.0, (position - warmup) / max(epochs - warmup, 1e-12))


def _one_cycle(position: float, epochs: int, warmup: float) -> float:
    peak = warmup or _CYCLE_RISE * epochs
    if position < peak:
        return _glide(_CYCLE_START, 1.0, position / peak)
    return _glide(1.0, _CYCLE_END, (position - peak) / max(epochs - peak, 1e-12))


#: Name -> share of the peak rate at a position in epochs.
RATES: Mapping[str, Callable[[float, int, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
}


def rate(schedule: str, position: float, epochs: int, warmup: float = 0.0) -> float:
    """Share of the peak learning rate at `position`, in epochs since the start (0 is the first step).

    ``"cosine"`` falls from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts); ``"one-cycle"``
    rises and falls (Smith & Topin 2017, arXiv 1708.07120); ``"constant"`` stays. The first `warmup` epochs rise
    linearly from 0; for one cycle they are the rising part (otherwise 30 % of the run).
    """
    if position < warmup and schedule != "one-cycle":
        return position / warmup
    return RATES[schedule](position, epochs, warmup)
