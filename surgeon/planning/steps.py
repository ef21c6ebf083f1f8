"""How far each step of an iterative schedule goes: pure functions of shares removed so far.

A share is 0 for the dense model and 1 for nothing left. Every function gives one share per step, the last of them the
final one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgeon.errors import BudgetError
from surgeon.planning.amounts import check_filters, check_ratio, counted_amount

__all__ = [
    "BUDGETS",
    "PER_STEP",
    "STEPS",
    "check_schedule",
    "cubic",
    "equal_ratio",
    "explicit",
    "goals_of",
    "linear",
    "one_shot",
    "per_step",
    "remaining",
    "shares",
    "targets",
]


def linear(final: float, steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Equal amounts in every step: ``s_k = s_i + (s_f - s_i) k / n``."""
    return (*(initial + (final - initial) * k / steps for k in range(1, steps)), final)


def cubic(final: float, steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Much at first, little at the end: Zhu & Gupta 2017 (arXiv 1710.01878, equation 1) at the ends of n intervals.

    ``s_k = s_f + (s_i - s_f) (1 - k / n)^3``
    """
    return (*(final + (initial - final) * (1 - k / steps) ** 3 for k in range(1, steps)), final)


def equal_ratio(final: float, steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """Every step keeps the same share of what it finds: ``1 - s_k = (1 - s_i) ((1 - s_f) / (1 - s_i))^(k / n)``."""
    keep = (1 - final) / (1 - initial)
    return (*(1 - (1 - initial) * keep ** (k / steps) for k in range(1, steps)), final)


def one_shot(final: float, steps: int = 1, initial: float = 0.0) -> tuple[float, ...]:  # noqa: ARG001  # as the others
    """Everything in the first step; further steps only train."""
    return (final,) * steps


def per_step(amount: int, steps: int) -> tuple[int, ...]:
    """Amounts removed so far when every step takes `amount` (512 filters in each of 5 steps)."""
    return tuple(amount * k for k in range(1, steps + 1))


def explicit(targets: Sequence[float]) -> tuple[float, ...]:
    """The user's own shares, which must not fall.

    Raises
    ------
    BudgetError
        If there is none, one is not from 0 to below 1, or they fall.
    """
    bad = [t for t in targets if not 0 <= t < 1]
    if not targets or bad or list(targets) != sorted(targets):
        raise BudgetError(
            f"the steps' shares are {list(targets)}: expected at least one, each from 0 to below 1, none below the last"
        )
    return tuple(targets)


#: Budgets that can be reached in steps: those that need no measuring.
BUDGETS = ("filters", "ratio", "max_macs", "max_params")
#: The schedule that an amount of filters has by default: so many in every step.
PER_STEP = "per-step"
#: Name -> shares of (final, steps, initial).
STEPS: Mapping[str, Callable[[float, int, float], tuple[float, ...]]] = {
    "linear": linear,
    "cubic": cubic,
    "equal-ratio": equal_ratio,
    "one-shot": one_shot,
}


def check_schedule(schedule: str | None) -> None:
    """Refuse a name that no schedule has; None is the budget's own.

    Raises
    ------
    BudgetError
        If it is one.
    """
    if schedule is not None and schedule not in (*STEPS, PER_STEP):
        names = ", ".join((*STEPS, PER_STEP))
        raise BudgetError(f"no schedule of steps called {schedule!r}; there are: {names}")


def shares(schedule: str, final: float, steps: int, initial: float = 0.0) -> tuple[float, ...]:
    """The shares removed after each of `steps` steps of a named schedule.

    Raises
    ------
    BudgetError
        If there is no such schedule, no step, or the shares are not ``0 <= initial <= final < 1``.
    """
    if schedule not in STEPS:
        raise BudgetError(f"no schedule of shares called {schedule!r}; there are: {', '.join(STEPS)}")
    if type(steps) is not int or steps < 1:
        raise BudgetError(f"steps={steps!r}: expected a positive whole number")
    if not 0 <= initial <= final < 1:
        raise BudgetError(f"from {initial} to {final}: expected shares removed, rising, from 0 to below 1")
    return STEPS[schedule](final, steps, initial)


def targets(name: str, amount: Any, schedule: str | None, steps: int, dense: int) -> tuple[float, ...]:
    """What a budget of :func:`surgeon.prune` allows after each step, always counted from the dense model.

    Parameters
    ----------
    name, amount:
        The budget: ``filters`` (convolution filters removed), ``ratio`` (share of the channels removed) or a ``max_*``
        limit (a share up to 1, ``"50%"``, or an absolute number). A sequence holds one target per step itself.
    schedule, steps:
        Of :func:`shares`: the amount is reached in so many steps. ``"per-step"`` removes `amount` filters in every one
        of them. None: the latter for filters, which are what a cut takes away; ``"linear"`` for a ratio or a limit,
        which are what is reached.
    dense:
        How much the dense model has of it: filters, MACs (one multiply-add is 1), parameters.

    Returns
    -------
    tuple
        Filters or the share of channels removed so far; or the limit, an absolute number.

    Raises
    ------
    BudgetError
        If an amount is malformed, or the targets of a sequence go back.
    """
    limit = name.startswith("max_")
    check_schedule(schedule)
    schedule = schedule or (PER_STEP if name == "filters" else "linear")
    if isinstance(amount, tuple | list):
        gone = explicit([_share(name, a, dense) for a in amount])
    elif schedule == PER_STEP:
        gone = explicit([_share(name, a, dense) for a in _in_every_step(name, amount, steps, dense)])
    else:
        gone = shares(schedule, _share(name, amount, dense), steps)
    if name == "ratio":
        return gone
    # 10 of 100 removed 9 times are 90, although 0.9 * 100 is a hair off in binary
    hair = 1e-9 + 1e-15 * dense
    return tuple(int(dense * (1 - share) + hair) if limit else int(dense * share + hair) for share in gone)


def _in_every_step(name: str, amount: Any, steps: int, dense: int) -> tuple[int, ...]:
    if name != "filters":
        raise BudgetError(f"schedule='per-step' counts filters: give filters=N, not {name}={amount!r}")
    _share(name, amount, dense)  # a whole number that one step can remove
    if amount * steps >= dense:
        raise BudgetError(
            f"filters={amount:,} in each of {steps} steps are {amount * steps:,}, and there are {dense:,}: give fewer, "
            f"or schedule='linear' for {amount:,} in all"
        )
    return per_step(amount, steps)


def goals_of(
    budget: Mapping[str, Any], schedule: str | None, steps: int, dense: Mapping[str, int]
) -> list[dict[str, float]]:
    """The targets of each step, by budget (:func:`targets`), for one budget or several limits together.

    Raises
    ------
    BudgetError
        As :func:`targets`; also if the budgets exclude each other or list another number of targets.
    """
    if not budget or (len(budget) > 1 and {"filters", "ratio"} & budget.keys()):
        raise BudgetError(f"give filters=, or ratio=, or any of max_macs= and max_params=; got {sorted(budget)}")
    columns = {name: targets(name, amount, schedule, steps, dense.get(name, 0)) for name, amount in budget.items()}
    lengths = {len(column) for column in columns.values()}
    if lengths != {steps}:
        told = ", ".join(f"{name}: {len(column)}" for name, column in columns.items())
        raise BudgetError(f"steps={steps}, but the budget lists other numbers of targets ({told}): give as many")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def remaining(
    goal: Mapping[str, float], before: Mapping[str, float], dense: Mapping[str, int], now: Mapping[str, int]
) -> dict[str, Any]:
    """What a step still has to cut for its goal, as a budget; empty if it is there already.

    Parameters
    ----------
    goal, before:
        The targets of this step and of the one before it, counted from the dense model.
    dense, now:
        What the dense model has of each, and what is left by now.
    """
    if "filters" in goal:
        left = int(goal["filters"]) - (dense["filters"] - now["filters"])
        return {"filters": left} if left > 0 else {}
    if "ratio" in goal:
        done = before.get("ratio", 0.0)
        return {"ratio": 1 - (1 - goal["ratio"]) / (1 - done)} if goal["ratio"] > done else {}
    return {n: int(v) for n, v in goal.items()} if any(now[name] > value for name, value in goal.items()) else {}


def _share(name: str, amount: Any, dense: int) -> float:
    """The share that is gone when a budget is met."""
    if name == "ratio":
        check_ratio(name, amount)
        return float(amount)
    if name != "filters":
        return max(0.0, 1 - counted_amount(name, amount, dense) / dense)
    check_filters(name, amount)
    if amount >= dense:
        raise BudgetError(f"{name}={amount!r}: expected a whole number, fewer than the {dense:,} that there are")
    return float(amount / dense)
