"""Norms and reductions: statistics over places inside a channel, or over channels where the operator knows how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.rules import algebra, layout
from surgeon.rules.layout import on_axis
from surgeon.rules.marks import Ledger, Marked, Plane, replace
from surgeon.rules.registry import rule
from surgeon.tracing import reads_places

BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
    "miopen_batch_norm", "_native_batch_norm_legit_functional",
)  # fmt: skip


@rule(*BATCH_NORMS)
def batch_norm(ledger: Ledger, x: Marked, *args: Any, **_: Any) -> list[Marked]:
    vectors = [on_axis(a, 1, len(x.shape)) for a in args if isinstance(a, Marked)]
    if any(a is True for a in args):  # statistics of the batch itself, or of a filter's inputs (standardised weights)
        note_statistics(ledger, x, [axis for axis in range(len(x.shape)) if axis != 1])
    empty = Marked((), ())
    return [algebra.join(ledger, [x, *vectors]), empty, empty, empty, empty]


@rule("native_layer_norm")
def layer_norm(
    ledger: Ledger, x: Marked, size: Sequence[int], weight: Marked | None, bias: Marked | None, *_: Any
) -> list[Marked]:
    first = len(x.shape) - len(size)
    note_statistics(ledger, x, range(first, len(x.shape)))
    joint = algebra.join(ledger, [x, *(v for v in (weight, bias) if v is not None)])
    return [joint, Marked((), ()), Marked((), ())]


def note_statistics(ledger: Ledger, x: Marked, axes: Sequence[int]) -> None:
    """Statistics over channels are taken over what is kept; the silenced run and the report need to know."""
    for plane in x.planes:
        if plane.axes & frozenset(axes) and not plane.example:
            ledger.statistics.setdefault(ledger.node, []).append(plane)
            ledger.anchor(plane, plane.axes - frozenset(axes), "statistics")


def keep_groups(ledger: Ledger, plane: Plane, count: int) -> None:
    """Axis 1 falls into `count` groups that must stay equally wide, each with its own channels."""
    if count > 1:
        grouped = plane.labels.reshape(plane.labels.shape[0], count, -1)
        ledger.anchor(Plane(grouped, frozenset({1, 2})), [1], "group")
        ledger.tie([grouped[:, i] for i in range(count)])


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
    x = layout.slide(ledger, x, range(2, len(x.shape)))
    alone = ledger.dense.args[6] == x.span[1]  # every channel is a group by itself: nothing is shared
    for plane in x.planes:
        if 1 in plane.axes and not plane.example and not alone:
            ledger.statistics.setdefault(ledger.node, []).append(plane)
            keep_groups(ledger, plane, group)
    vectors = [on_axis(v, 1, len(x.shape)) for v in (weight, bias) if v is not None]
    return [algebra.join(ledger, [x, *vectors]), Marked((), ()), Marked((), ())]


def axes_of(x: Marked, dim: int | Sequence[int] | None) -> list[int]:
    ndim = len(x.shape)
    if dim is None or (not isinstance(dim, int) and not dim):
        return list(range(ndim))
    return [d % ndim for d in ([dim] if isinstance(dim, int) else dim)] if ndim else []


@rule("sum", "nansum", "count_nonzero")
def sum_(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    return layout.reduce(ledger, x, axes_of(x, dim), keepdim)


@rule("mean")
def mean(ledger: Ledger, x: Marked, dim: Any = None, keepdim: bool = False, **_: Any) -> Marked:
    x = layout.slide_outer(ledger, x, frozenset(axes_of(x, dim)))
    note_statistics(ledger, x, axes_of(x, dim))
    return layout.reduce(ledger, x, axes_of(x, dim), keepdim)


def _axes(x: Marked, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The axes of a reduction whose first number or list says so."""
    numbers = [a for a in args if isinstance(a, list | tuple) or (isinstance(a, int) and not isinstance(a, bool))]
    return axes_of(x, kwargs.get("dim", numbers[0] if numbers else None))


def _reduced(ledger: Ledger, x: Marked, dims: Sequence[int]) -> Any:
    """What is left of `x`, once or, for operators with two results, twice."""
    shapes = [n.meta["shape"] for n in (ledger.node, *ledger.node.users) if "shape" in n.meta]
    keepdim = bool(shapes) and len(shapes[0]) == len(x.shape)
    result = layout.reduce(ledger, x, dims, keepdim)
    return result if "shape" in ledger.node.meta else [result, replace(result)]


@rule("var", "std", "var_mean", "std_mean")
def spread_of(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    """As means, variances are taken over what is kept."""
    return _over_kept(ledger, x, _axes(x, args, kwargs))


def _over_kept(ledger: Ledger, x: Marked, dims: Sequence[int]) -> Any:
    """A statistic for which a removed channel's zero would count: it is left out, so its labels end without a sum."""
    gone = frozenset(dims)
    x = layout.slide_outer(ledger, x, gone)
    note_statistics(ledger, x, dims)
    return _reduced(ledger, replace(x, planes=tuple(p for p in x.planes if not p.axes & gone)), dims)


@rule("amax", "amin", "max", "min", "aminmax")
def extreme(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    """As means, extremes are taken over what is kept; the place where one stands, if read, is which channel it is."""
    dims = _axes(x, args, kwargs)
    gone = frozenset(dims)
    crossing = any(p.axes & gone and not p.axes <= gone for p in x.planes)  # pieces of a maxout: they hold each other
    if crossing or reads_places(ledger.node):
        return other_reduction(ledger, x, *args, **kwargs)
    return _over_kept(ledger, x, dims)


@rule("logsumexp", "prod", "any", "all", "argmax", "argmin", "median", "nanmedian")
def other_reduction(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    """Reductions over places inside a channel are fine; over channels they mix."""
    dims = _axes(x, args, kwargs)
    return _reduced(ledger, layout.mix(ledger, x, dims), dims)


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk",
      "logcumsumexp", "cummax", "cummin", "multinomial")  # fmt: skip
def along(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    name = layout.running(ledger)
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    position = 1 if name in ("topk", "multinomial") else 0
    dim = kwargs.get("dim", numbers[position] if len(numbers) > position else -1)
    result = replace(layout.mix(ledger, x, axes_of(x, dim)), value=None)
    return result if "shape" in ledger.node.meta else [result, result]


@rule("mode")
def mode(ledger: Ledger, x: Marked, dim: int = -1, keepdim: bool = False) -> list[Marked]:
    return kthvalue(ledger, x, 1, dim, keepdim)  # type: ignore[no-any-return]  # rules are untyped in the table


@rule("kthvalue")
def kthvalue(ledger: Ledger, x: Marked, k: int, dim: int = -1, keepdim: bool = False) -> list[Marked]:
    dims = axes_of(x, dim)
    result = layout.reduce(ledger, layout.mix(ledger, x, dims), dims, keepdim)
    return [result, replace(result)]
