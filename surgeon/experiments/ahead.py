"""What would fail in the middle of a grid, hours later, fails before its first cell."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.criteria import score
from surgeon.errors import BudgetError, TuningError
from surgeon.experiments.grid import DENSE, ONE_SHOT, SCRATCH, Key
from surgeon.experiments.running import OF_STEPS, renew
from surgeon.planning import make_plan
from surgeon.planning.steps import goals_of, remaining
from surgeon.pruning import prune
from surgeon.report import sizes
from surgeon.tracing import Inputs, copied, trace
from surgeon.tuning.order import own_randomness

__all__ = ["check_cells"]

#: Options of :func:`surgeon.prune` that every cell has from the grid, or that only one cut can have.
_OF_THE_GRID = {
    "model", "example_inputs", "filters", "ratio", "max_macs", "max_params", "max_activations", "max_latency",
    "criterion", "steps", "schedule", "seed", "progress", "inplace", "as_graph",
}  # fmt: skip
#: Options of :func:`surgeon.prune` on which it depends what can go.
_PLANNING = ("scope", "round_to", "min_channels", "ignored_layers", "units")


def check_cells(
    model: nn.Module, example_inputs: Any, keys: Iterable[Key], tuning: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Refuse cells that can't be run, with the budget or the schedule named.

    Raises
    ------
    TuningError
        If there is no such option, a rate for each step is given and a cell has another number of them, or a layer
        can't start anew.
    BudgetError
        For a malformed budget, and one that is out of reach.
    """
    _check_names(options)
    cells = list(keys)
    _check_rates(cells, tuning.get("lr"))
    if any(key.schedule == SCRATCH for key in cells):
        _check_new_weights(model)
    graph = channel_graph(trace(model, Inputs.of(example_inputs)))
    planning = {name: options[name] for name in _PLANNING if name in options}
    for budget, schedule, steps in dict.fromkeys((k.budget, k.schedule, k.steps) for k in cells if k.budget):
        _check_budget(graph, dict(budget), schedule, steps, planning)


def _check_names(options: Iterable[str]) -> None:
    known = {*inspect.signature(prune).parameters, *OF_STEPS} - _OF_THE_GRID
    if unknown := [name for name in options if name not in known]:
        raise TuningError(
            f"compare has no option {unknown[0]!r}, or the grid says it; beside its own it takes: "
            f"{', '.join(sorted(known))}"
        )


def _check_rates(cells: Iterable[Key], rates: Any) -> None:
    if not isinstance(rates, list | tuple):
        return
    for key in cells:
        if key.schedule in (DENSE, SCRATCH) or key.steps != len(rates):
            raise TuningError(
                f"lr lists {len(rates)} rates, and {key.schedule!r} trains {key.steps} time(s): give one for all"
            )


def _check_new_weights(model: nn.Module) -> None:
    """A small model has the layers of the dense one."""
    with own_randomness(next((p.device for p in model.parameters()), torch.device("cpu"))):
        renew(copied(model, {}))


def _check_budget(
    graph: ChannelGraph, budget: dict[str, Any], schedule: str, steps: int, planning: Mapping[str, Any]
) -> None:
    """Whether the last step's target can be reached is the same whatever the ranking."""
    dense = sizes(graph)
    try:
        goals = goals_of(budget, ONE_SHOT if schedule == SCRATCH else schedule, steps, dense)
        if left := remaining(goals[-1], {}, dense, dense):
            make_plan(graph, score(graph, "random"), **left, **planning)
    except BudgetError as problem:
        raise BudgetError(f"budget {budget}, schedule {schedule!r}: {problem}") from problem
