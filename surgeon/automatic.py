"""The criterion ``auto``: several ways to share a budget out are tried, and what comes of each is compared.

Which layers can lose most depends on the network and on what is done afterwards; no formula knows. So each way is cut,
healed as asked, and run on the calibration batches: the one whose outputs come nearest to the dense model's is taken.
No labels decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria import Scores, score_all
from surgeon.criteria.table import mixture
from surgeon.errors import BudgetError, NothingToCutError
from surgeon.healing import heal
from surgeon.planning import make_plan
from surgeon.rewriting import rewrite
from surgeon.tracing import Inputs, in_mode

#: Powers of the MACs that are tried, each with coupled channels (residual streams) like all others, and left whole.
POWERS = (1.0, 1.5, 2.0)


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
        ways = list(self._ways(graph))
        best, least, problem = None, float("inf"), None
        for number, scores in enumerate(ways, 1):
            try:
                distance = self._distance(model, graph, scores, budget)
            except (BudgetError, NothingToCutError) as stop:
                problem = stop
                continue
            if best is None or distance < least:
                best, least = scores, distance
            self.progress("choose", number, len(ways))
        if best is None:
            assert problem is not None
            raise problem
        return best

    def _ways(self, graph: ChannelGraph) -> Iterator[Scores]:
        found = score_all(
            graph, ["obs", "fisher"], self.batches, seed=self.seed, progress=self.progress, **self.scoring
        )  # fmt: skip
        coupled = coupled_channels(graph)
        for power in POWERS:
            values = mixture(graph, found["obs"].raw, found["fisher"].raw, power)
            yield Scores(f"auto (power {power})", values, values, graph)
            if 0 < len(coupled) < len(graph.removable):
                last = values.copy()
                last[coupled] += values[graph.removable].max()
                yield Scores(f"auto (power {power}, coupled channels last)", last, last, graph)

    def _distance(self, model: nn.Module, graph: ChannelGraph, scores: Scores, budget: Mapping[str, Any]) -> float:
        plan = make_plan(graph, scores, seed=self.seed, **budget, **self.planning)
        small = rewrite(model, plan)
        heal(model, small, plan, self.calibration, self.level, seed=self.seed)
        return distance_between(model, small, graph.trace.inputs, self.calibration)


def coupled_channels(graph: ChannelGraph) -> Ints:
    """Numbers of the channels that several layers make together, such as those of a residual stream."""
    found = [group.numbers for group in graph.groups if len(group.producers) > 1]
    return np.concatenate([*found, np.zeros(0, dtype=np.int64)]).astype(np.int64)


@torch.no_grad()
def distance_between(model: nn.Module, small: nn.Module, like: Inputs, batches: Iterable[Any]) -> float:
    """How far the outputs of two models are apart on these batches.

    Of class scores (two axes) the Kullback-Leibler divergence of their softmax, of other tensors the squared error in
    units of the dense output's variance; each a mean over batches.
    """
    total, count = 0.0, 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with in_mode(model, False), in_mode(small, False):
        for batch in batches:
            inputs = Inputs.from_batch(batch, like).to(device)
            pairs = zip(_outputs(model, inputs), _outputs(small, inputs), strict=True)
            total, count = total + sum(_apart(a, b) for a, b in pairs), count + 1
    return total / max(count, 1)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    leaves = pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _apart(dense: Tensor, small: Tensor) -> float:
    if dense.shape != small.shape:  # the number of results depends on the data
        return 1.0
    dense, small = dense.double(), small.double()
    if dense.ndim == 2 and dense.shape[1] > 1:
        return float(F.kl_div(small.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True))
    return float((dense - small).square().mean() / dense.var(correction=0).clamp_min(torch.finfo(torch.float64).tiny))
