"""Budgets: how much may be left or must go. One entry of the table per budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.channels.pins import held_most
from surgeon.channels.structure import Flags, Ints
from surgeon.cost import Latency
from surgeon.errors import BudgetError
from surgeon.planning.allocation import Allocator
from surgeon.planning.amounts import check_filters, check_ratio, counted_amount, seconds_of
from surgeon.planning.meters import Meter, Stairs, counted, timed
from surgeon.planning.moves import Moves, Taken
from surgeon.planning.problem import Problem


def take_filters(problem: Problem, amount: int) -> Taken:
    """As many convolution filters as come nearest to `amount` and not above it.

    Raises
    ------
    BudgetError
        If fewer can go; it says how many.
    """
    moves = problem.order()
    can_go = int(moves.filters.sum())
    if amount > can_go:
        raise BudgetError(
            f"filters={amount}: at most {can_go} of the model's filters can be removed; ask for {can_go} or fewer"
        )
    bundles = problem.graph.bundles
    worthless = {index for index, bundle in enumerate(bundles) if not any(g.filters for g in bundle.groups)}
    return _as_many_as_fit(moves, moves.filters, amount, worthless)


def _as_many_as_fit(moves: Moves, worth: Ints, amount: int, closed: set[int]) -> Taken:
    """Moves in their order, as long as they fit into `amount`; a bundle whose move doesn't is left as it is then."""
    taken: Taken = {}
    left = amount
    for bundle, count, size in zip(moves.bundles.tolist(), moves.counts.tolist(), worth.tolist(), strict=True):
        if bundle in closed:
            continue
        if size > left:
            closed.add(bundle)
            continue
        taken[bundle] = count
        left -= size
    return taken


def take_ratio(problem: Problem, amount: float) -> Taken:
    """The share `amount` of the channels: of all together (global), or of every bundle (local)."""
    if problem.scope == "local":
        return problem.at_ratio(float(amount))
    moves = problem.order()
    return _as_many_as_fit(
        moves, moves.channels, int(sum(g.size for g in problem.graph.groups) * amount + 1e-9), set()
    )  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """A budget that limits a cost from above.

    Attributes
    ----------
    measure:
        What a model that keeps given channels costs.
    meter:
        The same for every combination of widths.
    amount:
        The absolute limit, from the budget's name, what the user gave, and what the dense model costs.
    tell:
        Writes a cost down.
    """

    measure: Callable[[Problem, Flags], float]
    meter: Callable[[Problem, Stairs], Meter]
    amount: Callable[[str, Any, float], float] = counted_amount
    tell: Callable[[float], str] = "{:,}".format


def _predicted(problem: Problem) -> Latency:
    assert problem.latency is not None, "a budget of time needs a latency table"
    return problem.latency


#: Budgets that limit a cost from above.
LIMITS: dict[str, Limit] = {
    "max_macs": Limit(lambda p, kept: p.cost.macs(kept), lambda p, stairs: counted(stairs, p.cost, "macs")),
    "max_params": Limit(lambda p, kept: p.cost.params(kept), lambda p, stairs: counted(stairs, p.cost, "params")),
    "max_activations": Limit(
        lambda p, kept: p.cost.activations(kept), lambda p, stairs: counted(stairs, p.cost, "activations")
    ),
    "max_latency": Limit(
        lambda p, kept: _predicted(p).seconds(kept),
        lambda p, stairs: timed(stairs, _predicted(p)),
        seconds_of,
        lambda seconds: f"{1000 * seconds:.3g} ms",
    ),
}
#: The one that is measured, not counted.
TIME = "max_latency"


def limits_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The amounts that limit a cost."""
    return {name: asked[name] for name in LIMITS if asked.get(name) is not None}


def absolute(problem: Problem, limits: dict[str, Any]) -> dict[str, float]:
    """The limits in units of what they limit: a share becomes that of the dense model's."""
    dense = problem.cost.everything()
    return {
        name: LIMITS[name].amount(name, given, LIMITS[name].measure(problem, dense)) for name, given in limits.items()
    }


def take_until(problem: Problem, limits: dict[str, Any]) -> Taken:
    """The fewest moves, least useful first, after which every cost is within its limit; then those that weren't needed
    are undone, the most useful first: the last one may have saved more than was left to save.

    Raises
    ------
    BudgetError
        If not even all moves keep the limits; it says what can be reached.
    """
    numbers = absolute(problem, limits)
    moves = problem.order()

    def within(taken: Taken) -> bool:
        kept = problem.kept(taken)
        return all(LIMITS[name].measure(problem, kept) <= limit for name, limit in numbers.items())

    if not within(moves.first(len(moves))):
        raise BudgetError(out_of_reach(problem, limits))
    low, high = 0, len(moves)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(moves.first(middle)) else (middle + 1, high)
    # locally, all bundles are to lose the same share
    return moves.first(low) if problem.scope == "local" else _without_needless(moves, low, within)


def _without_needless(moves: Moves, count: int, within: Callable[[Taken], bool]) -> Taken:
    """The first `count` moves less those that the limits don't need; of each bundle the last taken go first."""
    taken = moves.first(count)
    for bundle, number in zip(moves.bundles[:count][::-1].tolist(), moves.counts[:count][::-1].tolist(), strict=True):
        if taken[bundle] == number:
            less = {**taken, bundle: number - 1}
            taken = less if within(less) else taken
    return {bundle: number for bundle, number in taken.items() if number}


#: Predicted time aims so far below, that what is measured holds, too.
_BELOW = 0.97


def allocate(problem: Problem, limits: dict[str, Any]) -> Taken:
    """The moves that keep the most score within the limits; where none of them is of time, also as fast as can be.

    Then time falls at least to the problem's goal, by default a hair below the tightest of the limits as a share of the
    dense model's, if the widths can do that at all.

    Raises
    ------
    BudgetError
        If not even all moves keep the limits; it says what can be reached.
    """
    numbers = absolute(problem, limits)
    stairs = Stairs(problem.stairs, problem.graph.structure.count)
    meters = {name: LIMITS[name].meter(problem, stairs) for name in {*numbers, TIME}}
    search = Allocator(stairs, meters, numbers)
    if TIME in numbers:
        state = search.best()
    else:
        dense = search.dense()
        share = problem.time_goal or _BELOW * tightest(problem, limits)
        state = search.fastest(TIME, share * meters[TIME].total(dense))
    if not search.within(state):
        raise BudgetError(out_of_reach(problem, limits))
    return {bundle: count for bundle, count in enumerate(state) if count}


def tightest(problem: Problem, limits: dict[str, Any]) -> float:
    """The limit that asks for most, as a share of what the dense model has."""
    dense = problem.cost.everything()
    numbers = absolute(problem, limits)
    return min(limit / LIMITS[name].measure(problem, dense) for name, limit in numbers.items())


def out_of_reach(problem: Problem, limits: dict[str, Any]) -> str:
    """Which limits can't be held, and what can be reached."""
    dense, kept = problem.cost.everything(), problem.kept(problem.everything())
    lines = []
    for name, limit in absolute(problem, limits).items():
        row, given = LIMITS[name], limits[name]
        least, whole = row.measure(problem, kept), row.measure(problem, dense)
        if least > limit:
            reach = f"{row.tell(least)} is the least that can be reached ({least / whole:.1%} of {row.tell(whole)})"
            told = ", as predicted from what was measured on this device" if name == TIME else ""
            asked = row.tell(limit) if type(given) is int else f"{given} ({row.tell(limit)})"
            lines.append(f"{name}: {asked} asked, {reach}{told}")
    held = held_most(problem.graph.pinned)
    stays = f"; filters and neurons that stay, and why: {held}" if held else ""
    return "the budget is out of reach; " + ("; ".join(lines) or "no widths hold all limits together") + stays


def check_reachable(problem: Problem, limits: dict[str, Any]) -> None:
    """Refuse limits that not even the smallest widths hold, before anything is scored.

    Raises
    ------
    BudgetError
        It says what can be reached.
    """
    numbers, kept = absolute(problem, limits), problem.kept(problem.everything())
    if any(LIMITS[name].measure(problem, kept) > limit for name, limit in numbers.items()):
        raise BudgetError(out_of_reach(problem, limits))


def given_amounts(amounts: Mapping[str, Any]) -> dict[str, Any]:
    """The amounts that were given, each of which makes sense by itself.

    Raises
    ------
    BudgetError
        For no amount, amounts that exclude each other, or a malformed one.
    """
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if not given:
        names = ", ".join(f"{name}=" for name in LIMITS)
        raise BudgetError(f"say how much to cut: filters=N, ratio=0.5, or {names} (a share or a number)")
    if len(given) > 1 and ({"filters", "ratio"} & given.keys()):
        names = " and ".join(given)
        raise BudgetError(f"{names} exclude each other: filters alone, ratio alone, or max_* together")
    for name, amount in given.items():
        if isinstance(amount, tuple | list):
            raise BudgetError(f"{name}={amount!r}: expected one amount; a list holds one for each of several steps")
        AMOUNTS[name](name, amount)
    return given


def _check_limit(name: str, amount: Any) -> None:
    LIMITS[name].amount(name, amount, 1.0)


#: Everything that says how much, and what makes sense of it.
AMOUNTS: dict[str, Callable[[str, Any], None]] = {
    "filters": check_filters, "ratio": check_ratio, **dict.fromkeys(LIMITS, _check_limit),
}  # fmt: skip


def choose(problem: Problem, amounts: dict[str, Any]) -> Taken:
    """The moves for the user's amounts.

    Raises
    ------
    BudgetError
        As :func:`given_amounts`, and for an amount out of reach.
    """
    given = given_amounts(amounts)
    if "filters" in given:
        return take_filters(problem, given["filters"])
    if "ratio" in given:
        return take_ratio(problem, given["ratio"])
    if problem.latency is not None and problem.scope == "global":
        return allocate(problem, given)
    return take_until(problem, given)
