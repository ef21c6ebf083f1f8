"""What products are given, batch by batch: the moments of their inputs, of so many rows that time is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph
from surgeon.criteria.pieces import pieces
from surgeon.errors import ScoreError
from surgeon.processes import gathered, length, own_batches, seed_of
from surgeon.products import Moments, Product, find_products
from surgeon.tracing import Inputs, Recent, Replay, Trace, Unfinished, plain_call, record

__all__ = ["Entry", "collect", "taken_together"]

#: Rows per reader: so many, or so many for each of its inputs.
_MOST_ROWS, _ROWS_PER_INPUT = 60_000, 8
#: Into so many parts at least they are shared out, one for each batch.
_LEAST_PARTS = 4
#: Inputs beyond which the places of a channel are taken together (behind a flatten).
_MOST_INPUTS = 6_000

#: A product, and the moments of what it is given.
Entry = tuple[Product, Moments]


def collect(
    graph: ChannelGraph, batches: Iterable[Any], micro_batch: int | None, inputs_of: Callable[[Any], Any] | None
) -> dict[tuple[str, bytes], Entry]:
    """Run the model on all batches; the moments of every product's inputs, by the product's key.

    Of several processes each runs its share; no more than `micro_batch` examples are run at once.

    Raises
    ------
    ScoreError
        If there is no batch.
    """
    collector = _Collector(graph, length(batches), inputs_of)
    for index, batch in own_batches(batches):
        collector.batch(index, list(pieces(batch, micro_batch)))
    _over_processes(graph, collector.known)
    if not collector.known:
        raise ScoreError("the dataloader gave no batch; pass one that yields inputs, or (inputs, targets)")
    return collector.known


def taken_together(inputs: int) -> int:
    """How many neighbouring inputs count as one, of a product with so many."""
    if inputs <= _MOST_INPUTS:
        return 1
    return next(size for size in range(2, inputs + 1) if inputs % size == 0 and inputs // size <= _MOST_INPUTS)


class _Collector:
    """Goes through batches for the moments of what each product is given.

    Parameters
    ----------
    graph:
        The channels of the model.
    batches:
        How many there will be; None where nobody knows.
    inputs_of:
        As in :func:`surgeon.score`.
    """

    def __init__(self, graph: ChannelGraph, batches: int | None, inputs_of: Callable[[Any], Any] | None) -> None:
        self.known: dict[tuple[str, bytes], Entry] = {}
        self._graph, self._counted, self._batches = graph, batches is not None, max(batches or 0, _LEAST_PARTS)
        self._inputs_of = inputs_of
        self._recordings: Recent[tuple[Trace, dict[fx.Node, Product]]] = Recent()

    def batch(self, index: int, parts: Sequence[Any]) -> None:
        """Run a batch, in parts."""
        device = next((p.device for p in self._graph.trace.model.parameters()), torch.device("cpu"))
        for number, part in enumerate(parts):
            inputs = Inputs.from_batch(part, self._graph.trace.inputs, self._inputs_of).to(device)
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
        rows = rows.double()  # an inverse of them is taken, and few rows leave it next to nothing but its ridge
        moments.add(rows, rows[..., :0])

    def _recorded(self, inputs: Inputs) -> tuple[Trace, dict[fx.Node, Product]]:
        found = self._recordings.get(inputs.key)
        if found is None:
            try:
                trace = record(self._graph.trace.model, inputs)
            except Unfinished as stop:
                raise ScoreError(
                    f"the model's forward rejects a batch of the dataloader: {stop.__cause__}; pass batches of what it "
                    "takes, or (inputs, targets)"
                ) from stop.__cause__
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
    rows = product.form.inputs(x, chosen.to(x.device))
    size = taken_together(rows.shape[2])
    return rows if size == 1 else rows.view(*rows.shape[:2], -1, size).mean(3)
