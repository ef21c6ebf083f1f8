"""Matrix products and a few others in one form.

``F.linear`` and ``matmul`` come apart into different calls depending on how their operands lie in memory, which
changes with the widths (an axis of size 1 is contiguous either way). Recorded in one form, the dense and the cut
model's recordings stay alike.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CanonicalProducts(TorchFunctionMode):
    """Rewrites ``F.linear`` to one ``addmm``, ``matmul`` to one ``mm`` or ``bmm``; attention is never fused."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _FORMS.get(func, func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002  # torch's own name
    if input.ndim < 2 or weight.ndim != 2 or input.shape[-1] != weight.shape[1] or input.is_sparse:
        return F.linear(input, weight, bias)
    if not input.shape[-1]:  # nothing tells then how many rows there are
        return F.linear(input, weight, bias)
    flat = input.reshape(-1, input.shape[-1])
    out = flat.mm(weight.t()) if bias is None else torch.addmm(bias, flat, weight.t())
    return out.reshape(*input.shape[:-1], weight.shape[0])


def _matmul(input: Tensor, other: Tensor) -> Tensor:  # noqa: A002  # torch's own name
    if min(input.ndim, other.ndim) < 2 or input.shape[-1] != other.shape[-2] or max(input.ndim, other.ndim) == 2:
        return torch.matmul(input, other)
    if 0 in (*input.shape[-2:], other.shape[-1]):  # nothing tells then how many matrices there are
        return torch.matmul(input, other)
    if other.ndim == 2:
        return input.reshape(-1, input.shape[-1]).mm(other).reshape(*input.shape[:-1], other.shape[-1])
    batch: Any = torch.broadcast_shapes(input.shape[:-2], other.shape[:-2])  # type: ignore[no-untyped-call]
    left = input.expand(*batch, *input.shape[-2:]).reshape(-1, *input.shape[-2:])
    right = other.expand(*batch, *other.shape[-2:]).reshape(-1, *other.shape[-2:])
    return left.bmm(right).reshape(*batch, input.shape[-2], other.shape[-1])


def _normalize(x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """Broadcasts the norm, where torch's own expands it to the width of `x` first: it would hold that width."""
    if out is not None:
        return F.normalize(x, p, dim, eps, out)
    norm: Tensor = torch.linalg.vector_norm(x, p, dim, keepdim=True)
    return x / norm.clamp_min(eps)


def _pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:  # noqa: A002
    """A circular border is put together of parts, where torch writes into fresh memory; what also crops is torch's."""
    if mode != "circular" or min(pad) < 0:
        return F.pad(input, pad, mode, value)
    for index in range(len(pad) // 2):
        axis, (before, after) = input.ndim - 1 - index, pad[2 * index : 2 * index + 2]
        front, back = input.narrow(axis, input.shape[axis] - before, before), input.narrow(axis, 0, after)
        input = torch.cat([part for part in (front, input, back) if part.shape[axis]], axis)  # noqa: A001
    return input


def _pad_packed(
    data: Tensor, sizes: Tensor, batch_first: bool, padding: float, total: int
) -> tuple[Tensor, Tensor]:  # torch's own order
    """Packed steps, padded to the whole batch and stacked, where torch writes each into fresh memory."""
    counts = [int(size) for size in sizes]
    largest, rest = counts[0], [0, 0] * (data.ndim - 1)
    steps = [F.pad(step, (*rest, 0, largest - len(step)), value=padding) for step in data.split(counts)]  # type: ignore[no-untyped-call]  # torch annotates it so
    steps += [torch.full_like(steps[0], padding)] * (total - len(counts))
    lengths = torch.tensor([sum(count > example for count in counts) for example in range(largest)])
    return torch.stack(steps, 1 if batch_first else 0), lengths


def _tolist(x: Tensor) -> Any:
    """Number by number, each of which may decide what comes; torch reads memory that a followed tensor may not have."""
    if not x.ndim:
        return x.item()
    return [_tolist(part) for part in x.unbind()]


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Attention as its parts also where the forward asks for a fused kernel itself."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def _in_place(function: Any) -> Any:
    """An activation whose in-place kernel torch checks in Python, at a millisecond a call: compute, then copy."""

    @functools.wraps(function)
    def run(input: Tensor, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:  # noqa: A002
        if not inplace:
            return function(input, *args, **kwargs)
        return input.copy_(function(input, *args, **kwargs))

    return run


def _with_forms(function: Any) -> Any:
    """A function of torch's whose body uses the forms above: a mode is off while one of its functions runs."""
    scope = {**function.__globals__, "linear": _linear, "has_torch_function": lambda _: False}
    scope["scaled_dot_product_attention"] = _attention
    for name in ("_in_projection", "_in_projection_packed"):
        scope[name] = _moved(scope[name], scope)
    return _moved(function, scope)


def _moved(function: Any, scope: dict[str, Any]) -> Any:
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_FORMS: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _with_forms(F.multi_head_attention_forward),
    F.linear: _linear,
    F.pad: _pad,
    F.scaled_dot_product_attention: _attention,
    F.normalize: _normalize,
    torch._VF._pad_packed_sequence: _pad_packed,
    torch.Tensor.tolist: _tolist,
    **{f: _in_place(f) for f in (F.hardtanh, F.relu6, F.hardswish, F.hardsigmoid, F.elu, F.leaky_relu)},
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
}
