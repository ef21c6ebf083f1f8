"""Planning: scores and a budget make a plan that the user's own forward has been tried with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.cost import Cost
from surgeon.criteria import Scores
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.planning.budgets import LIMITS, Problem, choose, smallest
from surgeon.planning.moves import Steps, staircases
from surgeon.planning.plan import Plan, removed_by_group
from surgeon.planning.repair import Repair
from surgeon.planning.selection import channels_in, channels_made_by, select_layers
from surgeon.planning.shares import NoSuchWidthError, Shares
from surgeon.rules import reasons
from surgeon.tracing import outside_inference_mode
from surgeon.trial import Misfit

__all__ = ["LIMITS", "Plan", "make_plan", "select_layers", "smallest"]


@outside_inference_mode
def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    filters: int | None = None,
    ratio: float | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    scope: str = "global",
    round_to: int | None = None,
    ignored_layers: Iterable[nn.Module | str] = (),
    units: Iterable[nn.Module | str] = (),
    min_channels: int = 1,
    seed: int = 0,
) -> Plan:
    """Choose the channels to remove, least useful first, and try the widths on the model's own forward.

    A group whose widths the forward doesn't follow (a constant in it) is pinned and the rest planned again; which
    ones, and the source line, stands in ``plan.fitted.graph.pinned``.

    Parameters
    ----------
    filters:
        Remove this many convolution filters; coupled ones each count. Never more, and as near as can be.
    ratio:
        Remove this share of the channels.
    max_macs, max_params:
        Keep within: a share (0.5, ``"50%"``) or an absolute number.
    scope:
        ``"global"``: rank all groups against each other. ``"local"``: the same share of every group.
    round_to:
        Widths of cut layers are multiples of this.
    ignored_layers:
        Modules, names or globs that keep all their filters; a container stands for everything in it.
    units:
        Likewise; modules that stay as they are: every tensor in them, and all that enters and leaves them.
    min_channels:
        No group keeps fewer.

    Raises
    ------
    BudgetError
        If the amount is missing, contradictory or out of reach.
    SelectionError
        If a name in `ignored_layers` or `units` matches nothing.
    NothingToCutError
        If nothing can be cut; the message says why, layer by layer.
    """
    asked = {"filters": filters, "ratio": ratio, "max_macs": max_macs, "max_params": max_params}
    _check(scope, round_to, min_channels)
    ignored = select_layers(graph.trace.model, ignored_layers)
    graph = graph.pin(channels_made_by(graph, ignored), reasons.IGNORED)
    graph = graph.pin(channels_in(graph, select_layers(graph.trace.model, units, "units")), reasons.IGNORED)
    repair = Repair(graph)
    shares = Shares()
    while True:
        try:
            steps = Steps(round_to or 1, min_channels, shares.blocked)
            levels, kept = _chosen(repair.graph, scores, asked, scope, steps)
            kept = shares.settle(repair.graph, scores, levels, kept)
            fitted = repair.fit(kept)
            break
        except Misfit as misfit:
            repair.after(misfit)
        except NoSuchWidthError:  # it is blocked now
            continue
        except (BudgetError, NothingToCutError):
            if not repair.undone():
                raise
    graph = repair.graph
    budget = {k: v for k, v in asked.items() if v is not None} | {"scope": scope, "min_channels": min_channels}
    budget |= {"round_to": round_to} if round_to else {}
    inputs = graph.trace.inputs.spec()
    name = type(graph.trace.model).__name__
    return Plan(name, removed_by_group(graph, kept), inputs, budget, scores.criterion, seed, fitted)


def _check(scope: str, round_to: Any, min_channels: Any) -> None:
    if scope not in ("global", "local"):
        raise BudgetError(f"scope={scope!r}: expected 'global' or 'local'")
    for name, value in (("round_to", 1 if round_to is None else round_to), ("min_channels", min_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BudgetError(f"{name}={value!r}: expected a positive whole number")


def _chosen(
    graph: ChannelGraph, scores: Scores, asked: dict[str, Any], scope: str, steps: Steps
) -> tuple[dict[int, int], Flags]:
    """How many steps each bundle loses, of the channels that are free by now, and what that keeps."""
    if not graph.groups:
        raise NothingToCutError(_nothing(graph))
    problem = Problem(graph, staircases(graph, scores, steps), Cost(graph), scope)
    taken = choose(problem, asked)
    kept = problem.kept(taken)
    if bool(kept.all()):
        raise BudgetError(_too_little(problem, asked))
    return problem.levels(taken), kept


def _too_little(problem: Problem, asked: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={amount!r}" for name, amount in asked.items() if amount is not None)
    first = [(int(s.filters[0]), int(s.channels[0])) for s in problem.stairs if len(s)]
    filters, channels = min(first, key=lambda step: step[0], default=(0, 0))
    least = f"; the smallest step removes {channels} channels ({filters} filters)" if first else ""
    return f"{given}: no channel has to go, or none can within it{least}; ask for more"


def _nothing(graph: ChannelGraph) -> str:
    rows = [f"  {p.layer}: {p.reason}" + (f" ({p.source})" if p.source else "") for p in graph.pinned]
    return "nothing in this model can be cut:\n" + ("\n".join(rows) or "  it has no convolution or linear weight")
