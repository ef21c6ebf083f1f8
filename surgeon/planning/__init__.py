"""Planning: scores and a budget make a plan that the user's own forward has been tried with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.cost import Cost, Latency
from surgeon.criteria import Scores
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.planning.amounts import plain_amounts, seconds_of
from surgeon.planning.budgets import (
    AMOUNTS,
    LIMITS,
    TIME,
    check_reachable,
    choose,
    given_amounts,
    limits_of,
    tightest,
)
from surgeon.planning.device import AUTO, Device, timing_of
from surgeon.planning.moves import Steps, staircases
from surgeon.planning.plan import Plan, removed_by_group, sizes_by_group
from surgeon.planning.problem import Problem
from surgeon.planning.repair import Repair
from surgeon.planning.selection import channels_in, channels_made_by, names_of_layers, select_layers
from surgeon.planning.shares import NoSuchWidthError, Shares
from surgeon.rules import reasons
from surgeon.tracing import outside_inference_mode
from surgeon.trial import Fit, Misfit

__all__ = [
    "AUTO", "LIMITS", "TIME", "Device", "Plan", "check_options", "check_reach", "make_plan", "names_of_layers",
    "plain_amounts", "seconds_of", "select_layers", "share_of", "timing_of",
]  # fmt: skip


@outside_inference_mode
def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    filters: int | None = None,
    ratio: float | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    max_activations: float | str | None = None,
    max_latency: float | str | None = None,
    scope: str = "global",
    round_to: int | str | None = None,
    ignored_layers: Iterable[nn.Module | str] = (),
    units: Iterable[nn.Module | str] = (),
    min_channels: int = 1,
    seed: int = 0,
    latency: Latency | None = None,
    time_goal: float | None = None,
) -> Plan:
    """Choose the channels to remove, least useful first, and try the widths on the model's own forward.

    A group whose widths the forward doesn't follow (a constant in it) is pinned and the rest planned again; which
    ones, and the source line, stands in ``plan.fitted.graph.pinned``.

    Parameters
    ----------
    graph, scores:
        The model's channels (:func:`surgeon.channel_graph`), and how useful each is (:func:`surgeon.score`).
    filters:
        Remove this many convolution filters; coupled ones each count. Never more, and as near as can be.
    ratio:
        Remove this share of the channels.
    max_macs, max_params, max_activations:
        Keep within: a share (0.5, ``"50%"``) or an absolute number. Activations are the numbers in all tensors that the
        forward makes on the example inputs.
    max_latency:
        Keep within: a share (0.6, ``"60%"``) of the dense model's time on the example inputs, or a time (``"12ms"``);
        *predicted* from what the model's layers take on this device (:class:`surgeon.cost.Latency`).
        :func:`surgeon.prune` times the cut model itself and corrects the plan.
    scope:
        ``"global"``: rank all groups against each other. ``"local"``: the same share of every group.
    round_to:
        Widths of cut layers are multiples of this. ``"auto"`` (and by default with `max_latency`): of the device's
        own channel step; what a ``max_*`` budget leaves open is then decided by time, so that it falls at least as
        far as what is counted, where the widths can do that.
    ignored_layers:
        Modules, names or globs that keep all their filters; a container stands for everything in it.
    units:
        Likewise; modules that stay as they are: every tensor in them, and all that enters and leaves them.
    min_channels:
        No group keeps fewer.
    seed:
        What the scores were drawn with, if they were: the plan notes it.
    latency:
        The model's predicted latency, where it is at hand: time is planned with then. Otherwise it is made where it is
        needed, which takes up to a few minutes the first time.
    time_goal:
        With ``round_to="auto"`` and a ``max_*`` budget that only counts: the share of the predicted time to get down
        to; default: that of the tightest budget.

    Raises
    ------
    BudgetError
        If the amount is missing, contradictory or out of reach.
    SelectionError
        If a name in `ignored_layers` or `units` matches nothing.
    NothingToCutError
        If nothing can be cut; the message says why, layer by layer.
    """
    asked = plain_amounts({
        "filters": filters, "ratio": ratio, "max_macs": max_macs, "max_params": max_params,
        "max_activations": max_activations, "max_latency": max_latency,
    })  # fmt: skip
    _check(scope, round_to, min_channels)
    if time_goal is not None and round_to != AUTO:
        raise BudgetError(
            f"time_goal={time_goal!r} is for round_to='auto', which plans with time: give both, or neither"
        )
    clocked = timing_of(graph, asked, round_to, latency)
    ignored = select_layers(graph.trace.model, ignored_layers)
    graph = graph.pin(channels_made_by(graph, ignored), reasons.IGNORED)
    graph = graph.pin(channels_in(graph, select_layers(graph.trace.model, units, "units")), reasons.IGNORED)
    repair, shares = Repair(graph), Shares()

    def attempt() -> tuple[Flags, Fit]:
        steps = Steps(clocked.step, min_channels, shares.blocked, repair.steps)
        levels, kept = _chosen(repair.graph, scores, asked, scope, steps, clocked.latency, time_goal)
        kept = shares.with_exact_counts(repair.graph, scores, levels, kept)
        return kept, repair.fit(kept)

    kept, fitted = _repaired(attempt, repair)
    graph = repair.graph
    removed = removed_by_group(graph, kept)
    return Plan(
        model=type(graph.trace.model).__name__,
        removed=removed,
        inputs=graph.trace.inputs.spec(),
        budget={**asked, "scope": scope, "min_channels": min_channels, **_timed(clocked, fitted)},
        criterion=scores.criterion,
        seed=seed,
        sizes=sizes_by_group(graph, removed),
        fitted=fitted,
    )


def _repaired(attempt: Callable[[], tuple[Flags, Fit]], repair: Repair) -> tuple[Flags, Fit]:
    """What an attempt gives that nothing stands in the way of; each that fails leaves fewer to make."""
    while True:
        try:
            found = attempt()
            break
        except Misfit as misfit:
            repair.after(misfit)
        except NoSuchWidthError:  # it is blocked now
            continue
        except (BudgetError, NothingToCutError):
            if not repair.undone():
                raise
    return found


def _timed(clocked: Device, fitted: Fit) -> dict[str, Any]:
    """What the plan says of the device: its step, and the predicted seconds of both models."""
    told: dict[str, Any] = {"round_to": clocked.step} if clocked.step > 1 else {}
    if clocked.latency is not None:
        dense = clocked.latency.seconds(Cost(fitted.graph).everything())
        told["predicted_latency"] = {"dense": dense, "small": clocked.latency.exactly(fitted.kept)}
    return told


def check_options(
    model: nn.Module,
    *,
    scope: str = "global",
    round_to: int | str | None = None,
    min_channels: int = 1,
    ignored_layers: Iterable[nn.Module | str] = (),
    units: Iterable[nn.Module | str] = (),
    **others: Any,
) -> None:
    """Refuse, before anything is measured and scored, what :func:`make_plan` would refuse whatever the scores.

    Raises
    ------
    BudgetError, SelectionError
        As :func:`make_plan`.
    """
    _check(scope, round_to, min_channels)
    given_amounts({name: others.get(name) for name in AMOUNTS})
    select_layers(model, ignored_layers)
    select_layers(model, units, "units")


def _check(scope: str, round_to: Any, min_channels: Any) -> None:
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r}: expected 'global' or 'local'")
    known = 1 if round_to in (None, AUTO) else round_to
    for name, value in (("round_to", known), ("min_channels", min_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            also = " or 'auto'" if name == "round_to" else ""
            raise BudgetError(f"{name}={value!r}: expected a positive whole number{also}")


def share_of(graph: ChannelGraph, asked: Mapping[str, Any]) -> float:
    """The tightest of the counted budgets, as a share of what the dense model has."""
    return tightest(Problem(graph, [], Cost(graph), "global"), limits_of(asked))


def check_reach(
    graph: ChannelGraph, asked: Mapping[str, Any], timing: Device, *, min_channels: int = 1, **_: Any
) -> None:
    """Refuse a budget of time that not even the smallest widths keep, before anything is scored.

    Raises
    ------
    BudgetError
        It says what can be reached.
    """
    if timing.latency is None or not graph.groups:
        return
    flat = np.zeros(graph.structure.count)
    stairs = staircases(graph, Scores("none", flat, flat, graph), Steps(timing.step, min_channels, {}))
    check_reachable(Problem(graph, stairs, Cost(graph), "global", timing.latency), limits_of(asked))


def _chosen(
    graph: ChannelGraph,
    scores: Scores,
    asked: dict[str, Any],
    scope: str,
    steps: Steps,
    latency: Latency | None,
    time_goal: float | None,
) -> tuple[dict[int, int], Flags]:
    """How many steps each bundle loses, of the channels that are free by now, and what that keeps."""
    if not graph.groups:
        raise NothingToCutError(_nothing(graph))
    problem = Problem(graph, staircases(graph, scores, steps), Cost(graph), scope, latency, time_goal)
    taken = choose(problem, asked)
    kept = problem.kept(taken)
    if bool(kept.all()):
        raise BudgetError(_too_little(problem, asked, steps))
    return problem.levels(taken), kept


def _too_little(problem: Problem, asked: dict[str, Any], steps: Steps) -> str:
    given = ", ".join(f"{name}={amount!r}" for name, amount in asked.items() if amount is not None)
    first = [(int(s.filters[0]), int(s.channels[0])) for s in problem.stairs if len(s)]
    if not first:
        widths = f"at least min_channels={steps.min_channels}, multiples of round_to={steps.round_to}"
        return f"{given}: no channel can go; no group has a smaller width ({widths})"
    filters, channels = min(first, key=lambda step: step[0])
    least = f"the smallest step removes {channels} channels ({filters} filters)"
    return f"{given}: no channel has to go, or none can within it; {least}; ask for more"


def _nothing(graph: ChannelGraph) -> str:
    rows = [f"  {p.layer}: {p.reason}" + (f" ({p.source})" if p.source else "") for p in graph.pinned]
    rows += [f"  the forward gives {reasons.closed(kind)}" for kind in graph.trace.closed]
    if not graph.trace.results:
        rows.append(f"  the forward returned no tensor (it returned {graph.trace.returned}); return what it computes")
    return "nothing in this model can be cut:\n" + ("\n".join(rows) or "  it has no convolution or linear weight")
