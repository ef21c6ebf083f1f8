"""Verification: the cut model against the dense one with the removed channels silenced, at every node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.channels import channel_graph
from surgeon.errors import VerificationError
from surgeon.exclusive import one_at_a_time
from surgeon.planning import Plan
from surgeon.rules import reasons
from surgeon.tracing import (
    Inputs,
    Trace,
    Unfinished,
    check_model,
    named_tensors,
    operator_name,
    outside_inference_mode,
    record,
    trace,
    unwrap,
)
from surgeon.trial import Fit, Misfit, fit_recording, next_call, same_calls
from surgeon.verification.comparison import Outcome, run_side_by_side
from surgeon.verification.silencing import Silencer
from surgeon.verification.twin import codes, redraw

__all__ = ["OWN_TOLERANCE", "TWIN_TOLERANCE", "Check", "Difference", "Silencer", "verify"]

#: Largest relative error at any node, on redrawn weights in float64 and on the user's own in float32 and float64.
TWIN_TOLERANCE, OWN_TOLERANCE, OWN_DOUBLE_TOLERANCE = 1e-9, 1e-4, 1e-9
_DRAWS = 4
#: Tensors by name, of the dense recording and of the small one.
Pair = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


class Difference(VerificationError):
    """A verification that failed at a known dense node."""

    def __init__(self, message: str, node: fx.Node) -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class Check:
    """Outcome of a verification that didn't fail.

    Attributes
    ----------
    status:
        ``"passed"``; ``"unproven"`` where a comparison that matters says nothing (zero, not finite, not aligned).
    error:
        Largest relative error at any node on redrawn weights, float64.
    own_error:
        The same on the user's own weights, float32 (float64 for float64 models, and where float32 rounds too much).
    nodes:
        How many nodes were compared.
    unproven:
        Layers or operators whose comparison says nothing, and results that may compute more than was recorded.
    kept_statistics:
        Layers whose statistics run over kept channels only: the cut is exact in that sense.
    stopped:
        What ended a comparison early, and where: the error of a call that redrawn numbers or wider types don't suit.
    """

    status: str
    error: float
    own_error: float
    nodes: int
    unproven: tuple[str, ...]
    kept_statistics: tuple[str, ...] = ()
    stopped: str = ""


@outside_inference_mode
@one_at_a_time
def verify(model: nn.Module, small: nn.Module, plan: Plan, example_inputs: Any, *, seed: int = 0) -> Check:
    """Prove that `small` is `model` without the plan's channels.

    Both forwards are recorded and run in lock-step: first on a twin with redrawn float64 weights, then on their own.
    At every node the places that are kept must agree, relative to the node's own scale. Verify before training or
    healing: `small` must still hold the dense model's own numbers.

    Parameters
    ----------
    model, small, plan:
        The dense model, what it was cut to, and by which plan.
    example_inputs:
        What both run on: a tensor, a tuple of arguments, or :class:`surgeon.Inputs`.
    seed:
        Of the redrawn weights.

    Raises
    ------
    VerificationError
        If they differ; the message names the first node that does.
    """
    dense, other = check_model(model), unwrap(small)
    inputs = Inputs.of(example_inputs)
    fitted = _read(dense, other, plan, inputs)
    _runs_freely(fitted, other, inputs)
    own = {**fitted.graph.trace.tensors, **named_tensors(dense)}, fitted.small.labels.trace.tensors
    return check_fit(fitted, own, lambda draw: _twins(fitted, seed + draw), inputs)


def check_fit(fitted: Fit, own: Pair, twins: Callable[[int], Pair], inputs: Inputs | None = None) -> Check:
    """Compare the dense and the small recording on redrawn tensors, then on their own; see :func:`verify`.

    Parameters
    ----------
    own:
        The tensors of the dense one and of the small one, by name; each is read when its turn comes.
    twins:
        Gives redrawn ones, others for each number.
    inputs:
        What to run on; default: what was recorded.

    Raises
    ------
    VerificationError
        If they differ.
    """
    silenced = Silencer(fitted.graph, fitted.kept)
    first = _on_twins(fitted, silenced, twins, inputs)
    second = _on_their_own(fitted, silenced, own, inputs)
    _same_weights(fitted, *own)
    return _check(fitted, first, second)


def _read(dense: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> Fit:
    """Fit the real small model: its own forward is recorded, whatever the trial said."""
    known = plan.fitted.graph if plan.fitted is not None else None
    if known is None or known.trace.model is not dense or not _holds_for(known.trace, inputs):
        known = channel_graph(trace(dense, inputs, real=True))
    try:
        recording = record(small, inputs, known.trace)
        if known.trace.by_shapes and not same_calls(recording.graph, known.trace.graph):
            raise VerificationError("the forward runs otherwise than its shapes alone said")
        return fit_recording(known, recording, plan.kept(known))
    except Unfinished as stop:
        raise VerificationError(f"the cut model's forward fails: {stop.__cause__}") from stop
    except Misfit as misfit:
        site = misfit.node.meta.get("site")
        raise VerificationError(f"the cut model differs from the dense one at {site}: {misfit.why}") from misfit


def _holds_for(known: Trace, inputs: Inputs) -> bool:
    """Whether a recording is one of these inputs: of the same, or of others whose numbers have no say in it."""
    if known.inputs.key != inputs.key:
        return False
    return known.reusable or all(
        mine is theirs or torch.equal(mine, theirs)
        for mine, theirs in zip(known.inputs.leaves(), inputs.leaves(), strict=True)
        if isinstance(mine, Tensor)
    )


def _runs_freely(fitted: Fit, small: nn.Module, inputs: Inputs) -> None:
    """Let the cut model decide for itself on the example, as it will: it may come where the dense one didn't."""
    dense = fitted.graph.trace
    if not dense.decisions:
        return
    try:
        record(small, inputs)
    except Unfinished as stop:
        node = next_call(stop.graph, dense.graph) or dense.calls[-1]
        why = f"the cut model fails on its own decisions at {_describe(node)}: {stop.__cause__}"
        raise Difference(why, node) from stop


def _same_weights(fitted: Fit, dense: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> None:
    """Every tensor of the small model holds the dense model's numbers: behind dead channels no run would tell."""
    nodes = {str(n.target): n for n in fitted.graph.trace.graph.nodes if n.op == "get_attr"}
    for name, tensor in small.items():
        if name.startswith("_constant_") or name not in dense:
            continue
        expected = fitted.gather(name, dense[name].detach())
        if not torch.equal(torch.nan_to_num(expected), torch.nan_to_num(tensor)):
            users = list(nodes[name].users) if name in nodes else []
            where = f", first read by {_describe(users[0])}" if users else ""
            raise VerificationError(f"{name} of the cut model doesn't hold the dense model's numbers{where}")


def _on_their_own(fitted: Fit, silenced: Silencer, own: Pair, inputs: Inputs | None) -> Outcome:
    """Compare on the user's weights; where they make much of rounding, double precision tells it from a difference."""
    kinds = {node.meta["dtype"] for node in fitted.graph.trace.graph.nodes if node.op == "get_attr"}
    if torch.float64 not in kinds:
        found = run_side_by_side(fitted, silenced, *own, torch.float32, OWN_TOLERANCE, inputs)
        if found.failure is None:
            return found
    found = run_side_by_side(fitted, silenced, *own, torch.float64, OWN_DOUBLE_TOLERANCE, inputs)
    _raise(found, "on the model's own weights", OWN_DOUBLE_TOLERANCE)
    return found


def _twins(fitted: Fit, seed: int) -> Pair:
    """Redrawn tensors of both recordings."""
    trace = fitted.graph.trace
    kept_codes = codes(trace.graph)
    drawn = {name: tensor for name, tensor in trace.tensors.items() if name not in kept_codes}
    twin = redraw(drawn, seed) | {name: trace.tensors[name].double() for name in kept_codes}
    return twin, {name: fitted.gather(name, value) for name, value in twin.items()}


def _on_twins(fitted: Fit, silenced: Silencer, twins: Callable[[int], Pair], inputs: Inputs | None) -> Outcome:
    """Compare on redrawn weights; where a draw silences a node (one channel behind a ReLU), another may prove it."""
    result = Outcome()
    for draw in range(_DRAWS):
        found = run_side_by_side(fitted, silenced, *twins(draw), torch.float64, TWIN_TOLERANCE, inputs)
        _raise(found, "on redrawn weights", TWIN_TOLERANCE)
        missing = set(found.unproven) if not draw else set(found.unproven) & set(result.unproven)
        result = Outcome(
            max(result.worst, found.worst), max(result.nodes, found.nodes), None, sorted(missing), found.stopped
        )
        if not missing & _needed(fitted):
            break
    return result


def _needed(fitted: Fit) -> set[fx.Node]:
    """Dense nodes that have to be compared: contractions and results."""
    return {work.node for work in fitted.graph.structure.labels.ledger.work} | set(fitted.graph.trace.results)


def _raise(result: Outcome, where: str, tolerance: float) -> None:
    if result.failure is not None:
        node, error = result.failure
        raise Difference(
            f"the cut model differs from the silenced dense one {where}: first at {_describe(node)}, "
            f"relative error {error:.2g} (allowed {tolerance:.0e}); nothing was returned",
            node,
        )


def _describe(node: fx.Node) -> str:
    return f"{operator_name(node)} in {node.meta.get('site')}"


def _check(fitted: Fit, first: Outcome, second: Outcome) -> Check:
    ledger = fitted.graph.structure.labels.ledger
    needed, results = _needed(fitted), fitted.graph.trace.results
    missing = [n for n in first.unproven if n in needed] + [n for n in second.unproven if n in results]
    closed = [reasons.closed(kind) for kind in fitted.graph.trace.closed]
    statistics = dict.fromkeys(str(node.meta["site"].path) for node in ledger.statistics)
    return Check(
        "passed" if not (missing or closed) and first.nodes else "unproven",
        first.worst, second.worst, first.nodes,
        tuple(dict.fromkeys([*map(_describe, missing), *closed])), tuple(statistics),
        (first.stopped or second.stopped) if missing else "",
    )  # fmt: skip
