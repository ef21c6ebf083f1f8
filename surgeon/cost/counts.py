"""MACs, parameters and activations of the model that keeps given channels. One multiply-add is 1 MAC."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, Ints
from surgeon.tracing import moves_numbers, named_parameters

#: A sum's terms: an amount, and the channel numbers along each axis that it is proportional to.
Terms = list[tuple[int, list[Ints]]]


class Cost:
    """Costs of cut models, read off the dense recording without building them.

    Parameters
    ----------
    graph:
        The channel graph; sizes are those of the example inputs.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph = graph
        self._terms: dict[str, Terms] = {}

    def macs(self, kept: Flags) -> int:
        """Multiply-adds of convolutions and matrix products on the example inputs (`kept`: bool per channel)."""
        return self._sum("macs", kept)

    def params(self, kept: Flags) -> int:
        """Parameters, also those that the example inputs don't reach."""
        return self._sum("params", kept)

    def activations(self, kept: Flags) -> int:
        """Numbers in all tensors that the forward makes on the example inputs; views count once."""
        return self._sum("activations", kept)

    def terms(self, name: str) -> Terms:
        """What a cost ("macs", "params", "activations") is the sum of: amounts, times the kept share of each axis."""
        if name not in self._terms:
            # an empty tensor costs nothing at any width: models have parameters of no rows, for tokens that are off
            self._terms[name] = [term for term in _TERMS[name](self._graph) if term[0]]
        return self._terms[name]

    def everything(self) -> Flags:
        """The flags of the dense model, one bool per channel: all stay."""
        return np.ones(self._graph.structure.count, dtype=bool)

    def _sum(self, name: str, kept: Flags) -> int:
        flags = np.append(kept, True)  # places without a channel stay
        total = 0
        for amount, factors in self.terms(name):
            share = math.prod((int(flags[f].sum()) for f in factors), start=amount)
            total += share // math.prod((len(f) for f in factors), start=1)
        return total


def _work(graph: ChannelGraph) -> Iterator[tuple[int, list[Ints]]]:
    structure = graph.structure
    for work in structure.labels.ledger.work:
        if not work.node.meta["extra"]:
            yield work.macs, [structure.of(factor) for factor in work.factors]


def _parameters(graph: ChannelGraph) -> Iterator[tuple[int, list[Ints]]]:
    structure = graph.structure
    space = structure.labels.space
    axes: dict[str, list[Ints]] = {}
    for (name, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        axes.setdefault(name, []).append(structure.channel[start : start + size])
    for name, parameter in named_parameters(graph.trace.model):
        yield parameter.numel(), axes.get(name, [])


def _activations(graph: ChannelGraph) -> Iterator[tuple[int, list[Ints]]]:
    """One term per tensor that a call makes; of several results of a call those that something reads."""
    structure = graph.structure
    for node in graph.trace.graph.nodes:
        made = node.op == "call_function" and "shape" in node.meta
        source = node if made and node.target is not operator.getitem else node.args[0] if made else None
        if source is None or not moves_numbers(source) or source.meta.get("extra"):
            continue
        marked = structure.labels.marks.get(node)
        planes = [] if marked is None else [plane for plane in marked.planes if not plane.example]
        yield math.prod(node.meta["shape"]), [structure.of(plane.labels) for plane in planes]


_TERMS: Mapping[str, Callable[[ChannelGraph], Iterator[tuple[int, list[Ints]]]]] = {
    "macs": _work, "params": _parameters, "activations": _activations,
}  # fmt: skip
