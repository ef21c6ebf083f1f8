"""One cut: score, plan, rewrite, check; planned again where the check finds a difference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.criteria import Scores, score
from surgeon.errors import BudgetError, InputError, NothingToCutError, SurgeonError
from surgeon.planning import Plan, make_plan
from surgeon.rewriting import rewrite
from surgeon.rules import reasons
from surgeon.tracing import Inputs, error_site, trace
from surgeon.trial import find_misfit
from surgeon.verification import Check, Difference
from surgeon.verification import verify as run_check

#: How often a cut that the check found wrong is planned again without the channels that meet where it differs.
_MOST_REPLANS = 8


@dataclass(frozen=True)
class Cut:
    """What one cut came to; `small` is None where the model itself is to be changed and nothing has to be checked."""

    plan: Plan
    small: nn.Module | None
    check: Check | None
    inexact: tuple[str, ...]

    @property
    def graph(self) -> ChannelGraph:
        """The dense channels, with what had to be pinned."""
        assert self.plan.fitted is not None
        return self.plan.fitted.graph


class Clock:
    """Seconds of each stage, and word of it to the caller."""

    def __init__(self, progress: Callable[[str, int, int], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress or (lambda *_: None)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body."""
        self.progress(stage, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self.progress(stage, 1, 1)


@dataclass
class Cutter:
    """Cuts models of one kind by one set of options.

    Attributes
    ----------
    example_inputs:
        What the models take.
    scoring, planning:
        Options of :func:`surgeon.score` and of :func:`surgeon.make_plan`.
    verify, strict:
        Check the cut; refuse one that leaves layers whole.
    choose:
        Gives the scores in place of `scoring`, by what comes of the budget.
    """

    example_inputs: Any
    scoring: Mapping[str, Any]
    planning: Mapping[str, Any]
    verify: bool
    strict: bool
    seed: int
    clock: Clock
    dataloader: Iterable[Any] | None = None
    choose: Callable[[nn.Module, ChannelGraph, Mapping[str, Any]], Scores] | None = None

    def cut(self, module: nn.Module, budget: Mapping[str, Any], *, rewritten: bool = True) -> Cut:
        """Cut `module` down to `budget`; it stays as it is. Without `rewritten` and a check, only plan."""
        with self.clock("trace"):
            graph = read_graph(module, self.example_inputs)
        with self.clock("score"):
            scores = self._score(module, graph, budget)
        plan = self._plan(graph, scores, budget)
        if not (rewritten or self.verify):
            return Cut(plan, None, None, ())
        small = self._rewrite(module, plan)
        return self._until_exact(module, plan, small, scores, budget) if self.verify else Cut(plan, small, None, ())

    def _score(self, module: nn.Module, graph: ChannelGraph, budget: Mapping[str, Any]) -> Scores:
        if self.choose is not None:
            return self.choose(module, graph, budget)
        return score(graph, dataloader=self.dataloader, seed=self.seed, progress=self.clock.progress, **self.scoring)

    def _plan(self, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any]) -> Plan:
        with self.clock("plan"):
            plan = make_plan(graph, scores, seed=self.seed, **budget, **self.planning)
        if self.strict and plan.fitted is not None:
            _refuse_pinned(plan.fitted.graph)
        return plan

    def _rewrite(self, module: nn.Module, plan: Plan) -> nn.Module:
        with self.clock("rewrite"):
            return rewrite(module, plan)

    def _check(self, module: nn.Module, small: nn.Module, plan: Plan) -> Check:
        with self.clock("verify"):
            return run_check(module, small, plan, self.example_inputs, seed=self.seed)

    def _until_exact(
        self, module: nn.Module, plan: Plan, small: nn.Module, scores: Scores, budget: Mapping[str, Any]
    ) -> Cut:
        """Check the cut; where it differs, plan again with the channels there pinned, and say so."""
        inexact: list[str] = []
        while True:
            try:
                return Cut(plan, small, self._check(module, small, plan), tuple(inexact))
            except Difference as difference:  # noqa: PERF203  # it happens next to never
                inexact.append(f"not exact at {difference.node.meta.get('site')}: the channels there stay whole")
                if len(inexact) > _MOST_REPLANS:
                    raise
                try:
                    plan = self._plan(_without(plan, difference), scores, budget)
                except (BudgetError, NothingToCutError):
                    raise difference from None  # without those channels there is nothing left to do
                small = self._rewrite(module, plan)


def _without(plan: Plan, difference: Difference) -> ChannelGraph:
    """The graph with the channels at the difference pinned: what can't be cut exactly stays whole, and is named."""
    assert plan.fitted is not None
    graph = plan.fitted.graph
    misfit = find_misfit(graph, {}, plan.fitted.kept, difference.node, str(difference), exactly=True)
    if not len(misfit.channels):
        raise difference
    return graph.pin(misfit.channels, reasons.mixes(difference.node), misfit.source)


def read_graph(module: nn.Module, example_inputs: Any) -> ChannelGraph:
    """The channel graph of a model; a forward that rejects its inputs is the caller's error."""
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


def _refuse_pinned(graph: ChannelGraph) -> None:
    rows = [p for p in graph.pinned if p.reason not in (reasons.OUTPUT, reasons.IGNORED)]
    if rows:
        listed = "\n".join(f"  {p.layer}: {p.reason}" + (f" ({p.source})" if p.source else "") for p in rows)
        raise NothingToCutError(
            f"strict: these layers have to keep channels:\n{listed}\nname them in ignored_layers to go on"
        )
