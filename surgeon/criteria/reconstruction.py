"""What removing a channel costs its readers if they are fitted anew: optimal brain surgeon on their least squares.

Of a reader with weight ``w`` and input moments ``H = cov(X) + lambda I`` the removal of the inputs ``S``, all others
fitted anew, adds ``w_S^T ((H^-1)_SS)^-1 w_S`` to its squared error (Hassibi & Stork 1993, equation 5, for several
weights at once as in Frantar & Alistarh 2022, arXiv 2208.11580, section 4.2). No labels are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.criteria.pieces import pieces
from surgeon.errors import ScoreError
from surgeon.processes import gathered, length, seed_of, share
from surgeon.products import Moments, Product, find_products
from surgeon.tracing import Inputs, Recent, Replay, Trace, plain_call, record

Floats = NDArray[np.float64]
#: Rows per reader: so many, or so many for each of its inputs.
_MOST_ROWS, _ROWS_PER_INPUT = 60_000, 8
#: Into so many parts at least they are shared out, one for each batch.
_LEAST_PARTS = 4
#: Inputs beyond which the places of a channel are taken together (behind a flatten).
_MOST_INPUTS = 6_000
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


def removal_costs(graph: ChannelGraph, batches: Iterable[Any], micro_batch: int | None = None) -> Floats:
    """The cost of each channel at the time when it is the least costly one left, summed over its readers.

    Within a bundle they go greedily, cheapest first, so the costs rise. Channels that no product with a weight reads
    (queries and keys, heads that only train mode runs) get the median of the others: nothing is known of them.
    """
    readers = read_moments(graph, batches, micro_batch)
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


#: A product, and the moments of what it is given.
Entry = tuple[Product, Moments]


def read_moments(graph: ChannelGraph, batches: Iterable[Any], micro_batch: int | None = None) -> list[Reader]:
    """Run the model on all batches and read the moments of every product's inputs.

    Of several processes each runs its share; no more than `micro_batch` examples are run at once.

    Raises
    ------
    ScoreError
        If there is no batch.
    """
    collector = _Collector(graph, length(batches))
    for index, batch in share(batches):
        collector.batch(index, list(pieces(batch, micro_batch)))
    known = collector.known
    _over_processes(graph, known)
    if not known:
        raise ScoreError("the dataloader gave no batch; pass one that yields inputs, or (inputs, targets)")
    readers: list[Reader] = []
    while known:  # the moments of one reader at a time are held beside what is made of them
        readers += _readers(graph, *known.pop(next(iter(known))))
    return readers


class _Collector:
    """Goes through batches for the moments of what each product is given.

    Parameters
    ----------
    graph:
        The channels of the model.
    batches:
        How many there will be; None where nobody knows.
    """

    def __init__(self, graph: ChannelGraph, batches: int | None) -> None:
        self.known: dict[tuple[str, bytes], Entry] = {}
        self._graph, self._counted, self._batches = graph, batches is not None, max(batches or 0, _LEAST_PARTS)
        self._recordings: Recent[tuple[Trace, dict[fx.Node, Product]]] = Recent()

    def batch(self, index: int, parts: Sequence[Any]) -> None:
        """Run a batch, in parts."""
        device = next((p.device for p in self._graph.trace.model.parameters()), torch.device("cpu"))
        for number, part in enumerate(parts):
            inputs = Inputs.from_batch(part, self._graph.trace.inputs).to(device)
            self._run(inputs, index, len(parts), torch.Generator().manual_seed(seed_of(index, number)))

    def _run(self, inputs: Inputs, index: int, parts: int, generator: torch.Generator) -> None:
        trace, products = self._recorded(inputs)
        calls = Counter(product.key for product in products.values())

        def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = plain_call(node, args, kwargs)
            if node in products:
                product = products[node]
                count = product.form.count(value)
                quota = self._quota(product, parts * calls[product.key])
                if self._counted or index * min(count, quota) < self._batches * quota:
                    chosen = (
                        torch.randperm(count, generator=generator)[:quota] if count > quota else torch.arange(count)
                    )
                    self._add(product, _rows(product, args[node.args.index(product.operand)], chosen))
            return value

        with torch.no_grad():
            Replay(trace, call=call).forward(inputs)

    def _quota(self, product: Product, parts: int) -> int:
        """How many rows one of so many parts of a batch gives at most; the batches share what a reader is given."""
        inputs = product.form.matrix(product.weight.index).shape[1]
        return max(max(_MOST_ROWS, _ROWS_PER_INPUT * inputs) // (self._batches * parts), 1)

    def _add(self, product: Product, rows: Tensor) -> None:
        moments = self.known.setdefault(product.key, (product, Moments(centred=True)))[1]
        rows = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
        moments.add(rows, rows[..., :0])

    def _recorded(self, inputs: Inputs) -> tuple[Trace, dict[fx.Node, Product]]:
        found = self._recordings.get(inputs.key)
        if found is None:
            trace = record(self._graph.trace.model, inputs)
            found = trace, {product.node: product for product in find_products(trace) if _reads(product)}
            if trace.reusable:
                self._recordings.keep(inputs.key, found)
        return found


def _over_processes(graph: ChannelGraph, known: dict[tuple[str, bytes], Entry]) -> None:
    """The moments of all processes' batches; one that had none of its own takes part with nothing."""
    own = _by_name(known)
    names = list(dict.fromkeys(name for listed in gathered(list(own)) for name in listed))
    if len(names) > len(own):  # the example's layers stand for those of the batches
        products = [product for product in find_products(graph.trace) if _reads(product)]
        own = _by_name({product.key: (product, Moments(centred=True)) for product in products}) | own
    known.clear()
    for name in names:
        if name not in own:
            raise ScoreError(f"the batches of another process run {name}, which those of this one don't")
        product, moments = own[name]
        known[product.key] = product, moments.over_processes()


def _by_name(known: Mapping[Any, Entry]) -> dict[str, Entry]:
    """By the names of the weights; parts of one in the order in which they are read."""
    found: dict[str, Entry] = {}
    for (weight, _), entry in known.items():
        number = sum(name.rpartition("#")[0] == weight for name in found)
        found[f"{weight}#{number}"] = entry
    return found


def _reads(product: Product) -> bool:
    """Whether it sums over channels: a depth-wise convolution passes each on."""
    groups, inputs, _ = product.form.matrix(product.weight.index).shape
    return groups == 1 or inputs > int(np.prod(getattr(product.form, "kernel", ())))


def _rows(product: Product, x: Tensor, chosen: Tensor) -> Tensor:
    inputs = product.form.matrix(product.weight.index).shape[1]
    rows = product.form.inputs(x, chosen.to(x.device))
    return rows if inputs <= _MOST_INPUTS else rows.view(*rows.shape[:2], -1, _pooled(inputs)).mean(3)


def _pooled(inputs: int) -> int:
    """How many neighbouring inputs are taken together."""
    return next(size for size in range(2, inputs + 1) if inputs % size == 0 and inputs // size <= _MOST_INPUTS)


def _readers(graph: ChannelGraph, product: Product, moments: Moments) -> list[Reader]:
    assert moments.means is not None
    assert moments.products is not None
    matrix = product.form.matrix(product.weight.of(graph.trace.tensors)).detach().double()
    channel = _channels(graph, product)
    if matrix.shape[1] > _MOST_INPUTS:
        size = _pooled(matrix.shape[1])
        matrix, channel = matrix.reshape(len(matrix), -1, size, matrix.shape[2]).sum(2), channel[:, ::size]
    found = []
    covariances = moments.products[0].div_(moments.count)
    for own, mean, covariance, weight in zip(channel, moments.means[0], covariances, matrix, strict=True):
        variance = torch.einsum("io,ij,jo->", weight, covariance, weight)
        diagonal = covariance.diagonal()
        diagonal += _RIDGE * diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        size = variance + (mean @ weight).square().sum()
        scale = variance.rsqrt() if variance > _LEAST_VARIANCE * size else variance * 0  # constant but for rounding
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
