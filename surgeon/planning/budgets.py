"""Budgets: how much may be left or must go. One entry of the table per budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, Ints
from surgeon.cost import Cost
from surgeon.errors import BudgetError
from surgeon.planning.moves import Moves, Staircase, Taken, in_order


@dataclass(frozen=True)
class Problem:
    """One planning problem: the graph, its moves, and what widths cost."""

    graph: ChannelGraph
    stairs: Sequence[Staircase]
    cost: Cost
    scope: str

    def kept(self, taken: Taken) -> Flags:
        """Flags of the channels that stay when these moves are taken."""
        flags = self.cost.everything()
        for index, count in taken.items():
            for gone in self.stairs[index].removed(count):
                flags[gone] = False
        return flags

    def levels(self, taken: Taken) -> dict[int, int]:
        """How many steps each of these bundles has lost."""
        return {index: int(self.stairs[index].levels[count - 1]) for index, count in taken.items()}

    def at_ratio(self, ratio: float) -> Taken:
        """Of every bundle the moves that remove at most this share of it, or the width nearest to that on its steps."""
        taken: Taken = {}
        for index, (bundle, stair) in enumerate(zip(self.graph.bundles, self.stairs, strict=True)):
            # 1e-9: 10 channels at 0.9 lose 9, although 10 * 0.9 is a hair off in binary
            wanted = int(bundle.steps * ratio + 1e-9)
            if len(stair):
                nearest = int(np.argmin(np.abs(stair.levels - wanted)))
                if abs(int(stair.levels[nearest]) - wanted) <= wanted:
                    taken[index] = nearest + 1
        return taken

    def order(self) -> Moves:
        """All moves in the order of the scope: by score, or by the share of their bundle that is gone."""
        moves = in_order(self.stairs)
        if self.scope == "local":
            steps = np.array([bundle.steps for bundle in self.graph.bundles])
            moves = moves.arranged(np.argsort(moves.levels / steps[moves.bundles], kind="stable"))
        return moves


def take_filters(problem: Problem, amount: Any) -> Taken:
    """As many convolution filters as come nearest to `amount` and not above it."""
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise BudgetError(f"filters={amount!r}: expected a positive whole number of convolution filters to remove")
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


def take_ratio(problem: Problem, amount: Any) -> Taken:
    """The share `amount` of the channels: of all together (global), or of every bundle (local)."""
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1:
        raise BudgetError(f"ratio={amount!r}: expected the share of channels to remove, above 0 and below 1")
    if problem.scope == "local":
        return problem.at_ratio(float(amount))
    moves = problem.order()
    return _as_many_as_fit(
        moves, moves.channels, int(sum(g.size for g in problem.graph.groups) * amount + 1e-9), set()
    )  # fmt: skip


def _limit(name: str, amount: Any, dense: int) -> int:
    """An absolute number from ``0.5``, ``"50%"`` or an absolute number."""
    text = f"{name}={amount!r}: expected a share up to 1 (0.5 or '50%'), or a whole number"
    if isinstance(amount, str):
        amount = _number(amount)
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise BudgetError(text)
    if isinstance(amount, float):
        if amount > 1:
            raise BudgetError(text)
        return int(dense * amount)
    return amount


def _number(text: str) -> float | int | None:
    """A share from ``"50%"`` or ``"0.5"``, a whole number from ``"1000"``; None from anything else."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    if text.endswith("%"):
        return value / 100
    return int(value) if value > 1 and value.is_integer() else value


Measure = Callable[[Cost, Flags], int]
#: Budgets that limit a cost from above, and how it is measured.
LIMITS: dict[str, Measure] = {"max_macs": Cost.macs, "max_params": Cost.params}


def take_until(problem: Problem, limits: dict[str, Any]) -> Taken:
    """The fewest moves, least useful first, after which every cost is within its limit."""
    absolute = {n: _limit(n, a, LIMITS[n](problem.cost, problem.cost.everything())) for n, a in limits.items()}
    moves = problem.order()

    def within(count: int) -> bool:
        kept = problem.kept(moves.first(count))
        return all(LIMITS[name](problem.cost, kept) <= limit for name, limit in absolute.items())

    if not within(len(moves)):
        raise BudgetError(_out_of_reach(problem, absolute, moves))
    low, high = 0, len(moves)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle + 1, high)
    return moves.first(low)


def _out_of_reach(problem: Problem, absolute: dict[str, int], moves: Moves) -> str:
    dense, kept = problem.cost.everything(), problem.kept(moves.first(len(moves)))
    lines = []
    for name, limit in absolute.items():
        least, whole = LIMITS[name](problem.cost, kept), LIMITS[name](problem.cost, dense)
        if least > limit:
            reach = f"{least:,} is the least that can be reached ({least / whole:.1%} of {whole:,})"
            lines.append(f"{name}: {limit:,} asked, {reach}")
    return "the budget is out of reach; " + "; ".join(lines)


def choose(problem: Problem, amounts: dict[str, Any]) -> Taken:
    """The moves for the user's amounts.

    Raises
    ------
    BudgetError
        For no amount, amounts that exclude each other, a malformed one, or one out of reach.
    """
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if not given:
        raise BudgetError("say how much to cut: filters=N, ratio=0.5, or max_macs=, max_params= (a share or a number)")
    if len(given) > 1 and ({"filters", "ratio"} & given.keys()):
        names = " and ".join(given)
        raise BudgetError(f"{names} exclude each other: filters alone, ratio alone, or max_* together")
    if "filters" in given:
        return take_filters(problem, given["filters"])
    if "ratio" in given:
        return take_ratio(problem, given["ratio"])
    return take_until(problem, given)


def smallest(problem: Problem) -> dict[str, int]:
    """The least that the model can be cut down to: MACs and parameters."""
    kept = problem.kept({index: len(stair) for index, stair in enumerate(problem.stairs)})
    return {name.removeprefix("max_"): int(np.int64(measure(problem.cost, kept))) for name, measure in LIMITS.items()}
