"""Numbers in a forward that depend on its widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from surgeon.rules import POINTWISE
from surgeon.tracing import Trace, operator_name
from surgeon.trial.alignment import partners


def changed_numbers(small: Trace, dense: Trace, nodes: Mapping[fx.Node, fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Dense calls whose numbers are others at the small widths, each with the small call; sizes of movement apart."""
    theirs = partners(nodes)
    for node in dense.graph.nodes:
        other = theirs.get(node)
        if other is None:
            continue
        if node.op == "call_function" and _numbers(node) != _numbers(other):
            yield node, other
        if node.op == "get_attr" and _other_constant(dense.tensors[str(node.target)], small.tensors[str(other.target)]):
            yield from ((user, other) for user in node.users)


def _numbers(node: fx.Node) -> list[Any]:
    """Numbers among the arguments: floats of any call, whole ones of elementwise calls."""
    kinds = (int, float) if operator_name(node) in POINTWISE else (float,)
    return [leaf for leaf in _leaves((node.args, node.kwargs)) if type(leaf) in kinds]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _other_constant(dense: Tensor, small: Tensor) -> bool:
    """Whether a constant that the forward makes (not a parameter: those were resized) has other values."""
    if dense.ndim or small.ndim or "meta" in (dense.device.type, small.device.type):
        return False
    return dense.item() != small.item()
