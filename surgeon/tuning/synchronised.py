"""Batch norms that take their statistics over the batches of all processes, as one process would over the whole batch.

``torch.nn.SyncBatchNorm`` does so on GPUs alone, and is another module, whose place in the model, name and class
would have to be given back. Here the modules stay, and compute otherwise for a while.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Step", "synchronised"]


@dataclass
class Step:
    """Whether this process's part of the batch counts: it may have none, and another one's example stands in."""

    counts: bool = True


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004  # autograd's signature
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


@contextlib.contextmanager
def synchronised(model: nn.Module, step: Step, processes: int) -> Iterator[None]:
    """In the body the batch norms of `model` that are in train mode see the batches of all processes."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if processes > 1 else []
    try:
        for norm in norms:
            norm.__dict__["forward"] = functools.partial(_forward, norm, step)
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _forward(norm: _BatchNorm, step: Step, x: Tensor) -> Tensor:
    if not (norm.training or norm.running_mean is None):
        result: Tensor = type(norm).forward(norm, x)
        return result
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    share = float(step.counts)
    own = wide.new_full((1,), share * x.numel() / x.shape[1])
    sums = _summed(torch.cat([wide.sum(axes) * share, own]))
    count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
    centred = wide - mean.view(shape)
    variance = _summed(centred.square().sum(axes) * share) / count
    _track(norm, mean.detach(), variance.detach(), float(count))
    result = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        result = result * norm.weight.view(shape) + norm.bias.view(shape)
    return result.to(x.dtype)


def _summed(value: Tensor) -> Tensor:
    found: Tensor = _Sum.apply(value)
    return found


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: float) -> None:
    """The running statistics, as the norm's own forward keeps them."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((variance * (count / max(count - 1, 1))).to(norm.running_var.dtype), share)
