"""Fused calls that only a GPU makes, as the calls that the same forward makes elsewhere.

Written in operators that don't come apart any further: below autograd nothing takes composite ones apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

_aten = torch.ops.aten


def lstm_cell(
    inputs: Tensor, hidden: Tensor, cell: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Next hidden state, next cell, and what a backward would read."""
    gates = _plus(inputs, input_bias) + _plus(hidden, hidden_bias)
    enter, forget, new, leave = _split(gates, 4)
    following = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * following.tanh(), following, gates


def gru_cell(
    inputs: Tensor, hidden: Tensor, state: Tensor, input_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Next state, and what a backward would read."""
    ours, theirs = _plus(inputs, input_bias), _plus(hidden, hidden_bias)
    (reset, keep, new), (back, hold, old) = _split(ours, 3), _split(theirs, 3)
    candidate = (new + old * (back + reset).sigmoid()).tanh()
    return (state - candidate) * (hold + keep).sigmoid() + candidate, ours


def rms_norm(
    x: Tensor, size: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """The norm, and one over the root; half types are computed in float32 and have its epsilon."""
    wide = _aten._to_copy(x, dtype=torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    squares = wide.pow(2).mean(list(range(x.ndim - len(size), x.ndim)), keepdim=True)
    root = (squares + (torch.finfo(wide.dtype).eps if eps is None else eps)).rsqrt()
    y = wide * root if weight is None else wide * root * weight
    return y if y.dtype == x.dtype else _aten._to_copy(y, dtype=x.dtype), root


def _plus(gates: Tensor, bias: Tensor | None) -> Tensor:
    return gates if bias is None else gates + bias


def _split(gates: Tensor, count: int) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = torch.unsafe_split(gates, gates.shape[1] // count, 1)
    return parts


#: What is recorded in place of a fused call. It comes apart alike at all widths, and holds no width as a number.
PARTS: dict[OpOverload, Callable[..., Any]] = {
    _aten._thnn_fused_lstm_cell.default: lstm_cell,
    _aten._thnn_fused_gru_cell.default: gru_cell,
    _aten._fused_rms_norm.default: rms_norm,
}
