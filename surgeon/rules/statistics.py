"""Norms and reductions: statistics over places inside a channel, or over channels where the operator knows how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from surgeon.rules import algebra
from surgeon.rules.algebra import on_axis
from surgeon.rules.marks import Ledger, Marked, Plane
from surgeon.rules.registry import rule


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "miopen_batch_norm", "_native_batch_norm_legit_functional")  # fmt: skip
def batch_norm(ledger: Ledger, x: Marked, *args: Any, **_: Any) -> list[Marked]:
    vectors = [on_axis(a, 1, len(x.shape)) for a in args if isinstance(a, Marked)]
    if True in args:  # statistics of the batch itself
        x = algebra.mix(ledger, x, [axis for axis in range(len(x.shape)) if axis != 1])
    empty = Marked((), ())
    return [algebra.join(ledger, [x, *vectors]), empty, empty, empty, empty]


@rule("native_layer_norm")
def layer_norm(
    ledger: Ledger, x: Marked, size: Sequence[int], weight: Marked | None, bias: Marked | None, *_: Any
) -> list[Marked]:
    first = len(x.shape) - len(size)
    _note_statistics(ledger, x, range(first, len(x.shape)))
    joint = algebra.join(ledger, [x, *(v for v in (weight, bias) if v is not None)])
    return [joint, Marked((), ()), Marked((), ())]


def _note_statistics(ledger: Ledger, x: Marked, axes: Sequence[int]) -> None:
    """Statistics over channels are taken over what is kept; the silenced run and the report need to know."""
    for plane in x.planes:
        if plane.axes & frozenset(axes) and not plane.example:
            ledger.statistics.setdefault(ledger.node, []).append(plane)
            ledger.anchor(plane, plane.axes - frozenset(axes), "statistics")


@rule("native_group_norm")
def group_norm(
    ledger: Ledger,
    x: Marked,
    weight: Marked | None,
    bias: Marked | None,
    n: int,
    c: int,
    hxw: int,
    group: int,
    eps: Any,
) -> list[Marked]:
    x = algebra.slide(ledger, x, range(2, len(x.shape)))
    alone = ledger.dense.args[6] == x.span[1]  # every channel is a group by itself: nothing is shared
    for plane in x.planes:
        if 1 in plane.axes and not plane.example and not alone:
            ledger.statistics.setdefault(ledger.node, []).append(plane)
            grouped = plane.labels.reshape(plane.labels.shape[0], group, -1)
            ledger.anchor(Plane(grouped, frozenset({1, 2})), [1] if group > 1 else [], "group")
            if group > 1:
                ledger.tie([grouped[:, i] for i in range(group)])
    vectors = [on_axis(v, 1, len(x.shape)) for v in (weight, bias) if v is not None]
    return [algebra.join(ledger, [x, *vectors]), Marked((), ()), Marked((), ())]


def _dims(x: Marked, dim: int | Sequence[int] | None) -> list[int]:
    ndim = len(x.shape)
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(ndim))
    return [d % ndim for d in ([dim] if isinstance(dim, int) else dim)] if ndim else []


@rule("sum")
def sum_(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    return algebra.reduce(ledger, x, _dims(x, dim), keepdim)


@rule("mean")
def mean(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    _note_statistics(ledger, x, _dims(x, dim))
    return algebra.reduce(ledger, x, _dims(x, dim), keepdim)


@rule("amax", "amin", "var", "std", "linalg_vector_norm", "logsumexp", "prod", "any", "all", "norm", "argmax", "argmin",
      "max", "min", "var_mean", "std_mean", "median")  # fmt: skip
def other_reduction(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    """Reductions over places inside a channel are fine; over channels they mix."""
    name = algebra.running(ledger)
    numbers = [a for a in args if isinstance(a, list | tuple) or (isinstance(a, int) and not isinstance(a, bool))]
    dims = _dims(x, kwargs.get("dim", numbers[-1] if name in ("linalg_vector_norm", "norm") and len(numbers) > 1 else (
        numbers[0] if numbers and name not in ("linalg_vector_norm", "norm") else None)))  # fmt: skip
    x = algebra.mix(ledger, x, dims)
    shape = ledger.node.meta.get("shape")
    keepdim = shape is not None and len(shape) == len(x.shape)
    result = algebra.reduce(ledger, x, dims, keepdim)
    return [result, result] if shape is None else result


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk",
      "logcumsumexp")  # fmt: skip
def along(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    name = algebra.running(ledger)
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    position = 1 if name == "topk" else 0
    dim = kwargs.get("dim", numbers[position] if len(numbers) > position else -1)
    result = replace(algebra.mix(ledger, x, _dims(x, dim)), value=None)
    return result if "shape" in ledger.node.meta else [result, result]


@rule("_weight_norm_interface")
def weight_norm(ledger: Ledger, v: Marked, g: Marked, dim: int = 0) -> list[Marked]:
    _note_statistics(ledger, v, [axis for axis in range(len(v.shape)) if axis != dim])
    return [algebra.join(ledger, [v, g]), replace(g)]


@rule("kthvalue")
def kthvalue(ledger: Ledger, x: Marked, k: int, dim: int = -1, keepdim: bool = False) -> list[Marked]:
    dims = _dims(x, dim)
    result = algebra.reduce(ledger, algebra.mix(ledger, x, dims), dims, keepdim)
    return [result, replace(result)]
