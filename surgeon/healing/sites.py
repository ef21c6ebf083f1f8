"""Where a cut model can be healed: products with a weight of its own, behind something that was cut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from surgeon.products import Product, find_products, operand_of
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


def find_sites(fitted: Fit) -> list[Site]:
    """The products behind a cut, in the order in which they run."""
    touched = _touched(fitted)
    found = []
    for product in find_products(fitted.small.labels.trace):
        dense = fitted.nodes.get(product.node)
        if product.operand in touched and dense is not None and isinstance(operand_of(dense), fx.Node):
            found.append(Site(product, dense))
    return found


def _touched(fitted: Fit) -> set[fx.Node]:
    """Nodes of the small recording whose values aren't slices of the dense ones."""
    cut, found = set(fitted.cut), set[fx.Node]()
    for node in fitted.small.labels.trace.graph.nodes:
        if (node.op == "get_attr" and str(node.target) in cut) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
