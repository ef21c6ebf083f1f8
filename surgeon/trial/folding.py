"""Numbers that follow a width (the 1/sqrt(d) of attention): the change is folded into the weights that feed them.

Where the cut model multiplies by ``s'`` what the dense one multiplied by ``s``, the rows of the weight in front are
multiplied by ``s / s'``, so that the product stays what it was.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints, flat
from surgeon.rules import Marked
from surgeon.tracing import operator_name

#: Operators through which a positive factor passes unchanged.
_LINEAR = frozenset({
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "clone", "alias", "detach", "slice",
    "select", "split", "split_with_sizes", "chunk", "unbind", "squeeze", "unsqueeze", "contiguous", "index_select",
    "repeat", "flip", "roll", "neg", "view_as_complex", "view_as_real", "relu", "sum", "mean",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "upsample_nearest2d",
})  # fmt: skip
#: Of these the operators that pick a part.
_PICKING = frozenset({"slice", "select", "split", "split_with_sizes", "chunk", "unbind", "index_select"})
#: Products with a weight: where their bias and their weight stand among the arguments.
_PRODUCTS = {"addmm": (0, 2), "mm": (None, 1), "convolution": (2, 1), "native_layer_norm": (3, 2)}
#: Products of two values: where the first of them stands among the arguments.
_FACTORS = {"bmm": 0, "mul": 0, "div": 0, "mm": 0, "addmm": 1, "convolution": 0}
_SUMS = frozenset({"add", "sub"})
_MADE = frozenset({"zeros", "new_zeros", "zeros_like"})


@dataclass(frozen=True)
class Fold:
    """One number folded into the weights in front of it.

    Attributes
    ----------
    rows:
        (tensor name, axis) -> dense positions whose weights are multiplied by `factor`.
    labels:
        The labels of those rows.
    path:
        Dense nodes between the weights and the number: there the cut model's values are `factor` times the dense ones.
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


#: The different labels of each value that was asked for: one is, many times over, wherever many numbers change.
_different: WeakKeyDictionary[Marked, Ints] = WeakKeyDictionary()


def find_folds(graph: ChannelGraph, changed: Iterable[tuple[fx.Node, fx.Node]]) -> tuple[list[Fold], fx.Node | None]:
    """How changed numbers can be folded (calls of the dense run, each with the small one), and the first that can't be.

    A number is folded by itself where it can be; else with others that change alike and have the same weights in front
    of them: a layer that runs several times, or keys that several queries meet.
    """
    numbers = [_Number.of(graph, dense, small) for dense, small in changed]
    folds: list[Fold] = []
    while numbers:
        first = numbers[0]
        joint = (first.together(way, numbers) for way in first.ways)
        choices = [*((way, [first]) for way in first.ways), *joint]
        found = next((c for c in choices if _exclusive(graph, {number.call for number in c[1]}, c[0])), None)
        if found is None:
            return folds, first.call
        way, served = found
        labels = np.concatenate([_labels_of(graph, place, positions) for place, positions in way.rows.items()])
        folds.append(Fold(first.factor, way.rows, labels, frozenset(way.path)))
        numbers = [number for number in numbers if number not in served]
    return folds, None


@dataclass(frozen=True, eq=False)
class _Number:
    """A call whose number changes by a factor, and the ways in which weights in front can take it."""

    call: fx.Node
    factor: float
    ways: list[_Sources]

    @classmethod
    def of(cls, graph: ChannelGraph, dense: fx.Node, small: fx.Node) -> _Number:
        factor, start = _factor(dense, small), dense.args[0] if dense.args else None
        if factor is None or factor <= 0 or not isinstance(start, fx.Node):
            return cls(dense, 1.0, [])
        ways = (_back(graph, start, (), weights) for weights in (False, True))
        return cls(dense, factor, [way for way in ways if way is not None and way.rows])

    def together(self, way: _Sources, others: Iterable[_Number]) -> tuple[_Sources, list[_Number]]:
        """`way` with the calls between its weights and the other numbers that they reach, and these numbers.

        Not those behind another number: there the rows take the factor once more.
        """
        calls = {number.call for number in others}
        alike = [(number, own) for number in others if number.factor == self.factor for own in number.ways]
        same = {number: own for number, own in alike if own.is_like(way) and own.path.isdisjoint(calls)}
        return _Sources(way.rows, set().union(*(own.path for own in same.values()))), list(same)


def _factor(dense: fx.Node, small: fx.Node) -> float | None:
    name, before, after = operator_name(dense), dense.args[1:], small.args[1:]
    numbers = [v for v in (*before, *after) if isinstance(v, int | float)]
    if name not in ("mul", "div") or len(before) != 1 or len(after) != 1 or len(numbers) != 2 or not all(numbers):
        return None
    return numbers[0] / numbers[1] if name == "mul" else numbers[1] / numbers[0]


@dataclass
class _Sources:
    """Rows of weights that a value is linear in, and the calls between."""

    rows: dict[tuple[str, int], Ints] = field(default_factory=dict)
    path: set[fx.Node] = field(default_factory=set)

    def is_like(self, other: _Sources) -> bool:
        """Whether both are the same rows."""
        return self.rows.keys() == other.rows.keys() and all(
            np.array_equal(rows, other.rows[place]) for place, rows in self.rows.items()
        )

    def with_others(self, others: Iterable[_Sources | None]) -> _Sources | None:
        """These and the others; None where one of them is unknown."""
        rows, path = dict(self.rows), set(self.path)
        for other in others:
            if other is None:
                return None
            for place, positions in other.rows.items():
                rows[place] = np.union1d(rows.get(place, positions), positions)
            path |= other.path
        return _Sources(rows, path)


def _back(graph: ChannelGraph, node: fx.Node, after: tuple[fx.Node, ...], weights: bool) -> _Sources | None:
    """Where the value of `node` comes from; `after` are the calls between it and the number.

    `weights`: of a product the factor that doesn't depend on the data takes it, as behind a norm.
    """
    name, own = operator_name(node), _Sources(path={node})
    inputs = [n for n in node.all_input_nodes if n is not node]
    later = (node, *after)
    if node.op == "get_attr":
        return _parameter_rows(graph, node, later)
    if name in _MADE:
        return own
    if name in _PRODUCTS:
        return own.with_others(_weights(graph, node, later, weights))
    if name in _SUMS or name in ("cat", "stack"):
        return own.with_others([_back(graph, n, later, weights) for n in inputs])
    if name == "bmm" or (name in ("mul", "div") and len(inputs) == 2):  # either factor can take it
        factors = sorted(inputs[: 1 if name == "div" else 2], key=lambda n: _constant(graph, n) != weights)
        ways = (own.with_others([_back(graph, n, later, weights)]) for n in factors)
        return next((way for way in ways if way is not None), None)
    scaled = name in ("mul", "div") and len(inputs) == 1
    if scaled or name in _LINEAR or node.target is operator.getitem:
        return own.with_others([_back(graph, inputs[0], later, weights)])
    return None


def _constant(graph: ChannelGraph, node: fx.Node) -> bool:
    mark = graph.structure.labels.marks.get(node)
    return mark is not None and mark.constant


def _weights(graph: ChannelGraph, product: fx.Node, later: tuple[fx.Node, ...], weights: bool) -> list[_Sources | None]:
    """The rows of a product's weight and bias that reach the number."""
    bias_index, weight_index = _PRODUCTS[operator_name(product)]
    weight = product.args[weight_index] if len(product.args) > weight_index else None
    bias = product.args[bias_index] if bias_index is not None and len(product.args) > bias_index else None
    if not isinstance(weight, fx.Node):
        return [None]
    found = [_back(graph, weight, later, weights)]
    if isinstance(bias, fx.Node):
        found.append(_beside(graph, weight, bias, found[0], weights))
    return found


def _beside(
    graph: ChannelGraph, weight: fx.Node, bias: fx.Node, rows: _Sources | None, weights: bool
) -> _Sources | None:
    """The bias of the chosen rows of a weight, or of several joined: they lie alike along the product's last axis."""
    other = _back(graph, bias, (), weights)
    axes = [_vector(graph, weight, rows), _vector(graph, bias, other)]
    if rows is None or other is None or axes[0] is None or axes[1] is None or len(axes[0]) != len(axes[1]):
        return None
    chosen = np.concatenate([_labels_of(graph, place, positions) for place, positions in rows.rows.items()])
    picked = axes[1][np.isin(axes[0], chosen)]
    space = graph.structure.labels.space
    # places of no tensor are zeros that the forward makes; what is joined with the chosen ones stays as it is
    picked = picked[np.isin(space.place_of(picked), [space.index[place] for place in other.rows])]
    owners = {place: picked[space.place_of(picked) == space.index[place]] for place in other.rows}
    found = {place: labels - space.starts[space.index[place]] for place, labels in owners.items() if len(labels)}
    return _Sources(found, {call for call in other.path if np.isin(_labels_at(graph, call), picked).any()})


def _vector(graph: ChannelGraph, node: fx.Node, rows: _Sources | None) -> Ints | None:
    """The labels along the one axis of `node` whose labels are those of the tensors that the rows are of."""
    space = graph.structure.labels.space
    own = [space.index[place] for place in rows.rows] if rows is not None else []
    made = [index for index, (name, _) in enumerate(space.places) if name not in space.planes]
    for plane in graph.structure.labels.marks[node].planes:
        labels = flat(plane.labels)
        places = np.unique(space.place_of(labels[labels > 0]))
        if len(plane.axes) == 1 and np.isin(own, places).any() and np.isin(places, [*own, *made]).all():
            return labels
    return None


def _parameter_rows(graph: ChannelGraph, node: fx.Node, later: tuple[fx.Node, ...]) -> _Sources | None:
    """The rows of a parameter that reach the number."""
    name, space = str(node.target), graph.structure.labels.space
    own = [space.index[name, max(plane.axes)] for plane in space.planes.get(name, ())]
    if not own:
        return None
    found: tuple[int, Ints] | None = None
    for call in later:
        labels = _labels_at(graph, call)
        labels = labels[np.isin(space.place_of(labels), own)]
        places = np.unique(space.place_of(labels))
        # behind the product one axis is left; from there on, only what picks a part makes the rows fewer
        if len(places) == 1 and (found is None or _picks(call)):
            found = int(places[0]), labels
    if found is None:
        return None
    index, labels = found
    return _Sources({space.places[index]: labels - space.starts[index]}, {node})


def _picks(node: fx.Node) -> bool:
    return operator_name(node) in _PICKING or node.target is operator.getitem


def _labels_at(graph: ChannelGraph, node: fx.Node) -> Ints:
    """The different labels of a value, in ascending order."""
    mark = graph.structure.labels.marks.get(node)
    if mark is None:
        return np.zeros(0, dtype=np.int64)
    if mark not in _different:
        found = [flat(p.labels) for p in mark.planes if not p.example]
        labels = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
        _different[mark] = labels[labels > 0]
    return _different[mark]


def _labels_of(graph: ChannelGraph, place: tuple[str, int], positions: Ints) -> Ints:
    space = graph.structure.labels.space
    return space.starts[space.index[place]] + positions


def _exclusive(graph: ChannelGraph, numbers: Collection[fx.Node], found: _Sources) -> bool:
    """Whether the rows reach nothing but the numbers, and once: whoever else reads from the path picks other rows."""
    labels = np.concatenate([_labels_of(graph, place, rows) for place, rows in found.rows.items()])
    for node in found.path:
        for user in node.users:
            if user in numbers or (user in found.path and _takes_once(user, found.path)):
                continue
            # what a split picks, its parts say
            parts = [user] if user in graph.structure.labels.marks else set(user.users) - found.path
            if not _picks(user) or any(np.isin(_labels_at(graph, part), labels).any() for part in parts):
                return False
    return True


def _takes_once(call: fx.Node, path: Collection[fx.Node]) -> bool:
    """Whether a product's factors aren't both on the path: it would be multiplied twice."""
    first = _FACTORS.get(operator_name(call))
    return first is None or sum(value in path for value in call.args[first : first + 2]) <= 1
