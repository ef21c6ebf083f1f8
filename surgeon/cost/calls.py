"""The calls of a recording, their shapes as functions of the channels that stay: what latency tables are asked for.

An axis that channels live on is a *variable*; axes with the same channels are one variable. Given a size for each of
its variables a call can be made again on numbers of our own, and timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Ints
from surgeon.tracing import Trace, moves_numbers, operator_name, running

#: Calls whose time grows with the product of their variables; that of all others grows with the bytes they move.
CONTRACTIONS = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm"})


@dataclass(frozen=True, eq=False)
class Variable:
    """The size of an axis that channels live on.

    Attributes
    ----------
    numbers:
        Channel number of each place; -1 where a place has none.
    parts:
        How many equal parts share the places (heads, groups): the size is their number divided by it.
    """

    numbers: Ints
    parts: int = 1

    @property
    def dense(self) -> int:
        """The size in the dense model."""
        return len(self.numbers) // self.parts


@dataclass(frozen=True)
class Operand:
    """A tensor that a call takes: sizes, or indices of the call's variables given as ``~index``."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False

    def shape(self, values: Sequence[int]) -> tuple[int, ...]:
        """The shape when the variables have these values."""
        return tuple(values[~size] if size < 0 else size for size in self.sizes)


@dataclass(frozen=True, eq=False)
class TimedCall:
    """One call, as it can be made again at any width.

    Attributes
    ----------
    node:
        Where it stands in the recording.
    variables:
        Indices into :attr:`Calls.variables`, one for each of its own variables.
    operands:
        Its tensors, in order.
    template:
        Its arguments, with an :class:`Operand` in place of each tensor.
    in_place:
        The program overwrites the first operand.
    """

    node: fx.Node
    variables: tuple[int, ...]
    operands: tuple[Operand, ...]
    template: Any
    in_place: bool

    @property
    def name(self) -> str:
        """The operator, with an underscore behind it where it works in place."""
        return operator_name(self.node) + "_" * self.in_place

    @property
    def contracts(self) -> bool:
        """Whether its time grows with the product of its variables."""
        return operator_name(self.node) in CONTRACTIONS

    def key(self, values: Sequence[int]) -> str:
        """What a table knows it by: equal for calls that do the same work."""
        shapes = ",".join("x".join(map(str, o.shape(values))) + "t" * o.transposed for o in self.operands)
        rest = [str(leaf) for leaf in pytree.tree_leaves(self._arguments(values)) if not isinstance(leaf, Operand)]
        kinds = {str(o.dtype).removeprefix("torch.") for o in self.operands}
        return f"{self.name} {shapes} {','.join(sorted(kinds))} {','.join(rest)}"

    def elements(self, values: Sequence[int]) -> int:
        """Numbers that it reads, all tensors together."""
        return sum(math.prod(o.shape(values)) for o in self.operands)

    def build(self, values: Sequence[int], device: torch.device, layout: torch.memory_format) -> Any:
        """The call itself at these sizes, as a function of nothing, on numbers of our own."""

        def tensor(leaf: Any) -> Any:
            return _filled(leaf, leaf.shape(values), device, layout) if isinstance(leaf, Operand) else leaf

        args, kwargs = pytree.tree_map(tensor, self._arguments(values), is_leaf=_is_operand)
        target: Any = self.node.target
        if self.in_place:
            target = getattr(torch.ops.aten, self.name)
        return lambda: target(*args, **kwargs)

    def _arguments(self, values: Sequence[int]) -> Any:
        """The arguments with numbers that follow the widths: how many groups a depth-wise convolution has."""
        args, kwargs = self.template
        if operator_name(self.node) == "convolution" and args[8] > 1:
            depthwise = args[1].sizes[1] == 1
            args = [*args[:8], args[0].shape(values)[1] if depthwise else args[8]]
        return [list(args), kwargs]


def _is_operand(leaf: Any) -> bool:
    return isinstance(leaf, Operand)


def _filled(operand: Operand, shape: tuple[int, ...], device: torch.device, layout: torch.memory_format) -> Tensor:
    """Numbers around 1 (no denormal ones, however often they are multiplied); indices are zeros."""
    if not operand.dtype.is_floating_point:
        return torch.zeros(shape, dtype=operand.dtype, device=device)
    turned = (*shape[:-2], shape[-1], shape[-2]) if operand.transposed else shape
    value = torch.rand(turned, device=device).add_(0.5).to(operand.dtype)
    if operand.transposed:
        return value.transpose(-1, -2)
    return value.contiguous(memory_format=layout) if value.ndim == 4 else value


class Calls:
    """All calls of a recording that take time.

    Attributes
    ----------
    graph:
        The channel graph that it is of.
    variables:
        Axes that channels live on.
    calls:
        The calls, in the order of the forward.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.variables: list[Variable] = []
        self._index: dict[tuple[bytes, int], int] = {}
        self._cut = np.zeros(graph.structure.count + 1, dtype=bool)  # the last entry stands for no channel
        for group in graph.named.values():
            self._cut[group.numbers] = True
        in_place = in_place_calls(graph.trace)
        self.calls = [self._call(node, node in in_place) for node in graph.trace.calls if _is_timed(node)]

    def dense(self, call: TimedCall) -> tuple[int, ...]:
        """Sizes of the call's variables in the dense model."""
        return tuple(self.variables[index].dense for index in call.variables)

    def _call(self, node: fx.Node, in_place: bool) -> TimedCall:
        own: list[int] = []
        operands: list[Operand] = []

        def operand(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            operands.append(self._operand(value, own))
            return operands[-1]

        template = pytree.tree_map(operand, [list(node.args), dict(node.kwargs)])
        return TimedCall(node, tuple(own), tuple(operands), template, in_place)

    def _operand(self, node: fx.Node, own: list[int]) -> Operand:
        shape, dtype = _described(self.graph.trace, node)
        sizes = list(shape)
        marked = self.graph.structure.labels.marks.get(node)
        planes = () if marked is None else sorted(marked.planes, key=lambda found: len(found.axes))
        for plane, axis in [(own_plane, axis) for own_plane in planes for axis in sorted(own_plane.axes)]:
            numbers = self.graph.structure.of(plane.labels)
            if plane.example or sizes[axis] <= 1 or len(numbers) % shape[axis] or not self._cut[numbers].any():
                continue
            index = self._variable(numbers, len(numbers) // shape[axis])
            own += [] if index in own else [index]
            sizes[axis] = ~own.index(index)
        turned = node.op == "call_function" and operator_name(node) in {"t", "transpose"}
        return Operand(tuple(sizes), dtype, transposed=turned and len(sizes) >= 2)

    def _variable(self, numbers: Ints, parts: int) -> int:
        numbers = np.sort(numbers)
        key = (numbers.tobytes(), parts)
        if key not in self._index:
            self._index[key] = len(self.variables)
            self.variables.append(Variable(numbers, parts))
        return self._index[key]


def _described(trace: Trace, node: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
    if "shape" in node.meta:
        return tuple(node.meta["shape"]), node.meta.get("dtype", torch.float32)
    tensor = trace.tensors[str(node.target)]
    return tuple(tensor.shape), tensor.dtype


def _is_timed(node: fx.Node) -> bool:
    return moves_numbers(node) and not node.meta.get("extra") and bool(node.all_input_nodes)


def in_place_calls(trace: Trace) -> set[fx.Node]:
    """Calls that the program makes in place; in the recording each makes a new tensor.

    The model is run once more and its calls are matched by their names, one after the other; those of a name that
    occurs another number of times are taken to be out of place.
    """
    seen: dict[str, list[bool]] = {}
    with running(trace.model, trace.inputs) as call, torch.no_grad(), _Names(seen):
        call()
    found: set[fx.Node] = set()
    for name, flags in seen.items():
        nodes = [n for n in trace.calls if operator_name(n) == name and not n.meta.get("extra")]
        if len(nodes) == len(flags):
            found |= {node for node, flag in zip(nodes, flags, strict=True) if flag}
    return found


class _Names(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__ is untyped
    """Notes of each call whether it works in place."""

    def __init__(self, seen: dict[str, list[bool]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        in_place = name.endswith("_") and not name.startswith("_")
        self._seen.setdefault(name.rstrip("_"), []).append(in_place)
        return func(*args, **(kwargs or {}))
