"""Groups of coupled channels, cut out one group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from surgeon.channels import ChannelGraph, Pin
from surgeon.channels.bundles import Bundle
from surgeon.cost import Cost
from surgeon.criteria import Scores, score
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.planning import Plan, make_plan
from surgeon.rewriting import rewrite
from surgeon.rules import reasons
from surgeon.sweeps.judging import Judge, matching
from surgeon.sweeps.results import WHOLE, Curve, Point
from surgeon.tuning import Validation

__all__ = ["FilterSweep", "swept", "tried"]


def tried(graph: ChannelGraph, seed: int) -> ChannelGraph:
    """The graph with what the forward's own constants hold pinned: known once some plan was tried with it."""
    try:
        plan = make_plan(graph, score(graph, "random", seed=seed), ratio=0.5, scope="local")
    except BudgetError:  # every width goes in larger steps
        return graph
    return graph if plan.fitted is None else plan.fitted.graph


def swept(graph: ChannelGraph, layers: Sequence[str]) -> list[Bundle]:
    """What has one of these layers."""
    return [bundle for bundle in graph.bundles if matching(_layers_of(bundle), layers)]


@dataclass
class FilterSweep:
    """Cuts bundles of groups out of a model."""

    model: nn.Module
    graph: ChannelGraph
    scores: Scores
    ratios: Sequence[float]
    judge: Judge
    seed: int

    def curves(self, layers: Sequence[str]) -> Iterator[Curve]:
        """The whole network, the groups with one of these layers, and what of them can't be cut."""
        bundles = swept(self.graph, layers)
        self.judge.total = (len(bundles) + 1) * len(self.ratios)
        everything = [group for bundle in self.graph.bundles for group in bundle.groups]
        size = sum(group.size for group in everything)
        yield self._curve(WHOLE, tuple(dict.fromkeys(p for g in everything for p in g.producers)), size, self.graph)
        for bundle in bundles:
            name = " + ".join(group.name for group in bundle.groups)
            size = sum(group.size for group in bundle.groups)
            yield self._curve(name, _layers_of(bundle), size, self._alone(bundle))
        yield from (_held(pin) for pin in self.graph.pinned if matching([pin.layer], layers))

    def _alone(self, bundle: Bundle) -> ChannelGraph:
        """The graph in which nothing else may go."""
        others = [group.numbers for other in self.graph.bundles if other is not bundle for group in other.groups]
        return self.graph.pin(np.concatenate(others), reasons.IGNORED) if others else self.graph

    def _curve(self, name: str, layers: tuple[str, ...], size: int, graph: ChannelGraph) -> Curve:
        try:
            points = tuple(
                self.judge.point(name, ratio, lambda ratio=ratio: self._point(graph, ratio, name))  # type: ignore[misc]
                for ratio in self.ratios
            )
        except NothingToCutError as problem:
            self.judge.step(len(self.ratios))
            return Curve(name, layers, size, (), _why(problem, layers))
        return Curve(name, layers, size, points)

    def _point(self, graph: ChannelGraph, ratio: float, name: str) -> Point:
        try:
            scope = "global" if name == WHOLE else "local"
            plan = make_plan(graph, self.scores, ratio=ratio, scope=scope, seed=self.seed)
        except BudgetError:  # its width goes in larger steps
            return Point(ratio, 0, None, None, None, 1.0)
        return self._measured(plan, ratio, self.judge(rewrite(self.model, plan)))

    def _measured(self, plan: Plan, ratio: float, seen: Validation) -> Point:
        kept, cost = plan.kept(self.graph), Cost(self.graph)
        gone = self.scores.raw[~kept]
        macs = cost.macs(kept) / cost.macs(cost.everything())
        return Point(ratio, len(gone), float(gone.max()), seen.loss, seen.accuracy, macs)


def _layers_of(bundle: Bundle) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for group in bundle.groups for layer in group.producers))


def _held(pin: Pin) -> Curve:
    return Curve(pin.layer, (pin.layer,), pin.channels, (), pin.reason, pin.source)


def _why(problem: NothingToCutError, layers: Sequence[str]) -> str:
    """What the planner says about these layers."""
    lines = [line.strip() for line in str(problem).splitlines()]
    found = [line.partition(": ")[2] for line in lines if line.partition(":")[0] in layers]
    return next((reason for reason in found if reason != reasons.IGNORED), lines[0])
