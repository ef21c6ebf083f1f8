"""The operator table: one entry per operator. What isn't here pins every label that flows into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from surgeon.rules import algebra
from surgeon.rules.algebra import lift, move, note_summed, product_sum
from surgeon.rules.marks import Ledger, Marked, Plane, Work, compact

#: A rule takes the ledger and the call's arguments, with a :class:`Marked` for each tensor, and gives the marked result.
Rule = Callable[..., Any]
TABLE: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under the ATen names `names`; a second entry for one name is an error."""

    def enter(function: Rule) -> Rule:
        for name in names:
            if name in TABLE:
                raise ValueError(f"two rules for operator {name!r}")
            TABLE[name] = function
        return function

    return enter


# ---------------------------------------------------------------- elementwise

POINTWISE = """
    abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min
    copysign cos cosh div elu eq erf erfc exp exp2 expm1 floor floor_divide fmod frac ge gelu gt hardshrink hardsigmoid
    hardswish hardtanh hypot isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid_forward
    logical_and logical_not logical_or logit lt masked_fill maximum minimum mish mul nan_to_num ne neg pow reciprocal
    relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus softshrink sqrt square sub tan
    tanh threshold trunc where xlogy
""".split()
for _name in POINTWISE:
    rule(_name)(algebra.pointwise)

rule("clone", "detach", "alias", "_to_copy", "lift_fresh_copy", "lift_fresh", "contiguous", "tril", "triu", "bernoulli")(
    lambda ledger, value, *args, **kwargs: replace(value)
)


@rule("_prelu_kernel", "prelu")
def prelu(ledger: Ledger, x: Marked, weight: Marked) -> Marked:
    return algebra.join(ledger, [x, weight if len(weight.shape) == len(x.shape) else on_axis(weight, 1, len(x.shape))])


def on_axis(vector: Marked, axis: int, ndim: int) -> Marked:
    """A per-channel vector `(C,)` as a value that varies along `axis` alone."""
    return lift(vector, {0: axis}, ndim)


# ---------------------------------------------------------------- data movement


def _reshape(labels: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    return labels.reshape(size)


@rule("view", "_unsafe_view", "reshape", "unflatten", "_reshape_alias")
def view(ledger: Ledger, value: Marked, size: Sequence[int], *_: Any) -> Marked:
    result = move(ledger, _reshape, value, size)
    for old, new in zip(value.planes, result.planes, strict=True):
        labels, axes = compact(new.labels)
        if len(axes) > len(old.axes) and not new.example:
            first = min(axes)
            ledger.tie([labels.select(first, i) for i in range(labels.shape[first])])
    return result


def _mover(name: str) -> None:
    packet = getattr(torch.ops.aten, name)

    def run(ledger: Ledger, value: Marked, *args: Any, **kwargs: Any) -> Marked:
        return move(ledger, packet, value, *args, **kwargs)

    rule(name)(run)


for _name in """permute transpose t squeeze unsqueeze expand flip roll repeat select movedim diagonal rot90
                pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold swapaxes""".split():
    _mover(_name)


@rule("slice")
def slice_(
    ledger: Ledger, x: Marked, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Marked:
    size = x.shape[dim]
    first, last, _ = slice(start, end, step).indices(size)
    source = ledger.node.args[0]
    for plane in x.planes:
        if dim % len(x.shape) in plane.axes and step == 1 and not plane.example and last - first < size:
            part = plane.labels.narrow(dim, first, last - first)
            seen = ledger.slices.setdefault((source, dim % len(x.shape)), [])  # type: ignore[arg-type]
            seen.append((first, last, part, ledger.node))
    return move(ledger, torch.ops.aten.slice, x, dim, start, end, step)


@rule("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> list[Marked]:
    packet = ledger.node.target.overloadpacket  # type: ignore[union-attr]
    parts = algebra.move_many(ledger, packet, x, *args, **kwargs)
    for index, plane in enumerate(x.planes):
        labels = [part.planes[index].labels for part in parts]
        sized = len({tuple(part.shape) for part in labels}) == 1
        # picking single places (unbind) is no tie: which place is which is fixed then
        if sized and len(parts) > 1 and not plane.example and compact(labels[0])[1]:
            if not torch.equal(labels[0], labels[1]):
                ledger.tie([compact(part)[0] for part in labels])
    return parts


@rule("cat", "concat")
def cat(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    # torch skips empty one-dimensional tensors here, a leftover from before zero-size axes
    parts = [t for t in tensors if t.shape != (0,)] or list(tensors)
    dim %= len(parts[0].shape)
    return algebra.assemble(ledger, parts, dim, lambda labels: torch.cat(labels, dim))


@rule("stack")
def stack(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    ndim = len(tensors[0].shape) + 1
    dim %= ndim
    places = {a: a + (a >= dim) for a in range(ndim - 1)}
    return algebra.assemble(ledger, [lift(t, places, ndim) for t in tensors], dim, lambda parts: torch.cat(parts, dim))


@rule("slice_scatter")
def slice_scatter(ledger: Ledger, x: Marked, source: Marked, dim: int = 0, *args: Any, **kwargs: Any) -> Marked:
    return algebra.assemble(
        ledger,
        [x, source],
        dim % len(x.shape),
        lambda labels: torch.ops.aten.slice_scatter(labels[0], labels[1], dim, *args, **kwargs),
    )


@rule("select_scatter")
def select_scatter(ledger: Ledger, x: Marked, source: Marked, dim: int, index: int) -> Marked:
    dim %= len(x.shape)
    row = lift(source, {a: a + (a >= dim) for a in range(len(source.shape))}, len(x.shape))
    return algebra.assemble(
        ledger,
        [x, row],
        dim,
        lambda labels: torch.select_scatter(labels[0], labels[1].select(dim, 0), dim, index),
    )


@rule("copy")
def copy(ledger: Ledger, target: Marked, source: Marked, *_: Any) -> Marked:
    joint = algebra.join(ledger, [replace(target, planes=(), free=True), source])
    return replace(joint, constant=source.constant)


@rule("constant_pad_nd")
def constant_pad_nd(ledger: Ledger, x: Marked, pad: Sequence[int], value: Any = 0) -> Marked:
    # Only padding along a labelled axis makes places without a channel; elsewhere the border belongs to its channel.
    ndim = len(x.shape)
    planes = []
    for plane in x.planes:
        amounts = [0] * (2 * ndim)
        for axis in plane.axes:
            position = 2 * (ndim - 1 - axis)
            amounts[position : position + 2] = list(pad[position : position + 2]) or [0, 0]
        labels = torch.constant_pad_nd(plane.labels, amounts, 0)
        planes.append(replace(plane, labels=labels))
    return replace(x, planes=tuple(planes))


@rule("index")
def index(ledger: Ledger, x: Marked, indices: Sequence[Marked | None]) -> Marked:
    values = [None if i is None else i.value for i in indices]
    for axis, marked in enumerate(indices):
        hit = [p for p in x.planes if marked is not None and axis in p.axes]
        if hit and (marked is None or not marked.constant or marked.value is None):
            ledger.pin(hit, "an index that depends on the data in index")
    if any(v is None and i is not None for v, i in zip(values, indices, strict=True)):
        return Marked((), ())
    return move(ledger, torch.ops.aten.index, x, [None if v is None else v.cpu() for v in values])


@rule("index_select")
def index_select(ledger: Ledger, x: Marked, dim: int, chosen: Marked) -> Marked:
    indices: list[Marked | None] = [None] * len(x.shape)
    indices[dim] = chosen
    return index(ledger, x, indices)  # type: ignore[no-any-return]  # rules are untyped in the table


@rule("embedding")
def embedding(ledger: Ledger, weight: Marked, indices: Marked, *_: Any, **__: Any) -> Marked:
    rows = [p for p in weight.planes if 0 in p.axes]
    ledger.pin(rows, "rows of a table are picked by index in embedding")
    ndim = len(indices.shape) + 1
    kept = replace(weight, planes=tuple(p for p in weight.planes if 0 not in p.axes))
    ledger.produced += [(p.labels, False) for p in kept.planes if not p.example]
    places = {a: a for a in range(ndim - 1)}
    looked_up = lift(replace(kept, shape=(1, *kept.shape[1:]), span=(1, *kept.span[1:])), {0: 0, 1: ndim - 1}, ndim)
    if ndim == 1:
        return looked_up
    return algebra.join(ledger, [looked_up, replace(lift(indices, places, ndim), value=None)])


# ---------------------------------------------------------------- made by the forward


@rule(*"""zeros ones full empty arange linspace eye scalar_tensor rand randn randint zeros_like ones_like full_like
          empty_like rand_like randn_like new_zeros new_ones new_full new_empty empty_strided new_empty_strided
          randperm tril_indices triu_indices empty_permuted""".split())
def factory(ledger: Ledger, *args: Any, **kwargs: Any) -> Marked:
    return Marked((), (), free=True, constant=True)


@rule("fill")
def fill(ledger: Ledger, x: Marked, *_: Any) -> Marked:
    return Marked((), (), free=True, constant=True)


# ---------------------------------------------------------------- contractions


@rule("convolution")
def convolution(
    ledger: Ledger, x: Marked, weight: Marked, bias: Marked | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Marked:  # fmt: skip
    ndim = len(x.shape)
    spatial = range(2, ndim)
    dense_groups = ledger.dense.args[8]
    x, weight = algebra.slide(ledger, x, spatial), algebra.mix(ledger, weight, spatial)
    out_axis = 1 if transposed else 0
    # Which kind of convolution this is stands in the dense shapes: a cut may leave a group with one channel.
    per_group = weight.span[0] // dense_groups if transposed else weight.span[1]
    depthwise = per_group == 1 and dense_groups > 1
    if not depthwise:
        note_summed(ledger, x, 0, [1])
    counts = (groups, dense_groups)
    # joint space: example, group, out-channel of the group, in-channel of the group
    left = lift(_unmerge(_flat(x), 1, counts), {0: 0, 1: 1, 2: 3}, 4)
    places = {0: 1, 1: 3, 2: 2} if transposed else {0: 1, 1: 2, 2: 3}
    right = lift(_unmerge(_flat(weight), 0, counts), places, 4)
    if depthwise:
        joint = algebra.join(ledger, [_same_channel(ledger, left, right), right])
        ledger.produced += [(p.labels, True) for p in right.planes if not p.example]
    else:
        joint = product_sum(ledger, left, right, 3, filters=True)
    out = _merge_groups(joint)
    result = lift(out, {0: 0, 1: 1}, ndim)
    _count_convolution(ledger, x, weight, out_axis, transposed)
    return result if bias is None else algebra.join(ledger, [result, on_axis(bias, 1, ndim)])


def _flat(value: Marked) -> Marked:
    """Without the spatial axes, which hold no labels by now."""
    return replace(
        value,
        shape=value.shape[:2],
        span=value.span[:2],
        planes=tuple(replace(p, labels=p.labels.reshape(p.labels.shape[:2])) for p in value.planes),
    )


def _unmerge(value: Marked, axis: int, counts: tuple[int, int]) -> Marked:
    """Split `axis` into (group, channel of the group); `counts` are the groups of this run and of the dense one."""

    def cut(sizes: Sequence[int], groups: int) -> tuple[int, ...]:
        return (*sizes[:axis], groups, sizes[axis] // groups, *sizes[axis + 1 :])

    span = cut(value.span, counts[1])
    planes = []
    for plane in value.planes:
        axes = {a + (a > axis) for a in plane.axes}
        labels = plane.labels
        if axis in plane.axes:
            labels = labels.reshape(cut(labels.shape, counts[0]))
            # an axis of one group, or of one channel per group, holds no labels of its own
            axes = axes - {axis} | {a for a in (axis, axis + 1) if span[a] > 1}
        else:
            labels = labels.reshape(_widen(labels, axis))
        if axis == 0 and plane.axes == {0, 1}:  # a grouped weight's second axis: alike for all rows of a group
            labels, axes = labels.narrow(1, 0, 1), axes - {1}
        planes.append(replace(plane, labels=labels, axes=frozenset(axes)))
    return replace(value, shape=cut(value.shape, counts[0]), span=span, planes=tuple(planes))


def _widen(labels: Tensor, axis: int) -> tuple[int, ...]:
    return (*labels.shape[:axis], 1, 1, *labels.shape[axis + 1 :])


def _merge_groups(joint: Marked) -> Marked:
    """From (example, group, out per group, 1) to (example, out)."""
    groups, out = joint.shape[1:3]
    planes = []
    for plane in joint.planes:
        labels = plane.labels
        if plane.axes & {1, 2}:
            labels = labels.expand(-1, groups, out, 1)
        kept = plane.axes - {1, 2} | ({1} if plane.axes & {1, 2} else set())
        planes.append(replace(plane, labels=labels.reshape(labels.shape[0], -1), axes=frozenset(kept)))
    span = (joint.span[0], joint.span[1] * joint.span[2])
    return replace(joint, shape=(joint.shape[0], groups * out), span=span, planes=tuple(planes))


def _same_channel(ledger: Ledger, left: Marked, right: Marked) -> Marked:
    """Depth-wise: each in-channel is one channel with all out-channels that it makes."""
    outs = [p for p in right.planes if p.axes & {1, 2}]
    incoming = [p for p in left.planes if not p.example and 1 in p.axes]
    for plane in incoming:
        for out in outs:
            ledger.couple(plane, out)
    if not incoming:
        ledger.pin(outs, algebra.NO_CHANNEL.format("convolution"))
    if not outs:
        ledger.pin(incoming, algebra.NO_CHANNEL.format("convolution"))
    return replace(left, planes=tuple(p for p in left.planes if p.example), free=True)


def _count_convolution(ledger: Ledger, x: Marked, weight: Marked, out_axis: int, transposed: bool) -> None:
    shape = ledger.node.meta["shape"]
    places = math.prod(x.shape[2:] if transposed else shape[2:]) * shape[0]
    factors = tuple(p.labels for p in weight.planes if not p.example)
    ledger.work.append(Work(ledger.node, math.prod(weight.shape) * places, factors))


def _matmul(ledger: Ledger, a: Marked, b: Marked, operands: tuple[int, int] = (0, 1)) -> Marked:
    """`a (..., n, k) @ b (..., k, m)`, batch axes alike on both sides."""
    batch = len(a.shape) - 2
    note_summed(ledger, a, operands[0], [batch + 1])
    note_summed(ledger, b, operands[1], [batch])
    ndim, same = batch + 3, {i: i for i in range(batch)}
    left = lift(a, {**same, batch: batch, batch + 1: batch + 2}, ndim)
    right = lift(b, {**same, batch: batch + 2, batch + 1: batch + 1}, ndim)
    macs = math.prod(a.shape) * b.shape[-1]
    planes = [p for p in left.planes if batch + 2 in p.axes] or [p for p in right.planes if batch + 2 in p.axes]
    planes += [p for v in (left, right) for p in v.planes if p.axes and batch + 2 not in p.axes]
    ledger.work.append(Work(ledger.node, macs, tuple(p.labels for p in planes if not p.example)))
    joint = product_sum(ledger, left, right, batch + 2)
    return algebra.drop_axis(joint, batch + 2)


@rule("mm", "bmm")
def mm(ledger: Ledger, a: Marked, b: Marked, *_: Any) -> Marked:
    return _matmul(ledger, a, b)


@rule("addmm", "baddbmm")
def addmm(ledger: Ledger, bias: Marked, a: Marked, b: Marked, **_: Any) -> Marked:
    return algebra.join(ledger, [_matmul(ledger, a, b, (1, 2)), bias])


@rule("mv")
def mv(ledger: Ledger, a: Marked, b: Marked) -> Marked:
    note_summed(ledger, a, 0, [1])
    note_summed(ledger, b, 1, [0])
    joint = product_sum(ledger, a, lift(b, {0: 1}, 2), 1)
    return algebra.drop_axis(joint, 1)


@rule("dot")
def dot(ledger: Ledger, a: Marked, b: Marked) -> Marked:
    note_summed(ledger, a, 0, [0])
    note_summed(ledger, b, 1, [0])
    return algebra.drop_axis(product_sum(ledger, a, b, 0), 0)


@rule("linear")
def linear(ledger: Ledger, x: Marked, weight: Marked, bias: Marked | None = None) -> Marked:
    last = len(x.shape) - 1
    note_summed(ledger, x, 0, [last])
    note_summed(ledger, weight, 1, [1])
    left = lift(x, {**{i: i for i in range(last)}, last: last + 1}, last + 2)
    right = lift(weight, {0: last, 1: last + 1}, last + 2)
    factors = tuple(p.labels for p in weight.planes if not p.example)
    ledger.work.append(Work(ledger.node, math.prod(x.shape) * weight.shape[0], factors))
    out = algebra.drop_axis(product_sum(ledger, left, right, last + 1), last + 1)
    return out if bias is None else algebra.join(ledger, [out, on_axis(bias, last, last + 1)])


# ---------------------------------------------------------------- norms and reductions


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "miopen_batch_norm", "_native_batch_norm_legit_functional", "batch_norm_inference")  # fmt: skip
def batch_norm(ledger: Ledger, x: Marked, *args: Any, **_: Any) -> list[Marked]:
    vectors = [on_axis(a, 1, len(x.shape)) for a in args if isinstance(a, Marked)]
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
            ledger.statistics[ledger.node] = plane
            ledger.anchor(plane, plane.axes - frozenset(axes), "statistics")


@rule("native_group_norm")
def group_norm(
    ledger: Ledger, x: Marked, weight: Marked | None, bias: Marked | None, n: int, c: int, hxw: int, group: int, eps: Any
) -> list[Marked]:
    x = algebra.slide(ledger, x, range(2, len(x.shape)))
    for plane in x.planes:
        if 1 in plane.axes and not plane.example:
            ledger.statistics[ledger.node] = plane
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
    name = algebra.operator_name(ledger)
    numbers = [a for a in args if isinstance(a, list | tuple) or (isinstance(a, int) and not isinstance(a, bool))]
    dims = _dims(x, kwargs.get("dim", numbers[-1] if name in ("linalg_vector_norm", "norm") and len(numbers) > 1 else (
        numbers[0] if numbers and name not in ("linalg_vector_norm", "norm") else None)))  # fmt: skip
    x = algebra.mix(ledger, x, dims)
    shape = ledger.node.meta.get("shape")
    keepdim = shape is not None and len(shape) == len(x.shape)
    result = algebra.reduce(ledger, x, dims, keepdim)
    return [result, result] if shape is None else result


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk",
      "logcumsumexp", "kthvalue")  # fmt: skip
def along(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
    name = algebra.operator_name(ledger)
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    position = 1 if name in ("topk", "kthvalue") else 0
    dim = kwargs.get("dim", numbers[position] if len(numbers) > position else -1)
    result = replace(algebra.mix(ledger, x, _dims(x, dim)), value=None)
    return result if "shape" in ledger.node.meta else [result, result]


# ---------------------------------------------------------------- windows over space


def _window(names: str, spatial: int) -> None:
    def run(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
        result = algebra.slide(ledger, x, range(len(x.shape) - spatial, len(x.shape)))
        return result if "shape" in ledger.node.meta else [result, replace(result)]

    rule(*names.split())(run)


_window("""avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_linear1d upsample_nearest1d
           _upsample_nearest_exact1d reflection_pad1d replication_pad1d""", 1)  # fmt: skip
_window("""avg_pool2d max_pool2d max_pool2d_with_indices mkldnn_max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d
           adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_nearest_exact2d
           _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d fractional_max_pool2d""", 2)
_window("""avg_pool3d max_pool3d_with_indices adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d
           upsample_trilinear3d upsample_nearest3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d""", 3)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(ledger: Ledger, x: Marked, grid: Marked, *_: Any) -> Marked:
    ledger.pin(grid.planes, "mixes channels in grid_sampler")
    return algebra.slide(ledger, x, range(2, len(x.shape)))


@rule("glu")
def glu(ledger: Ledger, x: Marked, dim: int = -1) -> Marked:
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    parts = [move(ledger, torch.Tensor.narrow, x, dim, start, half) for start in (0, half)]
    shape, span = (tuple(s // 2 if a == dim else s for a, s in enumerate(sizes)) for sizes in (x.shape, x.span))
    sides = []
    for part in parts:
        planes = tuple(replace(new, axes=old.axes) for old, new in zip(x.planes, part.planes, strict=True))
        sides.append(replace(part, planes=planes, shape=shape, span=span))
    return algebra.join(ledger, sides)
