"""What removing a channel costs its readers if they are fitted anew: optimal brain surgeon on their least squares.

Of a reader with weight ``w`` and input moments ``H = cov(X) + lambda I`` the removal of the inputs ``S``, all others
fitted anew, adds ``w_S^T ((H^-1)_SS)^-1 w_S`` to its squared error (Hassibi & Stork 1993, equation 5, for several
weights at once as in Frantar & Alistarh 2022, arXiv 2208.11580, section 4.2). No labels are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria.collecting import collect, taken_together
from surgeon.products import Moments, Product

Floats = NDArray[np.float64]
_RIDGE = 1e-3
#: Outputs whose variance is a smaller part of their mean square are constant.
_LEAST_VARIANCE = 1e-12
#: Of the channels that are left, one part of so many goes before the costs are worked out again.
_ROUND = 16


@dataclass
class Reader:
    """A product that reads channels, one problem for each of its groups.

    Attributes
    ----------
    channel:
        Channel number of each input, ``(inputs,)``; -1: none.
    inverse:
        ``H^-1``, ``(inputs, inputs)``; rows of removed inputs are those of the identity.
    weight:
        ``(inputs, outputs)``, in units that make the variance of all outputs together 1; removed inputs have zeros.
    """

    channel: Ints
    inverse: Tensor
    weight: Tensor

    def copy(self) -> Reader:
        """One that can be taken apart by itself."""
        return Reader(self.channel, self.inverse.clone(), self.weight.clone())

    def costs(self, alive: Ints) -> Floats:
        """What the removal of each of these channels would add to the error."""
        found = np.zeros(len(alive))
        places = [np.flatnonzero(self.channel == number) for number in alive]
        sizes = np.array([len(own) for own in places])
        for size in np.unique(sizes[sizes > 0]):
            chosen = np.flatnonzero(sizes == size)
            index = torch.from_numpy(np.stack([places[i] for i in chosen]))
            block = self.inverse[index[:, :, None], index[:, None, :]]
            rows = self.weight[index]
            found[chosen] = (rows * torch.linalg.solve(block, rows)).sum((1, 2)).cpu().numpy()
        return found

    def remove(self, numbers: Ints) -> None:
        """Take these channels out and fit the others anew."""
        gone = torch.from_numpy(np.flatnonzero(np.isin(self.channel, numbers)))
        if not len(gone):
            return
        across = self.inverse[:, gone]
        share = torch.linalg.solve(self.inverse[gone][:, gone], across.mT).mT  # (inputs, gone)
        self.weight -= share @ self.weight[gone]
        self.inverse -= share @ across.mT
        self.weight[gone] = 0
        self.inverse[gone], self.inverse[:, gone] = 0, 0
        self.inverse[gone, gone] = 1


def removal_costs(
    graph: ChannelGraph,
    batches: Iterable[Any],
    micro_batch: int | None = None,
    inputs_of: Callable[[Any], Any] | None = None,
) -> Floats:
    """The cost of each channel at the time when it is the least costly one left, summed over its readers.

    Within a bundle they go greedily, cheapest first, so the costs rise. Channels that no product with a weight reads
    (queries and keys, heads that only train mode runs) get the median of the others: nothing is known of them.
    """
    known = collect(graph, batches, micro_batch, inputs_of)
    readers: list[Reader] = []
    while known:  # the moments of one reader at a time are held beside what is made of them
        readers += _readers(graph, *known.pop(next(iter(known))))
    read = np.isin(graph.removable, np.concatenate([reader.channel for reader in readers]))
    found = np.zeros(graph.structure.count)
    bundles = [np.concatenate([group.numbers for group in bundle.groups]) for bundle in graph.bundles]
    needed = [_bundles_of(reader, bundles, graph.structure.count) for reader in readers]
    for index, numbers in enumerate(bundles):
        own = [(reader, index == max(of)) for reader, of in zip(readers, needed, strict=True) if index in of]
        _take_apart([reader if last else reader.copy() for reader, last in own], numbers, found)
    if read.any():
        found[graph.removable[~read]] = np.median(found[graph.removable[read]])
    return found


def _bundles_of(reader: Reader, bundles: Sequence[Ints], count: int) -> set[int]:
    """Which bundles a reader reads."""
    bundle = np.full(count + 1, -1)  # the last one is that of inputs that are no channel
    for index, numbers in enumerate(bundles):
        bundle[numbers] = index
    return set(bundle[reader.channel].tolist()) - {-1}


def _take_apart(readers: Sequence[Reader], numbers: Ints, found: Floats) -> None:
    alive, reached = np.sort(numbers), 0.0
    while len(alive):
        costs = sum((reader.costs(alive) for reader in readers), start=np.zeros(len(alive)))
        order = np.argsort(costs, kind="stable")[: max(len(alive) // _ROUND, 1)]
        for index in order:
            reached = max(reached, float(costs[index]))
            found[alive[index]] = reached
        for reader in readers:
            reader.remove(alive[order])
        alive = np.delete(alive, order)


def _readers(graph: ChannelGraph, product: Product, moments: Moments) -> list[Reader]:
    assert moments.means is not None
    assert moments.products is not None
    matrix = product.form.matrix(product.weight.of(graph.trace.tensors)).detach().double()
    channel = _channels(graph, product)
    size = taken_together(matrix.shape[1])
    matrix, channel = matrix.reshape(len(matrix), -1, size, matrix.shape[2]).sum(2), channel[:, ::size]
    found = []
    covariances = moments.products[0].div_(moments.count)
    for own, mean, covariance, weight in zip(channel, moments.means[0], covariances, matrix, strict=True):
        variance = torch.einsum("io,ij,jo->", weight, covariance, weight)
        diagonal = covariance.diagonal()
        diagonal += _RIDGE * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        whole = variance + (mean @ weight).square().sum()
        scale = variance.rsqrt() if variance > _LEAST_VARIANCE * whole else variance * 0  # constant but for rounding
        found.append(Reader(own, torch.linalg.inv(covariance), weight * scale))
    return found


def _channels(graph: ChannelGraph, product: Product) -> Ints:
    """The channel of each input, ``(groups, inputs)``: the weight's plane that doesn't vary over outputs."""
    structure = graph.structure
    shape = graph.trace.tensors[product.weight.name].shape
    best = np.full(product.form.matrix(product.weight.index).shape[:2], -1)
    kinds = 0
    for plane in structure.labels.space.planes.get(product.weight.name, ()):
        labels = plane.labels.expand(shape).reshape(-1)[product.weight.index]
        found = structure.channel[product.form.matrix(labels).numpy()]
        if (found == found[:, :, :1]).all() and len(np.unique(found[:, :, 0])) > kinds:
            best, kinds = found[:, :, 0], len(np.unique(found[:, :, 0]))
    return best
