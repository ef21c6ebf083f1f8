"""The dense model with the removed channels silenced.

They contribute zero at every contraction; norms, means and extremes over channels see kept places only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, flat
from surgeon.rules import Plane, Summed
from surgeon.rules.losses import LOSSES
from surgeon.rules.statistics import BATCH_NORMS
from surgeon.tracing import operator_name, plain_call


class Silencer:
    """Runs the calls of a dense recording with all but the kept channels silenced.

    Parameters
    ----------
    graph:
        The dense channel graph.
    kept:
        One bool per channel.
    """

    def __init__(self, graph: ChannelGraph, kept: Flags) -> None:
        self._structure = graph.structure
        self._flags = np.append(kept, True)
        ledger = graph.structure.labels.ledger
        self._statistics = ledger.statistics
        self._summed: dict[fx.Node, list[Summed]] = {}
        for fact in ledger.summed:
            self._summed.setdefault(fact.node, []).append(fact)

    def __call__(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call."""
        planes = self._statistics.get(node)
        if planes:
            kept = functools.reduce(torch.logical_and, [self._kept(plane) for plane in planes])
            if not bool(kept.all()):
                return STATISTICS[operator_name(node)](kept.to(args[0].device), *args, **kwargs)
        for fact in self._summed.get(node, ()):
            kept = self._kept(fact.plane)
            if not bool(kept.all()):
                value = torch.where(kept.to(args[fact.operand].device), args[fact.operand], 0.0)
                args = (*args[: fact.operand], value, *args[fact.operand + 1 :])
        return plain_call(node, args, kwargs)

    def _kept(self, plane: Plane) -> Tensor:
        flags = self._flags[self._structure.channel[flat(plane.labels)]]
        return torch.from_numpy(flags).view(plane.labels.shape)


def _mean(kept: Tensor, x: Tensor, dims: Sequence[int], keepdim: bool = True) -> Tensor:
    axes = list(dims)
    count = kept.expand_as(x).sum(axes, keepdim=keepdim)
    return torch.where(kept, x, 0.0).sum(axes, keepdim=keepdim) / count


def _silenced_mean(kept: Tensor, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    dims = list(range(x.ndim)) if dim is None else dim
    return _mean(kept, x, dims, keepdim)


def _standardised(kept: Tensor, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    centred = x - _mean(kept, x, dims)
    return centred / (_mean(kept, centred**2, dims) + eps).sqrt()


def _silenced_layer_norm(
    kept: Tensor, x: Tensor, size: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, None, None]:
    dims = list(range(x.ndim - len(size), x.ndim))
    y = _standardised(kept, x, dims, eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, None, None


def _silenced_group_norm(
    kept: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, _: int, group: int, eps: float
) -> tuple[Tensor, None, None]:
    split = (n, group, c // group, math.prod(x.shape[2:]))
    mask = kept.expand(1, c, *[1] * (x.ndim - 2)).reshape(1, group, c // group, 1)
    y = _standardised(mask, x.reshape(split), [2, 3], eps).reshape(x.shape)
    vector = [1, c, *[1] * (x.ndim - 2)]
    y = y if weight is None else y * weight.view(vector)
    return y if bias is None else y + bias.view(vector), None, None


def _silenced_batch_norm(
    kept: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor | None, ...]:
    """With the batch's own statistics, which are all that can run over channels; the last argument is epsilon."""
    y = _standardised(kept, x, [axis for axis in range(x.ndim) if axis != 1], rest[-1])
    vector = [1, -1, *[1] * (x.ndim - 2)]
    y = y if weight is None else y * weight.view(vector)
    return y if bias is None else y + bias.view(vector), None, None, None, None


def _silenced_var(
    kept: Tensor, x: Tensor, dim: Any = None, *, correction: float = 1.0, keepdim: bool = False
) -> Tensor:
    axes = list(dim or range(x.ndim))
    squares = torch.where(kept, x - _mean(kept, x, axes), 0.0).square().sum(axes, keepdim=keepdim)
    return squares / (kept.expand_as(x).sum(axes, keepdim=keepdim) - correction).clamp(min=0)


def _silenced_std(kept: Tensor, x: Tensor, dim: Any = None, **options: Any) -> Tensor:
    return _silenced_var(kept, x, dim, **options).sqrt()


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Of the operators that give the mean as well."""

    def run(kept: Tensor, x: Tensor, dim: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
        mean = _mean(kept, x, list(dim or range(x.ndim)), options.get("keepdim", False))
        return spread(kept, x, dim, **options), mean

    return run


def _silenced_extreme(name: str) -> Callable[..., Any]:
    """The largest or the smallest of what is kept: the others can't be either."""
    operator: Any = getattr(torch.ops.aten, name)

    def run(kept: Tensor, x: Tensor, *args: Any, **options: Any) -> Any:
        limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
        return operator(torch.where(kept, x, limits.min if "max" in name else limits.max), *args, **options)

    return run


def _silenced_aminmax(kept: Tensor, x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Any, Any]:
    dims = list(range(x.ndim)) if dim is None else [dim]
    smallest, largest = _silenced_extreme("amin"), _silenced_extreme("amax")
    return smallest(kept, x, dims, keepdim), largest(kept, x, dims, keepdim)


def _silenced_renorm(kept: Tensor, x: Tensor, p: float, dim: int, largest: float) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != dim % x.ndim]
    norm = torch.linalg.vector_norm(torch.where(kept, x, 0.0), p, axes, keepdim=True)
    return torch.where(norm > largest, x * largest / (norm + _RENORM_EPSILON), x)


def _silenced_loss(name: str) -> Callable[..., Tensor]:
    """A loss over the places that are kept."""
    operator: Any = getattr(torch.ops.aten, name).default
    names = [argument.name for argument in operator._schema.arguments]

    def run(kept: Tensor, *args: Any, **options: Any) -> Tensor:
        given = dict(zip(names, args, strict=False)) | options
        each: Tensor = operator(**{**given, "reduction": _EACH})
        total = torch.where(kept, each, 0.0).sum()
        return total / kept.expand_as(each).sum() if given.get("reduction", _MEAN) == _MEAN else total

    return run


#: Torch's numbers for what a loss is reduced to.
_EACH, _MEAN = 0, 1
#: What torch adds to a norm before it divides by it.
_RENORM_EPSILON = 1e-7

#: How the operators that take statistics over channels run on kept places only.
STATISTICS: dict[str, Callable[..., Any]] = {
    "mean": _silenced_mean,
    "native_layer_norm": _silenced_layer_norm,
    "native_group_norm": _silenced_group_norm,
    **dict.fromkeys(BATCH_NORMS, _silenced_batch_norm),
    "var": _silenced_var,
    "std": _silenced_std,
    "var_mean": _with_mean(_silenced_var),
    "std_mean": _with_mean(_silenced_std),
    **{name: _silenced_extreme(name) for name in ("amax", "amin", "max", "min")},
    "aminmax": _silenced_aminmax,
    "renorm": _silenced_renorm,
    **{name: _silenced_loss(name) for name in LOSSES},
}
