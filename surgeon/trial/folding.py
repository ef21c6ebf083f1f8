"""Numbers that follow a width (the 1/sqrt(d) of attention): the change is folded into the weights that feed them.

Where the cut model multiplies by ``s'`` what the dense one multiplied by ``s``, the rows of the weight in front are
multiplied by ``s / s'``, so that the product stays what it was.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints, flat
from surgeon.tracing import operator_name

#: Operators through which a factor passes unchanged.
_LINEAR = frozenset({
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "clone", "alias", "detach", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "squeeze", "unsqueeze", "contiguous",
})  # fmt: skip
#: Products with a weight: where their bias and their weight stand among the arguments.
_PRODUCTS = {"addmm": (0, 2), "mm": (None, 1), "convolution": (2, 1), "linear": (2, 1)}


@dataclass(frozen=True)
class Fold:
    """One number folded into one weight.

    Attributes
    ----------
    rows:
        (tensor name, axis) -> dense positions whose weights are multiplied by `factor`.
    labels:
        The labels of those rows.
    path:
        Dense nodes between the weight and the number: there the cut model's values are `factor` times the dense ones.
    """

    factor: float
    rows: dict[tuple[str, int], Ints]
    labels: Ints
    path: frozenset[fx.Node]

    def scale(self, graph: ChannelGraph, node: fx.Node) -> Tensor | float:
        """What a dense value of a node on the path has to be multiplied by."""
        for plane in graph.structure.labels.marks[node].planes:
            hit = np.isin(plane.labels.numpy(), self.labels)
            if hit.any():
                return torch.from_numpy(np.where(hit, self.factor, 1.0))
        return self.factor


def find_fold(graph: ChannelGraph, dense: fx.Node, small: fx.Node) -> Fold | None:
    """How the changed number of the call `dense` (in the small run: `small`) can be folded; None if it can't."""
    factor = _factor(dense, small)
    if factor is None:
        return None
    path = _walk_back(dense)
    name = _parameter(path[-1], _PRODUCTS[operator_name(path[-1])][1]) if path else None
    if name is None:
        return None
    product, labels = path[-1], _carried(graph, path, name)
    if not len(labels) or not _exclusive(graph, dense, path, labels, product):
        return None
    rows = _rows(graph, product, labels)
    if rows is None:
        return None
    turned = _turned(product, _PRODUCTS[operator_name(product)][1])[1]
    return Fold(factor, rows, labels, frozenset([*path, *turned]))


def _factor(dense: fx.Node, small: fx.Node) -> float | None:
    name, before, after = operator_name(dense), dense.args[1:], small.args[1:]
    numbers = [v for v in (*before, *after) if isinstance(v, int | float)]
    if name not in ("mul", "div") or len(before) != 1 or len(after) != 1 or len(numbers) != 2 or not all(numbers):
        return None
    return numbers[0] / numbers[1] if name == "mul" else numbers[1] / numbers[0]


def _walk_back(dense: fx.Node) -> list[fx.Node]:
    """From the number to the product with a weight that feeds it, both ends included; empty if there is none."""
    path: list[fx.Node] = []
    node: Any = dense.args[0]
    while isinstance(node, fx.Node):
        path.append(node)
        name = operator_name(node)
        if name in _PRODUCTS:
            return path
        scaled = name in ("mul", "div") and isinstance(node.args[1], int | float)
        if not (scaled or name in _LINEAR or name == "bmm" or node.target is operator.getitem):
            break
        node = node.args[0]
    return []


def _carried(graph: ChannelGraph, path: list[fx.Node], name: str) -> Ints:
    """The labels of the tensor `name` that arrive at the start of the path; none where they reach somebody else."""
    space = graph.structure.labels.space
    own = np.array([index for index, (tensor, _) in enumerate(space.places) if tensor == name])
    for node in path:
        labels = _labels_at(graph, node)
        found = labels[np.isin(space.place_of(labels), own)]
        if len(found) or len(node.users) > 1:
            return found
    return np.zeros(0, dtype=np.int64)


def _labels_at(graph: ChannelGraph, node: fx.Node) -> Ints:
    mark = graph.structure.labels.marks.get(node)
    found = [flat(p.labels) for p in mark.planes if not p.example] if mark is not None else []
    labels = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    return labels[labels > 0]


def _exclusive(graph: ChannelGraph, dense: fx.Node, path: list[fx.Node], labels: Ints, product: fx.Node) -> bool:
    """Whether these rows reach nothing but the number: everything else that carries them comes before or after it."""
    allowed = set(path) | {dense}
    allowed |= _reach([product], lambda node: node.all_input_nodes)
    allowed |= _reach([dense], lambda node: list(node.users))
    marks = graph.structure.labels.marks
    return all(node in allowed or not np.isin(_labels_at(graph, node), labels).any() for node in marks)


def _reach(start: list[fx.Node], neighbours: Any) -> set[fx.Node]:
    seen, waiting = set(start), list(start)
    while waiting:
        for node in neighbours(waiting.pop()):
            if node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen


def _rows(graph: ChannelGraph, product: fx.Node, labels: Ints) -> dict[tuple[str, int], Ints] | None:
    """The weight's and the bias's positions of these labels; None unless both are parameters used as they are."""
    space = graph.structure.labels.space
    places = np.unique(space.place_of(labels))
    if len(places) != 1:
        return None
    name, axis = space.places[places[0]]
    offsets = labels - space.starts[places[0]]
    bias_index, weight_index = _PRODUCTS[operator_name(product)]
    if _parameter(product, weight_index) != name:
        return None
    rows = {(name, axis): offsets}
    if bias_index is not None and isinstance(product.args[bias_index], fx.Node):
        bias = _parameter(product, bias_index)
        if bias is None:
            return None
        rows[bias, 0] = offsets
    return rows


def _parameter(product: fx.Node, index: int) -> str | None:
    """Name of the parameter that stands at this argument, perhaps turned; None if something else does."""
    node, _ = _turned(product, index)
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


def _turned(product: fx.Node, index: int) -> tuple[Any, list[fx.Node]]:
    """What stands at this argument before it was turned, and the calls that turned it."""
    node: Any = product.args[index]
    calls = []
    while (
        isinstance(node, fx.Node)
        and node.op == "call_function"
        and operator_name(node) in ("t", "transpose", "permute")
    ):
        calls.append(node)
        node = node.args[0]
    return node, calls
