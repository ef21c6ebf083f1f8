"""Keeping a budget of time: the cut model itself is timed, and the plan corrected by what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from statistics import fmean, median, stdev
from typing import Any, Generic, TypeVar

from surgeon.errors import BudgetError, NothingToCutError
from surgeon.measure import Comparison
from surgeon.planning import TIME, seconds_of

#: How far the measured time may be above the limit, and how far below it without another try: half of the room is
#: left to the next measurement.
TOLERANCE, _NEAR = 0.05, 0.03
_TRIES = 7
_FAST_TRIES = 4
#: How often a model that lands is measured before it counts: on a quiet machine, on a busy one, and at most, as long
#: as the measurements are further apart than this (standard error of their mean, as a share of the limit).
_QUIET, _BUSY, _MOST, _SURE = 2, 5, 9, 0.01
#: The same error of one measurement, which cannot say.
_DOUBT = 0.04
#: The least and the most that a try may change the share that is planned for.
_STRIDE = (0.6, 1.5)
#: How far from either end of the range between a model that is too slow and one that is not the next try stays.
_INSIDE = 0.2
#: Where the next try is aimed, of the limit.
_AIM = 1 - _NEAR / 2

Made = TypeVar("Made")


@dataclass(frozen=True)
class Timing:
    """Time before and after, in seconds of one forward on the example inputs.

    Attributes
    ----------
    asked:
        The limit as it was given; None where none was.
    limit:
        The same in seconds.
    predicted:
        ``dense`` and ``small``, from the latency table.
    measured:
        Medians, quartiles and samples of both, interleaved (:meth:`surgeon.measure.Comparison.to_dict`).
    speed_up:
        Ratio of the paired medians with its 95 % interval.
    noisy:
        Whether the spread of either is above 10 %.
    tries:
        How many plans were made and timed.
    """

    asked: float | str | None
    limit: float | None
    predicted: Mapping[str, float]
    measured: Mapping[str, Any]
    speed_up: Mapping[str, Any]
    noisy: bool
    tries: int

    @classmethod
    def of(cls, asked: float | str | None, predicted: Mapping[str, float], found: Comparison, tries: int = 1) -> Timing:
        """Of the limit that was asked for, predicted seconds by name, and both models measured together."""
        dense, _ = found.latencies
        limit = None if asked is None else seconds_of(TIME, asked, dense.median)
        speed_up = found.speed_up("small", "dense").to_dict()
        return cls(asked, limit, dict(predicted), found.to_dict(), speed_up, found.noisy, tries)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as values that JSON can hold; times are seconds."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate(Generic[Made]):
    """A cut model, its predicted seconds and its measured ones.

    Attributes
    ----------
    amount:
        The limit: a share, or a time with its unit.
    timed:
        Every measurement of it.
    """

    made: Made
    predicted: Mapping[str, float]
    amount: float | str
    timed: tuple[Comparison, ...]

    @property
    def measured(self) -> Comparison:
        """All measurements of it as one."""
        return reduce(Comparison.pooled, self.timed)

    @property
    def uses(self) -> list[float]:
        """Measured time as a share of the limit, of each measurement."""
        return [_use(found, self.amount) for found in self.timed]

    @property
    def use(self) -> float:
        """Measured time as a share of the limit: the mean, since a busy machine goes to and fro between two paces."""
        return fmean(self.uses)

    @property
    def error(self) -> float:
        """Standard error of the measurements' mean."""
        uses = self.uses
        return stdev(uses) / math.sqrt(len(uses)) if len(uses) > 1 else _DOUBT

    @property
    def holds(self) -> bool:
        """Whether it is within the limit, as far as a measurement can say."""
        return self.use <= 1 + TOLERANCE

    @property
    def near(self) -> bool:
        """Whether more measurements might say that it lands."""
        return abs(self.use - _AIM) <= _NEAR / 2 + 2 * self.error

    @property
    def lands(self) -> bool:
        """Whether it is where another try could not do better, as far as the measurements can say."""
        return self.holds and abs(self.use - _AIM) <= _NEAR / 2 + self.error

    @property
    def sure(self) -> bool:
        """Whether another measurement would tell no more."""
        count = len(self.timed)
        return count >= _MOST or (count >= (_BUSY if self.measured.noisy else _QUIET) and self.error <= _SURE)

    @property
    def merit(self) -> tuple[bool, bool, float]:
        """The nearest to what is aimed at, best from below, as far as the measurements can say."""
        return self.holds, self.use <= 1 + self.error, -abs(self.use - _AIM)


def within_time(
    amount: float | str,
    make: Callable[[float], tuple[Made, Mapping[str, float]]],
    time: Callable[[Made], Comparison],
    first: float,
) -> tuple[Candidate[Made], int]:
    """Make and time models until one takes what was asked for; gives the best one and the number of tries.

    Parameters
    ----------
    amount:
        The limit: a share, or a time with its unit.
    make:
        Cuts down to a share of the predicted time; gives the model and its predicted seconds (``dense``, ``small``).
    time:
        Times "dense" and "small" side by side.
    first:
        The share to begin with.

    Raises
    ------
    BudgetError
        If no model was within the limit; it says what was reached.
    """
    found, shares, problem = dict[float, Candidate[Made]](), list[tuple[float, float]](), None
    while len(shares) < _TRIES and not any(one.lands for one in found.values()):
        tries = [Try(share, reached, found[reached].use) for share, reached in shares]
        share = _next(tries) if tries else min(first, 1.0)
        try:
            made, predicted = make(share)
        except (BudgetError, NothingToCutError) as stop:
            problem = stop
            break
        reached = predicted["small"] / predicted["dense"]
        if reached not in found:
            found[reached] = _sure(Candidate(made, predicted, amount, (time(made),)), time)
        shares.append((share, reached))
        if share >= 1 and found[reached].use <= 1:
            break
    if not found:
        assert problem is not None
        raise problem
    best = max(found.values(), key=lambda one: one.merit)
    if not best.holds:
        raise BudgetError(_missed(amount, best)) from problem
    return best, len(found)


def _sure(found: Candidate[Made], time: Callable[[Made], Comparison]) -> Candidate[Made]:
    """A model that lands, measured again: by luck one of several tries may; on a busy machine more than twice."""
    while found.near and not found.sure:
        found = replace(found, timed=(*found.timed, time(found.made)))
    return found


@dataclass(frozen=True)
class Try:
    """A share that was planned for, the one that the plan reached as predicted, and how much of the limit it used."""

    share: float
    reached: float
    use: float


def _next(tries: Sequence[Try]) -> float:
    """The share to plan for next, aimed a hair below the limit: above it is a promise broken.

    Between the nearest model that is too slow and the nearest that is not, as soon as there are both; where a smaller
    model was measured to be slower than a larger one, what all of them say in the middle. Until then along the line
    through the last two, or in proportion where that says nothing.
    """
    last = tries[-1]
    slow = min((one for one in tries if one.use > 1), key=lambda one: one.share, default=None)
    quick = max((one for one in tries if one.use <= 1), key=lambda one: one.share, default=None)
    if slow is not None and quick is not None:
        if quick.share >= slow.share:
            return min(1.0, median(one.share * _AIM / one.use for one in tries))
        part = (_AIM - quick.use) / (slow.use - quick.use)
        return quick.share + (slow.share - quick.share) * min(1 - _INSIDE, max(_INSIDE, part))
    start = min(last.reached, last.share) if last.use > 1 else last.share
    goal = start * _AIM / last.use
    if len(tries) > 1:
        run, rise = last.share - tries[-2].share, last.use - tries[-2].use
        goal = last.share + (_AIM - last.use) * run / rise if run * rise > 0 else goal
    low, high = _STRIDE
    return min(1.0, start * high, max(start * low, goal))


def as_fast(
    share: float,
    make: Callable[[float | None], tuple[Made, Mapping[str, float]]],
    time: Callable[[Made], Comparison],
) -> tuple[Candidate[Made], int]:
    """Make and time models until one takes no larger share of the time than `share`; else the fastest of some tries.

    Parameters
    ----------
    share:
        What the counted budget leaves.
    make:
        Cuts within the budget towards a share of the predicted time (None: its own); gives the model and its predicted
        seconds.
    time:
        Times "dense" and "small" side by side.

    Raises
    ------
    BudgetError, NothingToCutError
        If not even the first could be made.
    """
    goal, best, tried = None, None, 0
    for _ in range(_FAST_TRIES):
        try:
            made, predicted = make(goal)
        except (BudgetError, NothingToCutError):
            if best is None:
                raise
            break
        found, tried = Candidate(made, predicted, share, (time(made),)), tried + 1
        stuck = best is not None and predicted["small"] >= best.predicted["small"]
        if best is None or found.use < best.use:
            best = found
        if found.use <= 1 or stuck:
            break
        reached = predicted["small"] / predicted["dense"]
        goal = min(goal or 1.0, reached) * max(_STRIDE[0], _AIM / found.use)
    assert best is not None
    return best, tried


def _use(measured: Comparison, amount: float | str) -> float:
    dense, small = measured.latencies
    return small.median / seconds_of(TIME, amount, dense.median)


def _missed(amount: float | str, best: Candidate[Any]) -> str:
    dense, small = best.measured.latencies
    limit = seconds_of(TIME, amount, dense.median)
    busy = "; the machine was busy (spread above 10 %): try again" if best.measured.noisy else ""
    return (
        f"the budget is out of reach; {TIME}: {1000 * limit:.3g} ms asked, {1000 * small.median:.3g} ms is the least "
        f"that was measured ({small.median / dense.median:.1%} of {1000 * dense.median:.3g} ms){busy}"
    )
