"""What the few in-place calls that functionalisation leaves amount to, and calls with a generator of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_aten = torch.ops.aten
#: In-place calls that change a tensor's shape alone: nobody else sees that, also where the tensor is a view.
_SHAPING = frozenset({"transpose_", "t_", "squeeze_", "unsqueeze_"})


def plain_form(func: OpOverload, args: tuple[Any, ...], node_args: Any) -> tuple[OpOverload, Any]:
    """What a call amounts to: the few in-place ones that functionalisation leaves do what others do.

    Pooling sets the strides of a result of its own (``as_strided_``); what is made from a tensor and copied over it is
    the tensor from then on.
    """
    if func is _aten.as_strided_.default:
        return _aten.alias.default, node_args[:1]
    if func is _aten.copy.default and node_args[0] in node_args[1].all_input_nodes and _alike(args[0], args[1]):
        return _aten.alias.default, node_args[1:2]
    return _functional(_without_generator(func), args), node_args


def _without_generator(func: OpOverload) -> OpOverload:
    """A recording holds no generators: what draws from one is written as what draws from torch's own."""
    name = func._overloadname
    if "generator" not in name:
        return func
    plain: OpOverload = getattr(
        func.overloadpacket, name.replace("generator", "").strip("_").replace("__", "_") or "default"
    )
    return plain


def _functional(func: OpOverload, args: tuple[Any, ...]) -> OpOverload:
    """What an in-place call computes, where nothing else can see the write: recurrent layers hide a few of these."""
    name = func.overloadpacket.__name__
    if not func._schema.is_mutable or not name.endswith("_"):
        return func
    if args[0]._is_view() and name not in _SHAPING:
        return func
    if name == "transpose_":  # the one whose overloads are named otherwise
        return _aten.transpose.int
    packet = getattr(_aten, name[:-1], None)
    found = getattr(packet, func._overloadname, None)
    return found if isinstance(found, OpOverload) else func


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
