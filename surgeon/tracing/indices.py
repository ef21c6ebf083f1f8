"""Tensors of whole numbers that say where data is read or written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

#: Operators whose integer operands say where data goes: their values are kept for the label pass.
INDEX_OPERATORS = frozenset(
    {
        "index",
        "index_select",
        "gather",
        "embedding",
        "index_put",
        "take",
        "scatter",
        "scatter_add",
        "scatter_reduce",
    }
)
#: Operators that go along one axis: tensor, axis, numbers.
_ALONG = ("index_select", "gather", "scatter", "scatter_add", "scatter_reduce")


def in_range(func: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether all places that a call reads at are known and exist: on values without numbers nobody else checks."""
    picks = list(_picks(func.overloadpacket.__name__, args))
    return bool(picks) and all(
        where.device.type != "meta" and not (where.numel() and bool(((where < first) | (where >= size)).any()))
        for first, size, where in picks
    )


def check_places(func: OpOverload, args: tuple[Any, ...]) -> None:
    """Raise what the CPU raises for a place that doesn't exist: a GPU fails later, and the process with it.

    Raises
    ------
    IndexError
        If a number is out of range.
    """
    if all(where.device.type in ("cpu", "meta") for _, _, where in _places(func, args)):
        return
    for first, size, where in _places(func, args):
        outside = (where < first) | (where >= size)
        if where.dtype is not torch.bool and where.numel() and bool(outside.any()):
            raise IndexError(f"index {int(where[outside][0])} is out of bounds for an axis of {size}")


def _places(func: OpOverload, args: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor]]:
    """For each axis that is read or written by numbers: the least number allowed, the axis's size, and the numbers."""
    name = func.overloadpacket.__name__
    if name == "take":
        yield -args[0].numel(), args[0].numel(), args[1]
    elif name in _ALONG:
        yield 0, args[0].shape[args[1]] if args[0].ndim else 1, args[2]
    else:
        yield from _picks("index" if name == "index_put" else name, args)


def _picks(name: str, args: tuple[Any, ...]) -> Iterator[tuple[int, int, Tensor]]:
    """The same for calls that read."""
    if name == "index":
        sizes = zip(args[0].shape, args[1], strict=False)
        yield from ((-size, size, where) for size, where in sizes if where is not None)
    elif name == "index_select":
        yield 0, args[0].shape[args[1]], args[2]
    elif name == "embedding":
        yield 0, args[0].shape[0], args[1]


def is_place(user: fx.Node, node: fx.Node) -> bool:
    """Whether all that `user` takes of `node` is where to read."""
    packet = getattr(user.target, "overloadpacket", None)
    return getattr(packet, "__name__", None) in ("index", "index_select", "embedding") and user.args[0] is not node
