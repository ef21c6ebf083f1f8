"""The label pass: run a recorded graph on labels instead of numbers."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from surgeon.channels.labelled import is_kernel, is_labelled
from surgeon.channels.space import Space
from surgeon.rules import POINTWISE, TABLE, Ledger, Marked, Plane, compact, reasons
from surgeon.rules.marks import replace
from surgeon.tracing import Trace, is_copy, operator_name

_log = logging.getLogger("surgeon")
#: Example planes use negative numbers, so they can never be mistaken for labels.
_FIRST_EXAMPLE = -1


class Mismatch(Exception):
    """The cut model's recording carries channels otherwise than the dense one; `node` is the first such dense call."""

    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(f"{node.meta.get('site')}: {why}")
        self.node = node
        self.why = why


#: Calls whose rules say along which axes the result is stretched: those of their operands, or where these have come to.
_STRETCHING = frozenset({
    "expand", "repeat", "clone", "alias", "detach", "_to_copy", "view", "_unsafe_view", "_reshape_alias", "permute",
    "transpose", "t", "squeeze", "unsqueeze", "select", "slice", "flip", "cat", *POINTWISE,
})  # fmt: skip
#: Of each plane of a value the number of the plane that the rule gave, and the axes along which its labels vary.
Arrangement = tuple[tuple[int, frozenset[int] | None], ...]


@dataclass(frozen=True)
class Labels:
    """The outcome of one label pass."""

    trace: Trace
    space: Space
    ledger: Ledger
    marks: Mapping[fx.Node, Marked]
    axes: Mapping[fx.Node, Arrangement]
    failed: frozenset[fx.Node] = frozenset()
    """Calls that their rules couldn't take."""


@dataclass(frozen=True)
class Guide:
    """The dense pass, which a cut model's pass follows: axes are labelled where they are labelled there."""

    dense: Labels
    nodes: Mapping[fx.Node, fx.Node]
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """What tensors of channel numbers hold at the cut widths, by name: a recording on the meta device can't tell."""


class LabelPass(fx.Interpreter):
    """Runs a graph on :class:`Marked` values.

    ``run_node`` dispatches ``get_attr`` -> :meth:`_parameter`, a call -> its rule in the table, or, where there is none
    or it fails, :meth:`_unknown`; then :meth:`_finish` finds out which axes the labels vary along.

    Parameters
    ----------
    trace:
        The recording.
    guide:
        For a cut model, the dense pass and the dense node of each node.
    examples:
        Also carry which example of the batch each place belongs to (axis 0 of every input).
    """

    def __init__(self, trace: Trace, guide: Guide | None = None, *, examples: bool = False) -> None:
        super().__init__(torch.nn.Module(), graph=trace.graph)
        self.extra_traceback = False
        self._trace, self._guide, self._examples = trace, guide, examples
        self._space = Space()
        self._ledger = Ledger(number=self._space.add)
        self._axes: dict[fx.Node, Arrangement] = {}
        self._marks: dict[fx.Node, Marked] = {}
        self._failed: set[fx.Node] = set()

    def label(self) -> Labels:
        """Run the recording on labels, with one for each channel of each parameter."""
        self.run(*[None] * sum(node.op == "placeholder" for node in self._trace.graph.nodes))
        return Labels(self._trace, self._space, self._ledger, self._marks, self._axes, frozenset(self._failed))

    def run_node(self, n: fx.Node) -> Any:
        """Work out the labels of one node's value."""
        self._ledger.node, self._ledger.dense = n, self._dense(n)
        try:
            return self._mark(n)
        except Mismatch:
            raise
        except Exception as problem:
            if self._guide is None:
                raise
            raise Mismatch(self._ledger.dense, str(problem)) from problem

    def _mark(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            return self._finished(n, self._input(n))
        if n.op == "get_attr":
            return self._finished(n, self._parameter(n))
        if n.op == "output":
            return self._output(n)
        return self._finished(n, self._call(n)) if self._guide is not None else self._tried(n)

    def _tried(self, n: fx.Node) -> Any:
        """A call of the dense pass. A rule may be anybody's: where one fails, it is as if there were none."""
        noted, places = self._ledger.counts(), len(self._space.places)
        try:
            return self._finished(n, self._call(n))
        except Exception as problem:  # noqa: BLE001
            told = f"the rule of {operator_name(n)} failed at {n.meta.get('site')}: {type(problem).__name__}: {problem}"
            _log.warning("%s; the channels there stay whole", told, extra={"stage": "trace"})
            _log.debug(told, exc_info=problem, extra={"stage": "trace"})
        self._ledger.forget(noted)
        self._space.shrink(places)
        self._failed.add(n)
        return self._finished(n, self._call(n))

    def _finished(self, n: fx.Node, result: Any) -> Any:
        """The result of a node with its numbers and axes."""
        if "shape" in n.meta and not isinstance(result, Marked):
            raise TypeError(f"the rule of {operator_name(n)} gave {type(result).__name__}, expected Marked")
        if isinstance(result, Marked) and isinstance(n.meta.get("value"), Tensor):
            result = replace(result, value=self._value(n))
        if isinstance(result, Marked) and "shape" in n.meta:
            result = self._marks[n] = self._finish(n, result)
        return result

    def _dense(self, node: fx.Node) -> fx.Node:
        return node if self._guide is None else self._guide.nodes.get(node, node)

    def _input(self, node: fx.Node) -> Marked:
        shape = tuple(node.meta["shape"])
        planes: tuple[Plane, ...] = ()
        if self._examples and shape and shape[0] > 1:
            labels = torch.arange(_FIRST_EXAMPLE, _FIRST_EXAMPLE - shape[0], -1)
            planes = (Plane(labels.view([-1] + [1] * (len(shape) - 1)), frozenset({0}), example=True),)
        return Marked(shape, shape, planes, value=node.meta.get("value"))

    def _parameter(self, node: fx.Node) -> Marked:
        name, shape = str(node.target), tuple(node.meta["shape"])
        value = self._value(node)
        planes = self._weight_planes(node, name, shape) if is_labelled(self._ledger.dense) else ()
        return Marked(shape, tuple(self._ledger.dense.meta["shape"]), planes, constant=True, value=value)

    def _value(self, node: fx.Node) -> Tensor | None:
        """An index tensor's numbers; a recording on the meta device has none, so those given or the dense one's do."""
        given = self._guide.numbers.get(str(node.target)) if self._guide is not None else None
        for value in (node.meta.get("value"), given, self._ledger.dense.meta.get("value")):
            if isinstance(value, Tensor) and value.device.type != "meta":
                return value
        return None

    def _weight_planes(self, node: fx.Node, name: str, shape: tuple[int, ...]) -> tuple[Plane, ...]:
        span = self._ledger.dense.meta["shape"]
        groups, kernel = _groups_of(node), is_kernel(self._ledger.dense)
        planes = []
        for axis in range(len(shape)):
            if span[axis] == 1 or (kernel and axis >= 2):
                continue
            if axis == 1 and groups > 1:  # each group of a grouped convolution has in-channels of its own
                labels = self._space.add(name, axis, groups * shape[1]).view(groups, shape[1])
                labels = labels.repeat_interleave(shape[0] // groups, 0).view(*shape[:2], *[1] * (len(shape) - 2))
                planes.append(Plane(labels, frozenset({0, 1})))
            else:
                labels = self._space.add(name, axis, shape[axis])
                view = [shape[axis] if a == axis else 1 for a in range(len(shape))]
                planes.append(Plane(labels.view(view), frozenset({axis})))
        self._space.planes[name] = tuple(planes)
        return tuple(planes)

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        name = operator_name(node)
        if self._ledger.dense in (self._failed if self._guide is None else self._guide.dense.failed):
            return self._unknown(reasons.failed_rule(name), args, kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], list | tuple) else Marked((), ())
        rule = TABLE.get(name)
        if rule is None:
            return self._unknown(reasons.without_rule(name), args, kwargs)
        return rule(self._ledger, *args, **kwargs)

    def _unknown(self, why: str, args: Any, kwargs: Any) -> Marked:
        """No rule: everything that flows in is pinned."""
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Marked)]
        for operand in operands:
            self._ledger.pin(operand.planes, why)
        return Marked((), (), constant=bool(operands) and all(o.constant for o in operands))

    def _output(self, node: fx.Node) -> None:
        for value in pytree.tree_leaves(self.map_nodes_to_values(node.args, node)):
            if isinstance(value, Marked):
                self._ledger.pin(value.planes, reasons.OUTPUT)

    def _finish(self, node: fx.Node, marked: Marked) -> Marked:
        shape, span = tuple(node.meta["shape"]), tuple(self._ledger.dense.meta.get("shape", node.meta["shape"]))
        guided = self._guide is not None and self._ledger.dense in self._guide.dense.axes
        if any(not plane.labels.numel() for plane in marked.planes):
            marked = replace(marked, planes=tuple(p for p in marked.planes if p.labels.numel()))
        planes, axes = self._guided(marked, shape) if guided else self._evident(marked)
        self._axes[node] = axes
        stretched = marked.stretched if operator_name(node) in _STRETCHING else frozenset()
        if self._guide is not None and self._ledger.dense in self._guide.dense.marks:
            stretched = self._guide.dense.marks[self._ledger.dense].stretched  # one channel that is left looks alike
        span = tuple(1 if axis in stretched else size for axis, size in enumerate(span))
        return replace(marked, shape=shape, span=span, planes=planes, stretched=stretched)

    def _evident(self, marked: Marked) -> tuple[tuple[Plane, ...], Arrangement]:
        compacted = [compact(plane.labels) for plane in marked.planes]
        planes, found = [], []
        for index in _finest_first([axes for _, axes in compacted], marked.planes):
            labels, axes = compacted[index]
            plane = Plane(labels, axes, marked.planes[index].example)
            if axes:
                planes.append(plane)
            else:
                # a single channel, picked by a constant: it can't move
                self._ledger.pin([plane], reasons.constant(self._ledger.node))
            found.append((index, axes or None))
        return tuple(planes), tuple(found)

    def _guided(self, marked: Marked, shape: tuple[int, ...]) -> tuple[tuple[Plane, ...], Arrangement]:
        assert self._guide is not None
        dense = self._ledger.dense
        wanted = self._guide.dense.axes[dense]
        if is_copy(self._ledger.node) and operator_name(self._ledger.node) != operator_name(dense):
            # a copy that only this run makes stands for its operand's own call, whose planes are arranged already
            wanted = tuple(enumerate(axes for _, axes in wanted if axes is not None))
        if len(wanted) != len(marked.planes):
            raise Mismatch(dense, "channels arrive along other axes than in the dense model")
        planes = []
        for index, axes in wanted:
            plane = marked.planes[index]
            found = Plane(_narrow(dense, plane, axes or frozenset(), shape), axes or frozenset(), plane.example)
            if axes is None:
                self._ledger.pin([found], reasons.constant(self._ledger.node))
            else:
                planes.append(found)
        return tuple(planes), wanted


def _finest_first(axes: Sequence[frozenset[int]], planes: Sequence[Plane]) -> list[int]:
    """The order of planes; of those along the same axes (channels of heads, and the heads) the most detailed leads."""
    order = list(range(len(planes)))
    if len(set(axes)) == len(axes):
        return order
    details = [len(np.unique(plane.labels.reshape(-1)[:_ENOUGH].numpy())) for plane in planes]
    return sorted(order, key=lambda i: (min(j for j in order if axes[j] == axes[i]), -details[i]))


#: Places that show whether labels change from each to the next, or from head to head.
_ENOUGH = 4096


def _narrow(dense: fx.Node, plane: Plane, axes: frozenset[int], shape: tuple[int, ...]) -> Tensor:
    """The plane's labels, full along `axes` and of size 1 elsewhere, where they must not vary."""
    labels = plane.labels
    if labels.ndim != len(shape) or max(axes, default=-1) >= labels.ndim:
        raise Mismatch(dense, "the result has another number of axes than in the dense model")
    for axis in range(labels.ndim):
        if axis not in axes and labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if not bool((labels == first).all()):
                raise Mismatch(dense, "channels arrive along other axes than in the dense model")
            labels = first
    if any(labels.shape[a] not in (1, shape[a]) for a in axes):
        raise Mismatch(dense, "the result has another shape than its channels")
    return labels.expand([shape[a] if a in axes else 1 for a in range(labels.ndim)])


def _groups_of(node: fx.Node) -> int:
    """The groups of the grouped convolution that uses this weight directly; 1 if there is none."""
    for user in node.users:
        packet = getattr(user.target, "overloadpacket", None)
        if packet is torch.ops.aten.convolution and user.args[1] is node and node.meta["shape"][1] >= 1:
            return int(user.args[8])  # type: ignore[arg-type]
    return 1


def label(trace: Trace, guide: Guide | None = None, *, examples: bool = False) -> Labels:
    """Run the label pass over a recording."""
    return LabelPass(trace, guide, examples=examples).label()
