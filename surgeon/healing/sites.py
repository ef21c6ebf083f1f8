"""Where a cut model can be healed: products with a weight of its own, behind something that was cut."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import fx

from surgeon.products import MOVES, Part, Product, find_part, find_products, operand_of
from surgeon.tracing import Trace, operator_name
from surgeon.trial import Fit


@dataclass(frozen=True, eq=False)
class Site:
    """A product of the small recording, and the dense call that it stands for."""

    product: Product
    dense: fx.Node

    @property
    def key(self) -> tuple[str, bytes]:
        """Equal for calls that share their weight."""
        return self.product.key


def find_sites(fitted: Fit, changed: Collection[str] = ()) -> list[Site]:
    """The products behind a cut, or behind or with a weight that was `changed`, in the order in which they run.

    A weight comes with all its calls, or not at all: where one has no partner, something else reads it (an embedding
    whose weight is also the last layer's), or its calls add biases that they don't share.
    """
    trace, touched = fitted.small.labels.trace, _touched(fitted, changed)
    calls: dict[tuple[str, bytes], list[Product]] = {}
    for product in find_products(trace):
        calls.setdefault(product.key, []).append(product)
    readers, found = _Readers(trace), list[Site]()
    for own in calls.values():
        partners = [fitted.nodes.get(product.node) for product in own]
        behind = own[0].weight.name in changed or any(product.operand in touched for product in own)
        if behind and readers.are_only(own):
            shares = readers.share_mean(own)
            for product, dense in zip(own, partners, strict=True):
                if dense is not None and isinstance(operand_of(dense), fx.Node):
                    found.append(Site(product if shares else replace(product, mean=None), dense))
    counts = {key: len(own) for key, own in calls.items()}
    keys = [site.key for site in found]
    whole = [site for site in found if keys.count(site.key) == counts[site.key]]
    return sorted(whole, key=lambda site: trace.order[site.product.node])


class _Readers:
    """Which calls read a parameter or buffer, behind nothing but moves."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._calls: dict[str, set[fx.Node]] = {}
        for node in trace.graph.nodes:
            if node.op == "get_attr":
                self._calls.setdefault(str(node.target), set()).update(_behind_moves(node))

    def are_only(self, products: list[Product]) -> bool:
        """Whether weight and bias of these calls are theirs alone, and the bias is one."""
        nodes = {product.node for product in products}
        biases = [product.bias for product in products]
        return self._alone(products[0].weight, nodes) and _same(biases) and self._alone(biases[0], nodes)

    def share_mean(self, products: list[Product]) -> bool:
        """Whether one norm stands behind all of these calls and nowhere else."""
        means = [product.mean for product in products]
        return _same(means) and self._alone(means[0], {user for product in products for user in product.node.users})

    def _alone(self, part: Part | None, nodes: set[fx.Node]) -> bool:
        if part is None:
            return True
        others = self._calls[part.name] - nodes
        return not others or not any(torch.isin(part.index, other).any() for other in self._read(part.name, others))

    def _read(self, name: str, calls: Iterable[fx.Node]) -> Iterator[torch.Tensor]:
        """The elements of a tensor that these calls read."""
        for call in calls:
            for node in call.all_input_nodes:
                part = find_part(node, self._trace)
                if part is not None and part.name == name:
                    yield part.index


def _behind_moves(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if user.target is operator.getitem or operator_name(user) in MOVES:
            yield from _behind_moves(user)
        elif user.op == "call_function" and not user.meta["extra"]:
            yield user


def _same(parts: list[Part | None]) -> bool:
    first = parts[0]
    return all(
        part is first is None
        or (part is not None and first is not None and part.name == first.name and torch.equal(part.index, first.index))
        for part in parts
    )


def _touched(fitted: Fit, changed: Collection[str]) -> set[fx.Node]:
    """Nodes of the small recording whose values aren't slices of the dense ones."""
    cut, found = {*fitted.cut, *changed}, set[fx.Node]()
    for node in fitted.small.labels.trace.graph.nodes:
        if (node.op == "get_attr" and str(node.target) in cut) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
