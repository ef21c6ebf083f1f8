"""What is compared: the grid, and the cells that it is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.criteria import find_criterion
from surgeon.errors import SelectionError, TuningError
from surgeon.planning.steps import BUDGETS, PER_STEP, STEPS

__all__ = ["DENSE", "ONE_SHOT", "SCRATCH", "Experiment", "Key"]

#: Schedules that are no gradual cut: everything at once; the cut network from new weights; the whole network.
ONE_SHOT, SCRATCH, DENSE = "one-shot", "scratch", "dense"
_SCHEDULES = (*STEPS, PER_STEP, SCRATCH)

_SEEDS = 2**63


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes
    ----------
    criteria, budgets, schedules, seeds:
        The grid. A budget is ``filters``, ``ratio``, or any of ``max_macs`` and ``max_params``, as
        :func:`surgeon.prune` takes them (``{"max_macs": 0.5}``); a schedule one of :func:`surgeon.prune_and_tune`,
        ``"one-shot"`` (cut at once and train as long), or ``"scratch"`` (the network that one cut leaves, from new
        weights).
    steps, epochs:
        Cuts of a gradual schedule, and epochs of every cell in all; the steps share them evenly.
    dense:
        Also train the whole network as long.
    """

    criteria: tuple[str, ...] = ("taylor",)
    budgets: tuple[Mapping[str, Any], ...] = ({"max_macs": 0.5},)
    schedules: tuple[str, ...] = ("linear", "one-shot")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 5
    epochs: int = 10
    dense: bool = True

    def __post_init__(self) -> None:
        for name in _CHECKS:
            if not getattr(self, name):
                raise TuningError(f"{name} is empty: give at least one")
        if type(self.steps) is not int or type(self.epochs) is not int or not 1 <= self.steps <= self.epochs:
            raise TuningError(
                f"steps={self.steps!r}, epochs={self.epochs!r}: expected at least one step, and an epoch for each"
            )
        if self.epochs % self.steps:
            raise TuningError(f"epochs={self.epochs} can't be shared evenly by steps={self.steps}: give a multiple")
        if not isinstance(self.dense, bool):
            raise TuningError(f"dense={self.dense!r}: expected true or false")
        for name, check in _CHECKS.items():
            for value in getattr(self, name):
                check(value)

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Experiment:
        """The experiment that the `fields` of a TOML or JSON file describe.

        Raises
        ------
        TuningError
            For a field that there isn't, or one of another type.
        """
        known = cls.__dataclass_fields__
        if unknown := sorted(set(fields) - set(known)):
            raise TuningError(f"the experiment has no field {unknown[0]!r}; there are: {', '.join(known)}")
        listed = {"criteria": str, "budgets": Mapping, "schedules": str, "seeds": int}
        for name, kind in listed.items():
            values = fields.get(name, ())
            if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
                raise TuningError(f"the experiment's {name} is {values!r}: expected a list of {kind.__name__}")
        given: dict[str, Any] = {n: tuple(value) if n in listed else value for n, value in fields.items()}
        return cls(**given)

    def keys(self) -> Iterator[Key]:
        """All cells of the grid; the whole network is one for each seed."""
        for criterion, budget, schedule, seed in itertools.product(
            self.criteria, self.budgets, self.schedules, self.seeds
        ):
            steps = 1 if schedule in (ONE_SHOT, SCRATCH) else self.steps
            yield Key(criterion, tuple(sorted(budget.items())), schedule, seed, steps, self.epochs)
        for seed in self.seeds if self.dense else ():
            yield Key("", (), DENSE, seed, 1, self.epochs)


def _check_seed(seed: Any) -> None:
    if type(seed) is not int or not 0 <= seed < _SEEDS:
        raise TuningError(f"seeds: {seed!r} is no whole number from 0 to 2^63 - 1")


def _check_schedule(name: str) -> None:
    if name not in _SCHEDULES:
        raise TuningError(f"schedules: there is no {name!r}; there are: {', '.join(_SCHEDULES)}")


def _check_criterion(name: str) -> None:
    try:
        find_criterion(name)
    except SelectionError as problem:
        raise TuningError(f"criteria: {problem}") from problem


def _check_budget(budget: Any) -> None:
    if not isinstance(budget, Mapping) or not budget:
        raise TuningError(f"budgets: {budget!r} is no table such as {{'max_macs': 0.5}}")
    for name, amount in budget.items():
        if name not in BUDGETS:
            raise TuningError(f"budgets: there is no {name!r} in steps; there are: {', '.join(BUDGETS)}")
        if isinstance(amount, bool) or not isinstance(amount, int | float | str):
            raise TuningError(f"budgets: {name} is {amount!r}, expected a number or a share ('50%')")


#: What the values of the grid are.
_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "criteria": _check_criterion, "budgets": _check_budget, "schedules": _check_schedule, "seeds": _check_seed,
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """What a cell is: see :class:`Experiment`; the budget as pairs."""

    criterion: str
    budget: tuple[tuple[str, str | float | int | None], ...]
    schedule: str
    seed: int
    steps: int
    epochs: int

    @property
    def amounts(self) -> dict[str, Any]:
        """The budget, as :func:`surgeon.prune` takes it."""
        return dict(self.budget)

    @property
    def folder(self) -> str:
        """Where its training is kept."""
        words = [self.criterion, *(f"{name}={amount}" for name, amount in self.budget), self.schedule]
        return "_".join([*filter(None, words), f"{self.steps}x{self.epochs}", f"seed={self.seed}"]).replace("/", "-")
