"""What a width costs: MACs and parameters of the model that keeps given channels. One multiply-add is 1 MAC."""

from __future__ import annotations

import math

import numpy as np

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, Ints


class Cost:
    """Costs of cut models, read off the dense recording without building them.

    Parameters
    ----------
    graph:
        The channel graph; sizes are those of the example inputs.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        structure = graph.structure
        self._count = structure.count
        work = [w for w in structure.labels.ledger.work if not w.node.meta["extra"]]
        self._work = [(w.macs, [structure.of(f) for f in w.factors]) for w in work]
        self._parameters = list(_parameters(graph))

    def macs(self, kept: Flags) -> int:
        """Multiply-adds of convolutions and matrix products on the example inputs (`kept`: bool per channel)."""
        return self._sum(self._work, kept)

    def params(self, kept: Flags) -> int:
        """Parameters, also those that the example inputs don't reach."""
        return self._sum(self._parameters, kept)

    def everything(self) -> Flags:
        """The dense model."""
        return np.ones(self._count, dtype=bool)

    @staticmethod
    def _sum(terms: list[tuple[int, list[Ints]]], kept: Flags) -> int:
        flags = np.append(kept, True)  # places without a channel stay
        total = 0
        for amount, factors in terms:
            share = math.prod((int(flags[f].sum()) for f in factors), start=amount)
            total += share // math.prod((len(f) for f in factors), start=1)
        return total


def _parameters(graph: ChannelGraph) -> list[tuple[int, list[Ints]]]:
    structure = graph.structure
    space = structure.labels.space
    axes: dict[str, list[Ints]] = {}
    for (name, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        axes.setdefault(name, []).append(structure.channel[start : start + size])
    return [(p.numel(), axes.get(name, [])) for name, p in graph.trace.model.named_parameters()]
