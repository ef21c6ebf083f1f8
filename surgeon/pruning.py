"""``prune``: the whole pipeline in one call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.criteria import Request, Scores, find_criterion, score
from surgeon.criteria.table import Floats, ForwardLoss
from surgeon.errors import BudgetError, InputError, ModelError, NothingToCutError, ScoreError, SurgeonError
from surgeon.planning import Plan, make_plan
from surgeon.report import Report, make_report, tensor_bytes
from surgeon.rewriting import rewrite
from surgeon.rules import reasons
from surgeon.tracing import Inputs, check_model, error_site, outside_inference_mode, trace
from surgeon.tracing import as_graph as to_graph
from surgeon.trial import find_misfit
from surgeon.verification import Check, Difference
from surgeon.verification import verify as run_check


@dataclass(frozen=True)
class Result:
    """What :func:`prune` gives back: the smaller model, the plan that made it, and the report."""

    model: nn.Module
    plan: Plan
    report: Report


@outside_inference_mode
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    filters: int | None = None,
    ratio: float | None = None,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    criterion: str | Callable[[Request], Floats] = "taylor",
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    forward_loss: ForwardLoss | None = None,
    scope: str = "global",
    round_to: int | None = None,
    ignored_layers: Iterable[nn.Module | str] = (),
    units: Iterable[nn.Module | str] = (),
    min_channels: int = 1,
    verify: bool = True,
    strict: bool = False,
    inplace: bool = False,
    as_graph: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Cut the least useful channels out of `model` and prove that the cut is right.

    Parameters
    ----------
    model, example_inputs:
        Any eager module, and what its forward takes: a tensor, a tuple of arguments, or :class:`surgeon.Inputs`.
    filters, ratio, max_macs, max_params, scope, round_to, ignored_layers, units, min_channels:
        How much, and how: see :func:`surgeon.make_plan`.
    criterion, dataloader, loss_fn, forward_loss:
        What ranks the channels: see :func:`surgeon.score`.
    verify:
        Check the cut model (:func:`surgeon.verify`); a failure raises and nothing is returned.
    strict:
        Fail if a layer that isn't an output and wasn't ignored has to keep channels.
    inplace:
        Change `model` itself (after the check has passed).
    as_graph:
        Make it a ``torch.fx.GraphModule`` first. Widths that the forward spells out (``x.view(-1, 8 * 36)``) are then
        rewritten, where else their channels stay; the class is the only other thing that changes, and
        :func:`surgeon.load` needs no class of yours.
    seed:
        For everything that draws.
    progress:
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ModelError, InputError, BudgetError, SelectionError, NothingToCutError, ScoreError, VerificationError
        Each says where, what came, what was expected and what to do next. The model is untouched then.
    """
    clock = _Clock(progress)
    module = check_model(model)
    _check_early(criterion, dataloader)
    if as_graph:
        ignored_layers = _by_name(module, ignored_layers)
        module = _graph_module(module, example_inputs, inplace=inplace, units=units)
    with clock("trace"):
        graph = _graph(module, example_inputs)
    with clock("score"):
        scores: Scores = score(
            graph, criterion, dataloader, loss_fn, forward_loss=forward_loss, seed=seed, progress=progress
        )

    def planned(graph: ChannelGraph) -> tuple[Plan, nn.Module]:
        with clock("plan"):
            plan = make_plan(
                graph, scores, filters=filters, ratio=ratio, max_macs=max_macs, max_params=max_params, scope=scope,
                round_to=round_to, ignored_layers=ignored_layers, units=units, min_channels=min_channels, seed=seed,
            )  # fmt: skip
        if strict and plan.fitted is not None:
            _refuse_pinned(plan.fitted.graph)
        if inplace and not verify:
            return plan, module  # cut at the end, once
        with clock("rewrite"):
            return plan, rewrite(module, plan)

    def checked(plan: Plan, small: nn.Module) -> Check:
        with clock("verify"):
            return run_check(module, small, plan, example_inputs, seed=seed)

    plan, small = planned(graph)
    check, inexact = None, list[str]()
    if verify:
        plan, small, check, inexact = _until_exact(plan, small, planned, checked)
    assert plan.fitted is not None
    graph = plan.fitted.graph
    report = make_report(graph, plan.kept(graph), check, (*inexact, *_notes(graph, plan)))
    if inplace:
        with clock("rewrite"):
            small = rewrite(model, plan, inplace=True)
    report = replace(report, bytes_after=tensor_bytes(small), seconds=dict(clock.seconds))
    return Result(small, replace(plan, fitted=None), report)


#: How often a cut that the check found wrong is planned again without the channels that meet where it differs.
_MOST_REPLANS = 8


def _until_exact(
    plan: Plan,
    small: nn.Module,
    planned: Callable[[ChannelGraph], tuple[Plan, nn.Module]],
    checked: Callable[[Plan, nn.Module], Check],
) -> tuple[Plan, nn.Module, Check, list[str]]:
    """Check the cut; where it differs, plan again with the channels there pinned, and say so."""
    inexact: list[str] = []
    while True:
        try:
            return plan, small, checked(plan, small), inexact
        except Difference as difference:  # noqa: PERF203  # it happens next to never
            inexact.append(f"not exact at {difference.node.meta.get('site')}: the channels there stay whole")
            if len(inexact) > _MOST_REPLANS:
                raise
            try:
                plan, small = planned(_without(plan, difference))
            except (BudgetError, NothingToCutError):
                raise difference from None  # without those channels there is nothing left to do


def _without(plan: Plan, difference: Difference) -> ChannelGraph:
    """The graph with the channels at the difference pinned: what can't be cut exactly stays whole, and is named."""
    assert plan.fitted is not None
    graph = plan.fitted.graph
    misfit = find_misfit(graph, {}, plan.fitted.kept, difference.node, str(difference), exactly=True)
    if not len(misfit.channels):
        raise difference
    return graph.pin(misfit.channels, reasons.mixes(difference.node), misfit.source)


class _Clock:
    """Seconds of each stage, and word of it to the caller."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or (lambda *_: None)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._progress(stage, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self._progress(stage, 1, 1)


def _check_early(criterion: str | Callable[[Request], Floats], dataloader: Iterable[Any] | None) -> None:
    """What would fail after minutes of work fails now."""
    name, chosen = find_criterion(criterion)
    if chosen.needs_data and dataloader is None:
        raise ScoreError(
            f"criterion {name!r} needs data: pass dataloader=..., or criterion='magnitude', which needs none"
        )


def _graph(module: nn.Module, example_inputs: Any) -> ChannelGraph:
    try:
        return channel_graph(trace(module, Inputs.of(example_inputs)))
    except SurgeonError:
        raise
    except Exception as problem:
        where = error_site(problem, {id(m): name for name, m in module.named_modules()})
        raise InputError(
            f"the model's forward rejects the example inputs at {where}: {type(problem).__name__}: {problem}; "
            "pass example_inputs that model(*args, **kwargs) runs on"
        ) from problem


def _graph_module(model: nn.Module, example_inputs: Any, *, inplace: bool, units: Iterable[Any]) -> nn.Module:
    if inplace:
        raise ModelError("a graph is a new module: give as_graph=True or inplace=True, not both")
    if units:
        raise ModelError("a graph takes modules apart: give as_graph=True or units, not both")
    return to_graph(model, example_inputs)


def _by_name(model: nn.Module, layers: Iterable[nn.Module | str]) -> list[nn.Module | str]:
    """The same layers by name: a graph has containers of its own."""
    names = {part: name for name, part in model.named_modules()}
    return [names.get(layer, layer) if isinstance(layer, nn.Module) else layer for layer in layers]


def _refuse_pinned(graph: ChannelGraph) -> None:
    rows = [p for p in graph.pinned if p.reason not in (reasons.OUTPUT, reasons.IGNORED)]
    if rows:
        listed = "\n".join(f"  {p.layer}: {p.reason}" + (f" ({p.source})" if p.source else "") for p in rows)
        raise NothingToCutError(
            f"strict: these layers have to keep channels:\n{listed}\nname them in ignored_layers to go on"
        )


def _notes(graph: ChannelGraph, plan: Plan) -> tuple[str, ...]:
    constants = [p for p in graph.pinned if p.reason.startswith("constant")]
    kept = [f"{p.layer} keeps {p.channels} of {p.of} channels: {p.reason}" for p in constants]
    held = plan.fitted.settings if plan.fitted is not None else {}
    return (*kept, *(f"{target} is now {value}" for target, value in held.items()))
