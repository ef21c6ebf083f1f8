"""Calls on the meta device: shapes without numbers.

Torch works many of them out in Python, at up to a millisecond each. What a call of these shapes gives is the same
every time, so each is worked out once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

#: Calls that are remembered; the oldest go first.
_MOST = 1 << 14
#: Calls whose result has shape, strides and type of their only tensor.
_LIKE_THE_FIRST = frozenset(
    {"elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "sigmoid", "silu", "tanh"}
)


class _Like(NamedTuple):
    """A result without numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


#: Results by call: one tensor, or several. What torch refuses isn't kept.
_known: dict[Any, _Like | tuple[_Like, ...]] = {}
_pure: dict[OpOverload, bool] = {}


def run_meta(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``func(*args, **kwargs)`` on tensors of the meta device."""
    name = func.overloadpacket.__name__
    if name in _LIKE_THE_FIRST and args[0].is_floating_point():
        return _empty_like(args[0])
    if name == "native_batch_norm" and not args[5]:  # in eval mode
        nothing = _Like((0,), (1,), args[0].dtype)
        return _empty_like(args[0]), nothing.make(), nothing.make()
    key = _key(func, args, kwargs)
    if key is None:
        return func(*args, **kwargs)
    known = _known.get(key)
    if known is None:
        return _remember(key, func(*args, **kwargs))
    return known.make() if isinstance(known, _Like) else tuple(like.make() for like in known)


def _empty_like(tensor: Tensor) -> Tensor:
    key = (torch.empty_like, _described(tensor))
    known = _known.get(key)
    made: Tensor = _remember(key, torch.empty_like(tensor)) if known is None else known.make()  # type: ignore[union-attr]
    return made


def _remember(key: Any, result: Any) -> Any:
    parts = result if isinstance(result, tuple) else (result,)
    if not all(type(part) is Tensor and part.device.type == "meta" for part in parts):
        return result
    likes = tuple(_Like(tuple(part.shape), part.stride(), part.dtype) for part in parts)
    if len(_known) >= _MOST:
        del _known[next(iter(_known))]
    _known[key] = likes if isinstance(result, tuple) else likes[0]
    return result


def _key(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the result's shape depends on; None for calls that view or change an operand, or take anything unusual."""
    pure = _pure.get(func)
    if pure is None:
        pure = _pure[func] = _is_pure(func)
    if not pure:
        return None
    try:
        key = (func, *map(_described, args), *((name, _described(value)) for name, value in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def _is_pure(func: OpOverload) -> bool:
    """Whether every result is a new tensor."""
    schema = func._schema
    return (
        not schema.is_mutable
        and all(item.alias_info is None for item in (*schema.arguments, *schema.returns))
        and not any(tag is torch.Tag.data_dependent_output for tag in func.tags)
    )


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.device.type != "meta" or value.layout is not torch.strided:
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value  # 1 and 1.0 are equal, but promote types otherwise


def all_meta(values: Iterable[Any]) -> bool:
    """Whether the first tensor among these is on the meta device."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type == "meta"
        if isinstance(value, list | tuple) and value:
            return all_meta(value)
    return False
