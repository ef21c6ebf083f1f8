"""Fused calls as the calls that they stand for: those that only a GPU makes, weight norms, products of experts, and
noise around a mean.

Written in operators that don't come apart any further: below autograd nothing takes composite ones apart.
"""

from __future__ import annotations

import functools
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


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """The weight, and the norms of `v` along all axes but `dim`; the kernels take `v` as contiguous, whatever it is."""
    wide = _aten._to_copy(v, dtype=torch.float32) if v.dtype in (torch.float16, torch.bfloat16) else v
    norms = wide.pow(2).sum([axis for axis in range(v.ndim) if axis != dim], keepdim=True).sqrt()
    weight = wide * (g / norms)
    return weight if weight.dtype == v.dtype else _aten._to_copy(weight, dtype=v.dtype), norms


def sparse_addmm(bias: Tensor, one: Tensor, other: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """``torch.sparse.mm`` is one with nothing added."""
    product = torch.mm(one, other)
    return product if (beta, alpha) == (0, 1) else beta * bias + alpha * product


def normal(mean: Tensor | float, std: Tensor | float = 1.0, generator: Any = None) -> Tensor:
    """Noise of this mean and width; drawn by itself, it belongs to no channel."""
    shaped = mean if isinstance(mean, Tensor) else std
    both = mean + std if isinstance(mean, Tensor) and isinstance(std, Tensor) else shaped
    assert isinstance(both, Tensor)
    return mean + std * torch.randn(both.shape, generator=generator, dtype=both.dtype, device=both.device)


def rrelu(x: Tensor, noise: Tensor, *options: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """The call itself, which leaves what it drew in `noise`: not every version of torch takes the write apart."""
    return _aten.rrelu_with_noise(x, noise, *options, **more), noise


class StepError(RuntimeError):
    """A kernel refuses a width that `step` doesn't divide."""

    def __init__(self, step: int) -> None:
        super().__init__(f"strides should be multiple of 16 bytes: give widths in steps of {step}")
        self.step = step


def grouped_mm(
    one: Tensor, other: Tensor, ends: Tensor | None = None, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Products of matrices that lie behind each other along an axis of a factor; `ends` says where each one ends.

    Of experts: rows `(tokens, in)`, sorted by expert, by weights `(experts, in, out)`. Rows behind the last end are 0.
    Raises StepError as the kernel would: a width that it refuses must not pass for one that runs.
    """
    if ends is None:
        product = torch.bmm(_aligned(one), _aligned(other))
    else:
        stops = [int(ends[index]) for index in range(ends.shape[0])]
        product = _products(one, other, list(zip([0, *stops], stops, strict=False)))
    product = product if bias is None else product + bias
    return product if dtype in (None, product.dtype) else _aten._to_copy(product, dtype=dtype)


def _products(one: Tensor, other: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """One product for each range: of the rows of `one`, of the columns of `other`, or of what is summed over."""
    if one.ndim == other.ndim == 2:
        return torch.stack([torch.mm(_aligned(one)[:, a:b], _aligned(other)[a:b]) for a, b in ranges])
    whole = [(index, a, b) for index, (a, b) in enumerate(ranges) if b > a]
    if one.ndim == 2:
        parts = [torch.mm(_aligned(one)[a:b], _aligned(other)[index]) for index, a, b in whole]
        rest = one.shape[0] - ranges[-1][1]
        return torch.cat([*parts, one.new_zeros(rest, other.shape[2])] if rest or not parts else parts)
    return torch.cat([torch.mm(_aligned(one)[index], _aligned(other)[:, a:b]) for index, a, b in whole], 1)


def _aligned(factor: Tensor) -> Tensor:
    """The factor, if its rows (or columns, where those lie next to each other) begin at multiples of 16 bytes."""
    step = max(1, 16 // factor.element_size())
    across, along = factor.stride()[-2:]
    if (along if across == 1 and along >= factor.shape[-2] else across) % step:
        raise StepError(step)
    return factor


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
    _aten._weight_norm_interface.default: weight_norm,
    _aten._grouped_mm.default: grouped_mm,
    _aten._sparse_addmm.default: sparse_addmm,
    _aten.normal.Tensor_Tensor: normal,
    _aten.normal.Tensor_float: normal,
    _aten.normal.float_Tensor: normal,
    _aten.rrelu_with_noise_functional.default: rrelu,
}
#: The same of operators that a library registers, by their names.
_NAMED: dict[str, Callable[..., Any]] = {"transformers::grouped_mm_fallback": grouped_mm}


@functools.cache
def parts_of(func: OpOverload) -> Callable[..., Any] | None:
    """What is recorded in place of a call; None of an operator that stands for itself."""
    return PARTS.get(func) or _NAMED.get(func._schema.name)
