"""The criterion ``auto``: several ways to share a budget out are tried, and what comes of each is compared.

Which layers can lose most depends on the network and on what is done afterwards; no formula knows. So each way is cut,
healed as asked on most of the calibration batches, and run on the others: the one whose outputs come nearest to the
dense model's is taken. Two numbers describe a way; they are improved one after the other.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria import Scores, score_all
from surgeon.criteria.gradients import expected_loss, has_targets
from surgeon.criteria.table import mixture
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.healing import heal
from surgeon.planning import make_plan
from surgeon.processes import Own, kept, own_batches, total
from surgeon.rewriting import rewrite
from surgeon.tracing import Inputs, results_of

#: How much coupled channels (residual streams) count against others; None: they go last.
COUPLINGS = (None, 3.0, 1.0)
#: Powers of the MACs. Where an end of these is best, one further is tried.
POWERS = (1.0, 1.5, 2.0)
_BEYOND = {POWERS[0]: 0.5, POWERS[-1]: 3.0}
#: Of so many batches the last judges, and is not healed on; of fewer the last as well.
_JUDGED = 4


class Way(NamedTuple):
    """How a budget is shared out: scores are ``mixture(power)``, those of coupled channels times `coupling`."""

    power: float
    coupling: float | None

    def __str__(self) -> str:
        coupled = "last" if self.coupling is None else f"x {self.coupling:g}"
        return f"auto (power {self.power:g}, coupled channels {coupled})"


@dataclass
class Automatic:
    """Chooses scores for a model and a budget.

    Attributes
    ----------
    batches:
        What is ranked on; `calibration` what is healed on and compared on.
    scoring, planning:
        Options of :func:`surgeon.score_all` and of :func:`surgeon.make_plan`.
    level:
        How the small models are healed.
    """

    batches: Iterable[Any]
    calibration: Iterable[Any]
    scoring: Mapping[str, Any]
    planning: Mapping[str, Any]
    level: str
    seed: int
    progress: Callable[[str, int, int], None]

    def __call__(self, model: nn.Module, graph: ChannelGraph, budget: Mapping[str, Any]) -> Scores:
        """The scores of the way that ends nearest to the dense model.

        Raises
        ------
        BudgetError, NothingToCutError
            If the budget can't be met in any way.
        """
        # all ways are healed on, and judged by, the same batches: a loader may draw others each time
        calibration = kept(self.calibration)
        found = self._scored(graph, calibration if self.batches is self.calibration else self.batches)
        learned, judges = _split(calibration)
        distances: dict[Way, float] = {}
        problems: list[Exception] = []

        def distance(way: Way) -> float:
            if way not in distances:
                try:
                    small = self._made(model, graph, _scores(graph, found, way), budget, learned)
                    apart = distance_between(model, small, graph.trace.inputs, judges, self.inputs_of)
                    distances[way] = apart if math.isfinite(apart) else sys.float_info.max
                except (BudgetError, NothingToCutError) as problem:
                    distances[way] = math.inf
                    problems.append(problem)
                self.progress("choose", len(distances), _count(graph))
            return distances[way]

        best = _search(graph, distance)
        if distances[best] == math.inf and problems:
            raise problems[0]
        return _scores(graph, found, best)

    def _scored(self, graph: ChannelGraph, batches: Iterable[Any]) -> Mapping[str, Scores]:
        """``obs`` and ``fisher``; where there are no targets, the latter of what the model itself expects."""
        scoring = dict(self.scoring)
        given = scoring.get("loss_fn") or scoring.get("forward_loss")
        firsts = [batch for _, batch in itertools.islice(own_batches(batches), 1)]
        (bare,) = total(torch.tensor([sum(not has_targets(batch, graph.trace.inputs) for batch in firsts)]))
        if not given and bool(bare):
            scoring["forward_loss"] = expected_loss(graph.trace.inputs, self.seed, self.inputs_of)
        return score_all(graph, ["obs", "fisher"], batches, seed=self.seed, progress=self.progress, **scoring)

    def _made(
        self, model: nn.Module, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any], learned: Own[Any]
    ) -> nn.Module:
        """What these scores leave of the model, healed."""
        plan = make_plan(graph, scores, seed=self.seed, **budget, **self.planning)
        small = rewrite(model, plan)
        return heal(model, small, plan, learned, self.level, inputs_of=self.inputs_of, seed=self.seed)

    @property
    def inputs_of(self) -> Callable[[Any], Any] | None:
        """What the model takes of a batch."""
        return self.scoring.get("inputs_of")


def _split(batches: Own[Any]) -> tuple[Own[Any], Own[Any]]:
    """What to heal on, and what to judge by: a single batch does both."""
    last = min(_JUDGED, batches.of_all) - 1
    judges = Own((number, batch) for number, batch in batches if number % _JUDGED == last)
    # those that are left are numbered anew
    learned = Own((number - number // _JUDGED, batch) for number, batch in batches if number % _JUDGED != last)
    return learned if learned.of_all else batches, judges


def _search(graph: ChannelGraph, distance: Callable[[Way], float]) -> Way:
    """The best coupling at the middle power, then the best power with it."""
    coupled = 0 < len(coupled_channels(graph)) < len(graph.removable)
    middle = POWERS[len(POWERS) // 2]
    first = min([Way(middle, coupling) for coupling in (COUPLINGS if coupled else (1.0,))], key=distance)
    best = min([first, *(first._replace(power=power) for power in POWERS if power != middle)], key=distance)
    beyond = _BEYOND.get(best.power)
    return best if beyond is None else min([best, best._replace(power=beyond)], key=distance)


def _count(graph: ChannelGraph) -> int:
    """How many ways are tried at most."""
    return len(COUPLINGS) + len(POWERS) if len(coupled_channels(graph)) else 1 + len(POWERS)


def _scores(graph: ChannelGraph, found: Mapping[str, Scores], way: Way) -> Scores:
    values = mixture(graph, found["obs"].raw, found["fisher"].raw, way.power)
    if way.coupling != 1.0:
        coupled = coupled_channels(graph)
        last = values[coupled] + values[graph.removable].max()
        values[coupled] = last if way.coupling is None else values[coupled] * way.coupling
    return Scores(str(way), values, values, graph)


def coupled_channels(graph: ChannelGraph) -> Ints:
    """Numbers of the channels that several layers make together, such as those of a residual stream."""
    found = [group.numbers for group in graph.groups if len(group.producers) > 1]
    return np.concatenate([*found, np.zeros(0, dtype=np.int64)]).astype(np.int64)


@torch.no_grad()
def distance_between(
    model: nn.Module, small: nn.Module, like: Inputs, batches: Iterable[Any],
    inputs_of: Callable[[Any], Any] | None = None,
) -> float:  # fmt: skip
    """How far the outputs of two models are apart on these batches.

    The squared error in units of the dense output's variance, a mean over batches; of class scores as well, before any
    softmax: a divergence of their softmax comes from few examples, and a hundred of them rank ways by chance.
    """
    summed, count = 0.0, 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for _, batch in own_batches(batches):
        inputs = Inputs.from_batch(batch, like, inputs_of).to(device)
        pairs = zip(_outputs(model, inputs), _outputs(small, inputs), strict=True)
        summed, count = summed + sum(_apart(a, b) for a, b in pairs), count + 1
    (sums,) = total(torch.tensor([summed, count], dtype=torch.float64))
    return float(sums[0] / sums[1].clamp_min(1))


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [tensor for tensor in results_of(model, inputs) if tensor.is_floating_point()]


def _apart(dense: Tensor, small: Tensor) -> float:
    if dense.shape != small.shape:  # the number of results depends on the data
        return 1.0
    dense, small = dense.double(), small.double()
    return float((dense - small).square().mean() / dense.var(correction=0).clamp_min(torch.finfo(torch.float64).tiny))
