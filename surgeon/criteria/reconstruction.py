"""What removing a channel costs its readers if they are fitted anew: optimal brain surgeon on their least squares.

Of a reader with weight ``w`` and input moments ``H = cov(X) + lambda I`` the removal of the inputs ``S``, all others
fitted anew, adds ``w_S^T ((H^-1)_SS)^-1 w_S`` to its squared error (Hassibi & Stork 1993, equation 5, for several
weights at once as in Frantar & Alistarh 2022, arXiv 2208.11580, section 4.2). No labels are looked at.
"""

from __future__ import annotations

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
from surgeon.processes import gathered, seed_of, share, total
from surgeon.products import Product, find_products
from surgeon.tracing import Inputs, Replay, Trace, Unfinished, plain_call, record

Floats = NDArray[np.float64]
#: Rows of inputs per reader, and inputs beyond which the places of a channel are taken together (behind a flatten).
_MOST_ROWS, _MOST_INPUTS = 60_000, 6_000
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
    found = np.zeros(graph.structure.count)
    for bundle in graph.bundles:
        numbers = np.concatenate([group.numbers for group in bundle.groups])
        own = [reader for reader in readers if np.isin(reader.channel, numbers).any()]
        _take_apart([Reader(r.channel, r.inverse.clone(), r.weight.clone()) for r in own], numbers, found)
    read = np.isin(graph.removable, np.concatenate([reader.channel for reader in readers]))
    if read.any():
        found[graph.removable[~read]] = np.median(found[graph.removable[read]])
    return found


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


class _Moments:
    """Running sums of one product's inputs."""

    @classmethod
    def of(cls, product: Product) -> _Moments:
        """Of none of its inputs yet."""
        groups, inputs, _ = product.form.matrix(product.weight.index).shape
        return cls(groups, inputs if inputs <= _MOST_INPUTS else inputs // _pooled(inputs))

    def __init__(self, groups: int, inputs: int) -> None:
        self.count = 0
        self.total = torch.zeros(groups, inputs, dtype=torch.float64)
        self.products = torch.zeros(groups, inputs, inputs, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Rows ``(groups, rows, inputs)``."""
        rows = rows.double()
        self.count += rows.shape[1]
        self.total = self.total.to(rows.device) + rows.sum(1)
        self.products = self.products.to(rows.device).add_(rows.mT @ rows)

    def over_processes(self) -> None:
        """Those of all processes."""
        count, self.total, self.products = total(torch.tensor([self.count]), self.total, self.products)
        self.count = int(count)

    def covariance(self) -> Tensor:
        """``(groups, inputs, inputs)``."""
        mean = self.total / self.count
        found: Tensor = self.products / self.count - torch.einsum("gi,gj->gij", mean, mean)
        return found


#: A product, and the moments of what it is given.
Entry = tuple[Product, _Moments]


def read_moments(graph: ChannelGraph, batches: Iterable[Any], micro_batch: int | None = None) -> list[Reader]:
    """Run the model on all batches and read the moments of every product's inputs.

    Of several processes each runs its share; no more than `micro_batch` examples are run at once.

    Raises
    ------
    ScoreError
        If there is no batch.
    """
    known: dict[tuple[str, bytes], Entry] = {}
    recordings: dict[Any, tuple[Trace, dict[fx.Node, Product]]] = {}
    for index, batch in share(batches):
        for number, piece in enumerate(pieces(batch, micro_batch)):
            _read(graph, piece, recordings, known, torch.Generator().manual_seed(seed_of(index, number)))
    _over_processes(graph, known)
    if not known:
        raise ScoreError("the dataloader gave no batch; pass one that yields inputs, or (inputs, targets)")
    return [reader for product, moments in known.values() for reader in _readers(graph, product, moments)]


def _over_processes(graph: ChannelGraph, known: dict[tuple[str, bytes], Entry]) -> None:
    """The moments of all processes' batches; one that had none of its own takes part with nothing."""
    own = _by_name(known)
    names = list(dict.fromkeys(name for listed in gathered(list(own)) for name in listed))
    if len(names) > len(own):  # the example's layers stand for those of the batches
        products = [product for product in find_products(graph.trace) if _reads(product)]
        own = _by_name({product.key: (product, _Moments.of(product)) for product in products}) | own
    known.clear()
    for name in names:
        if name not in own:
            raise ScoreError(f"the batches of another process run {name}, which those of this one don't")
        product, moments = own[name]
        moments.over_processes()
        known[product.key] = product, moments


def _by_name(known: Mapping[Any, Entry]) -> dict[str, Entry]:
    """By the names of the weights; parts of one in the order in which they are read."""
    found: dict[str, Entry] = {}
    for (weight, _), entry in known.items():
        number = sum(name.rpartition("#")[0] == weight for name in found)
        found[f"{weight}#{number}"] = entry
    return found


def _read(
    graph: ChannelGraph, batch: Any, recordings: dict[Any, tuple[Trace, dict[fx.Node, Product]]],
    known: dict[tuple[str, bytes], Entry], generator: torch.Generator,
) -> None:  # fmt: skip
    device = next((p.device for p in graph.trace.model.parameters()), torch.device("cpu"))
    inputs = Inputs.from_batch(batch, graph.trace.inputs).to(device)
    known_for = recordings.get(inputs.key)
    if known_for is None:
        try:
            trace = record(graph.trace.model, inputs)
        except Unfinished as stop:
            raise ScoreError(
                f"the model's forward rejects a batch of the dataloader: {stop.__cause__}; pass batches of what it "
                "takes, or (inputs, targets)"
            ) from stop.__cause__
        known_for = trace, {product.node: product for product in find_products(trace) if _reads(product)}
        if trace.reusable:
            recordings[inputs.key] = known_for
    trace, products = known_for

    def call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = plain_call(node, args, kwargs)
        if node in products:
            product = products[node]
            moments = known.setdefault(product.key, (product, _Moments.of(product)))[1]
            moments.add(_rows(product, args[node.args.index(product.operand)], value, generator))
        return value

    with torch.no_grad():
        Replay(trace, call=call).forward(inputs)


def _reads(product: Product) -> bool:
    """Whether it sums over channels: a depth-wise convolution passes each on."""
    groups, inputs, _ = product.form.matrix(product.weight.index).shape
    return groups == 1 or inputs > int(np.prod(getattr(product.form, "kernel", ())))


def _rows(product: Product, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    count, inputs = product.form.count(y), product.form.matrix(product.weight.index).shape[1]
    quota = max(_MOST_ROWS // 4, 2 * inputs)
    chosen = torch.randperm(count, generator=generator)[:quota] if count > quota else torch.arange(count)
    rows = product.form.inputs(x, chosen.to(x.device))
    return rows if inputs <= _MOST_INPUTS else rows.view(*rows.shape[:2], -1, _pooled(inputs)).mean(3)


def _pooled(inputs: int) -> int:
    """How many neighbouring inputs are taken together."""
    return next(size for size in range(2, inputs + 1) if inputs % size == 0 and inputs // size <= _MOST_INPUTS)


def _readers(graph: ChannelGraph, product: Product, moments: _Moments) -> list[Reader]:
    matrix = product.form.matrix(product.weight.of(graph.trace.tensors)).detach().double()
    channel = _channels(graph, product)
    if matrix.shape[1] > _MOST_INPUTS:
        size = _pooled(matrix.shape[1])
        matrix, channel = matrix.reshape(len(matrix), -1, size, matrix.shape[2]).sum(2), channel[:, ::size]
    found = []
    means = moments.total / moments.count
    for own, mean, covariance, weight in zip(channel, means, moments.covariance(), matrix, strict=True):
        variance = torch.einsum("io,ij,jo->", weight, covariance, weight)
        ridge = _RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        size = variance + (mean @ weight).square().sum()
        scale = variance.rsqrt() if variance > _LEAST_VARIANCE * size else variance * 0  # constant but for rounding
        found.append(Reader(own, torch.linalg.inv(covariance + ridge * eye), weight * scale))
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
