"""One cut: score, plan, rewrite, check; planned again where the check finds a difference."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.cost import Latency
from surgeon.criteria import Scores, score
from surgeon.deadline import TOLERANCE, Candidate, Timing, as_fast, within_time
from surgeon.errors import BudgetError, InexactError, InputError, NothingToCutError, SurgeonError, VerificationError
from surgeon.measure import Comparison, latency, rounds_for
from surgeon.planning import (
    AUTO,
    TIME,
    Device,
    Plan,
    check_options,
    check_reach,
    make_plan,
    seconds_of,
    share_of,
    timing_of,
)
from surgeon.processes import agree, from_first
from surgeon.rewriting import rewrite
from surgeon.rules import reasons
from surgeon.tracing import Inputs, error_site, trace
from surgeon.trial import find_misfit
from surgeon.verification import Check, Difference
from surgeon.verification import verify as run_check

_log = logging.getLogger("surgeon")
#: How often a cut that the check found wrong is planned again without the channels that meet where it differs.
_MOST_REPLANS = 8
#: Least interleaved rounds in which a cut model is timed beside the dense one.
TIMED_ROUNDS = 15


@dataclass(frozen=True)
class Cut:
    """What one cut came to; `small` is None where the model itself is to be changed and nothing has to be checked.

    `scores` are those that it was planned by, None for several cuts as one; `timing` is there where time was planned
    with.
    """

    plan: Plan
    small: nn.Module | None
    check: Check | None
    inexact: tuple[str, ...]
    scores: Scores | None = None
    timing: Timing | None = None

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
        seconds = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        _log.info("%s: %.3f s", stage, seconds, extra={"stage": stage, "seconds": seconds})
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
        try:
            return self._cut(module, graph, budget, rewritten=rewritten)
        except VerificationError:
            if not graph.trace.by_shapes:
                raise
        # the forward may run otherwise than its shapes alone said
        with self.clock("trace"):
            graph = read_graph(module, self.example_inputs, real=True)
        return self._cut(module, graph, budget, rewritten=rewritten)

    def _cut(self, module: nn.Module, graph: ChannelGraph, budget: Mapping[str, Any], *, rewritten: bool) -> Cut:
        check_options(graph.trace.model, **budget, **self.planning)
        timed = TIME in budget or self.planning.get("round_to") == AUTO
        with self.clock("latency table") if timed else contextlib.nullcontext():
            device = timing_of(graph, budget, self.planning.get("round_to"), progress=self.clock.progress)
            check_reach(graph, budget, device, **self.planning)
        with self.clock("score"):
            scores = self._score(module, graph, budget)
        return replace(self._scored(module, graph, scores, budget, device, rewritten=rewritten), scores=scores)

    def _scored(
        self,
        module: nn.Module,
        graph: ChannelGraph,
        scores: Scores,
        budget: Mapping[str, Any],
        device: Device,
        *,
        rewritten: bool,
    ) -> Cut:
        """Plan by these scores, and cut."""
        if TIME in budget:
            return self._in_time(module, graph, scores, budget, device)
        if device.latency is not None:
            return self._as_fast(module, graph, scores, budget, device.latency)
        plan = self._plan(graph, scores, budget, None)
        if not (rewritten or self.verify):
            return Cut(plan, None, None, ())
        return self._checked(module, plan, self._rewrite(module, plan), scores, budget, None)

    def _as_fast(
        self, module: nn.Module, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any], predicted: Latency
    ) -> Cut:
        """Cut within counted budgets, so that the model itself is as fast as they are tight."""

        def make(goal: float | None) -> tuple[Cut, Mapping[str, float]]:
            plan = self._plan(graph, scores, {**budget, "time_goal": goal}, predicted)
            return Cut(plan, self._rewrite(module, plan), None, ()), plan.budget["predicted_latency"]

        best, tries = as_fast(share_of(graph, budget), make, lambda cut: self._measure(module, cut))
        return self._best(module, best, tries, scores, budget, predicted)

    def _in_time(
        self, module: nn.Module, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any], device: Device
    ) -> Cut:
        """Cut until the model itself takes what was asked for."""
        assert device.latency is not None
        amount, dense = budget[TIME], device.latency.seconds(np.ones(graph.structure.count, dtype=bool))

        def make(share: float) -> tuple[Cut, Mapping[str, float]]:
            plan = self._plan(graph, scores, {**budget, TIME: share}, device.latency)
            plan = replace(plan, budget={**plan.budget, TIME: amount})
            return Cut(plan, self._rewrite(module, plan), None, ()), plan.budget["predicted_latency"]

        first = seconds_of(TIME, amount, dense) / dense
        best, tries = within_time(amount, make, lambda cut: self._measure(module, cut), first)
        return self._best(module, best, tries, scores, budget, device.latency)

    def _best(
        self, module: nn.Module, best: Candidate[Cut], tries: int, scores: Scores, budget: Mapping[str, Any],
        predicted: Latency,
    ) -> Cut:  # fmt: skip
        """The cut that was chosen by its time, checked; one that had to be planned again is timed again."""
        cut = best.made
        assert cut.small is not None
        checked = self._checked(module, cut.plan, cut.small, scores, budget, predicted)
        if checked.plan is not cut.plan:
            return self._timed(module, checked)
        return replace(checked, timing=Timing.of(budget.get(TIME), best.predicted, best.measured, tries))

    def _timed(self, module: nn.Module, cut: Cut) -> Cut:
        """The cut with its measured time, where time was planned with."""
        predicted = cut.plan.budget.get("predicted_latency")
        if predicted is None or cut.small is None:
            return cut
        timing = Timing.of(cut.plan.budget.get(TIME), predicted, self._measure(module, cut))
        if timing.limit is not None and timing.measured["latencies"][1]["median"] > timing.limit * (1 + TOLERANCE):
            raise BudgetError(f"{TIME}: out of reach without the channels that could not be cut exactly; allow more")
        return replace(cut, timing=timing)

    def _measure(self, module: nn.Module, cut: Cut) -> Comparison:
        assert cut.small is not None
        models, inputs = {"dense": module, "small": cut.small}, Inputs.of(self.example_inputs)
        rounds = rounds_for(sum(cut.plan.budget["predicted_latency"].values()), TIMED_ROUNDS)
        with self.clock("time"):
            return Comparison.from_dict(from_first(lambda: latency(models, inputs, rounds=rounds).to_dict()))

    def _checked(
        self, module: nn.Module, plan: Plan, small: nn.Module, scores: Scores, budget: Mapping[str, Any],
        predicted: Latency | None,
    ) -> Cut:  # fmt: skip
        if not self.verify:
            return Cut(plan, small, None, ())
        return self._until_exact(module, plan, small, scores, budget, predicted)

    def _score(self, module: nn.Module, graph: ChannelGraph, budget: Mapping[str, Any]) -> Scores:
        if self.choose is not None:
            return self.choose(module, graph, budget)
        return score(graph, dataloader=self.dataloader, seed=self.seed, progress=self.clock.progress, **self.scoring)

    def _plan(self, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any], predicted: Latency | None) -> Plan:
        with self.clock("plan"):
            plan = make_plan(graph, scores, seed=self.seed, latency=predicted, **budget, **self.planning)
            agree("plans", plan.to_json)
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
        self, module: nn.Module, plan: Plan, small: nn.Module, scores: Scores, budget: Mapping[str, Any],
        predicted: Latency | None,
    ) -> Cut:  # fmt: skip
        """Check the cut; where it differs, plan again with the channels there pinned, and say so."""
        inexact: list[str] = []
        while True:
            try:
                return Cut(plan, small, self._check(module, small, plan), tuple(inexact))
            except Difference as difference:  # noqa: PERF203  # it happens next to never
                inexact.append(f"not exact at {difference.node.meta.get('site')}: the channels there stay whole")
                _log.warning(inexact[-1], extra={"stage": "verify"})
                if len(inexact) > _MOST_REPLANS:
                    raise
                try:
                    plan = self._plan(_without(plan, difference), scores, budget, predicted)
                except (BudgetError, NothingToCutError) as refusal:
                    where = "without the channels that can't be cut exactly"
                    raise InexactError(f"{where}: {refusal}\n{difference}") from None
                small = self._rewrite(module, plan)


def _without(plan: Plan, difference: Difference) -> ChannelGraph:
    """The graph with the channels at the difference pinned: what can't be cut exactly stays whole, and is named."""
    assert plan.fitted is not None
    graph = plan.fitted.graph
    misfit = find_misfit(graph, {}, plan.fitted.kept, difference.node, str(difference), exactly=True)
    if not len(misfit.channels):
        raise difference
    return graph.pin(misfit.channels, reasons.mixes(difference.node), misfit.source)


def read_graph(module: nn.Module, example_inputs: Any, *, real: bool = False) -> ChannelGraph:
    """The channel graph of a model; an InputError, which the forward's own error caused, if it rejects its inputs."""
    try:
        recording = trace(module, Inputs.of(example_inputs), real=real)
    except SurgeonError:
        raise
    except Exception as problem:
        where = error_site(problem, {id(m): name for name, m in module.named_modules()})
        told = f"the model's forward rejects the example inputs at {where}: {type(problem).__name__}: {problem}; "
        raise InputError(f"{told}pass example_inputs that model(*args, **kwargs) runs on") from problem
    graph = channel_graph(recording)
    if recording.by_shapes and graph.structure.labels.failed:  # real kernels may refuse what those without numbers take
        return read_graph(module, example_inputs, real=True)
    return graph


def _refuse_pinned(graph: ChannelGraph) -> None:
    rows = [p for p in graph.pinned if p.reason not in (reasons.OUTPUT, reasons.IGNORED)]
    if rows:
        listed = "\n".join(f"  {p.layer}: {p.reason}" + (f" ({p.source})" if p.source else "") for p in rows)
        raise NothingToCutError(
            f"strict: these layers have to keep channels:\n{listed}\nname them in ignored_layers to go on"
        )
