"""One small call for every operator of the table, with what a right rule finds in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torchvision import ops

Run = Callable[..., Any]
aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Sample:
    """A function of tensors, its operands, and what must come of each axis.

    Attributes
    ----------
    names:
        The ATen operators that its recording must hold.
    run:
        The function; takes its sizes from its operands, so that it runs on smaller ones too.
    operands:
        ``"3c 4p, 4i"``: operands after commas, each axis a size and a letter (several where its channels differ). What
        must come of the channels there:

        - ``c``: one can be removed by itself, and the numbers agree;
        - ``b``: only together with others that the rule ties it to;
        - ``k``: the rule lets it go, but the operator refuses the smaller size;
        - ``p``: the rule pins it;
        - ``-``: a single place, or the places of a kernel, which get no labels;
        - ``i``: (all axes) the operand is an input of the model and has no labels.
    note:
        What is special about it, where one operator has several samples.
    low, high:
        Range of the operands' numbers.
    mode:
        What it is recorded with: ``"eager"`` plain tensors; ``"direct"`` tensors that were made in inference mode,
        whose composite operators arrive whole.
    """

    names: str
    run: Run
    operands: str
    note: str = ""
    low: float = -2.0
    high: float = 2.0
    mode: str = "eager"

    def __str__(self) -> str:
        return "-".join(f"{self.names} {self.note}".split())

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each operand."""
        return [tuple(int(axis.strip("cbkpi-")) for axis in one.split()) for one in self.operands.split(",")]

    @property
    def letters(self) -> list[list[str]]:
        """Of each axis of each operand."""
        return [[axis.lstrip("0123456789") for axis in one.split()] for one in self.operands.split(",")]


def direct(names: str, run: Run, operands: str, note: str = "", **more: Any) -> Sample:
    """A sample for an operator that arrives in parts where the tensors are plain ones."""
    return Sample(names, run, operands, note, mode="direct", **more)


def _with(owner: Any, name: str, *args: Any, **kwargs: Any) -> Run:
    """The named function of one tensor, with these further arguments."""
    return lambda x: getattr(owner, name)(x, *args, **kwargs)


def _pointwise() -> list[Sample]:
    positive = [
        "acos", "asin", "atanh", "digamma", "erfinv", "lgamma", "log", "log10", "log1p", "log2", "logit", "sqrt",
        "rsqrt", "xlogy", "pow",
    ]  # fmt: skip
    ours: dict[str, dict[str, Any]] = {name: {"low": 0.05, "high": 0.95} for name in positive}
    ours["acosh"] = {"low": 1.5, "high": 4.0}
    one, two = "3c 4c", "3c 4c, 3c 4c"
    unary = [
        "abs", "acos", "asin", "atan", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "floor", "frac",
        "isinf", "isnan", "log", "log10", "log1p", "log2", "logical_not", "logit", "nan_to_num", "neg", "reciprocal",
        "relu", "round", "rsqrt", "sgn", "sigmoid", "sign", "sin", "sinh", "sqrt", "tan", "tanh", "trunc", "celu",
        "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "silu", "softplus", "hardshrink",
        "softshrink", "log_sigmoid_forward", "acosh", "asinh", "atanh", "deg2rad", "digamma", "erfinv", "isneginf",
        "isposinf", "lgamma", "rad2deg", "signbit", "sinc", "angle",
    ]  # fmt: skip
    binary = [
        "add", "atan2", "copysign", "div", "eq", "floor_divide", "fmod", "ge", "gt", "hypot", "le", "logical_and",
        "logical_or", "lt", "maximum", "minimum", "mul", "ne", "pow", "remainder", "rsub", "sub", "xlogy",
        "fmax", "fmin", "heaviside", "logical_xor", "logaddexp", "logaddexp2", "ldexp",
    ]  # fmt: skip
    return [
        *(Sample(name, getattr(aten, name), one, **ours.get(name, {})) for name in unary),
        *(Sample(name, getattr(aten, name), two, **ours.get(name, {})) for name in binary),
        Sample("bitwise_not", lambda x: ~(x > 0), one),
        Sample("bitwise_and", lambda x, y: (x > 0) & (y > 0), two),
        Sample("bitwise_xor", lambda x, y: (x > 0) ^ (y > 0), two),
        Sample("polygamma", lambda x: torch.polygamma(1, x), one, low=0.5),
        Sample("rrelu_with_noise", F.rrelu, one),
        Sample("bitwise_or", lambda x, y: (x > 0) | (y > 0), two),
        Sample("clamp", lambda x: x.clamp(-1, 1), one),
        Sample("clamp", torch.clamp, f"{two}, 4c", "by tensors"),
        Sample("clamp_max", lambda x: aten.clamp_max(x, 1), one),
        Sample("clamp_min", lambda x: aten.clamp_min(x, 0), one),
        Sample("threshold", lambda x: F.threshold(x, 0.5, 0.0), one),
        Sample("addcdiv", torch.addcdiv, f"{two}, 4c"),
        Sample("addcmul", torch.addcmul, f"{two}, 4c"),
        Sample("lerp", torch.lerp, f"{two}, 3c 4c"),
        Sample("where", lambda x, y: torch.where(x > 0, x, y), two),
        Sample("masked_fill", lambda x, y: x.masked_fill(y > 0, 0.5), two),
        Sample("mul", torch.mul, "3c 4c, 4c", "broadcast"),
        Sample("mul", torch.mul, "2c 3c 4c, 3c 1-", "gate"),
        Sample("add", torch.add, "3c 4p, 4i", "meets an input"),
        Sample("add", torch.add, "3c 4c, 1- 1-", "meets one number"),
        Sample("add", lambda x, y: x.flatten() + y, "3c 1-, 3c", "meets a view"),
        Sample("_prelu_kernel", F.prelu, "2c 3c 4c, 3c"),
        Sample("_prelu_kernel", F.prelu, "2c 3c 4c, 1-", "one slope"),
    ]


def _packed(x: Tensor) -> Tensor:
    return aten._pack_padded_sequence(x, torch.tensor([3, 2]), True)[0]  # type: ignore[no-any-return]  # aten is untyped


def _copies() -> list[Sample]:
    return [
        Sample("clone", torch.clone, "3c 4c"),
        Sample("detach", lambda x: aten.detach(x) + 0, "3c 4c"),
        Sample("alias", lambda x: aten.alias(x) + 0, "3c 4c"),
        Sample("_to_copy", lambda x: x.to(torch.float32), "3c 4c"),
        Sample("lift_fresh", lambda x: x * torch.tensor([2.0]), "3c 4c"),
        Sample("detach", lambda x, y: x.detach() + y, "3c 4c, 3c 4c", "meets another"),
        Sample("alias", lambda x, y: aten.alias(x) + y, "3c 4c, 3c 4c", "meets another"),
        Sample("tril", torch.tril, "2c 3p 3p"),
        Sample("triu", torch.triu, "2c 3p 3p"),
        Sample("tril", lambda x, y: torch.ones_like(y).tril() * x, "3c 1- 1-, 4i 4i", "of a mask"),
        Sample("copy", lambda x: torch.zeros_like(x).copy_(x), "3c 4c"),
        Sample("copy", lambda x: torch.empty_like(x).copy_(x), "3c 4c", "into scratch memory"),
        Sample("copy", lambda x, y: (x * 1).copy_(y), "3c 4c, 4c", "broadcast"),
        Sample("fill", lambda x: x + (x * 1).fill_(2.0), "3c 4c"),
        Sample("zero", lambda x: x + (x * 1).zero_(), "3c 4c"),
        Sample("zero", _middle_zero, "6b", "of a third"),
        Sample("exponential", lambda x: x + 0 * torch.empty_like(x).exponential_(), "3c 4c"),
        Sample("uniform", lambda x: x + 0 * torch.empty_like(x).uniform_(), "3c 4c"),
        Sample("normal_functional", lambda x: x + 0 * torch.empty_like(x).normal_(), "3c 4c"),
        Sample("log_normal", lambda x: x + 0 * torch.empty_like(x).log_normal_(), "3c 4c"),
        Sample("cauchy", lambda x: x + 0 * torch.empty_like(x).cauchy_(), "3c 4c"),
        Sample("geometric", lambda x: x + 0 * torch.empty_like(x).geometric_(0.5), "3c 4c"),
        Sample("native_dropout", lambda x: aten.native_dropout(x, 0.5, False), "3c 4c"),
    ]


def _middle_zero(x: Tensor) -> Tensor:
    third = len(x) // 3
    x = x.clone()
    x[third : 2 * third].zero_()
    return x.view(3, third)


def _adding(make: Run, arguments: Run) -> Run:
    """Add what `make` gives, times zero: scratch memory holds any numbers."""
    return lambda x: x + 0 * make(*arguments(x)).nan_to_num()


def _factories() -> list[Sample]:
    shaped = ["zeros", "ones", "empty", "rand", "randn"]
    like = ["zeros_like", "ones_like", "empty_like", "rand_like", "randn_like"]
    new = ["new_zeros", "new_ones", "new_empty"]
    windows = ["hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window"]
    return [
        *(Sample(n, _adding(getattr(torch, n), lambda x: [x.shape]), "3c 4c") for n in shaped),
        *(Sample(n, _adding(getattr(aten, n), lambda x: [x]), "3c 4c") for n in like),
        *(Sample(n, _adding(getattr(aten, n), lambda x: [x, x.shape]), "3c 4c") for n in new),
        Sample("zeros", lambda x: x + torch.zeros(3, 4), "3k 4k", "of a fixed size"),
        Sample("full", lambda x: x + torch.full(x.shape, 2.0), "3c 4c"),
        Sample("full_like", lambda x: x + torch.full_like(x, 2.0), "3c 4c"),
        Sample("new_full", lambda x: x + x.new_full(x.shape, 2.0), "3c 4c"),
        Sample("scalar_tensor", lambda x: x + aten.scalar_tensor(2.0), "3c 4c"),
        Sample("randint", lambda x: x + torch.randint(1, x.shape), "3c 4c"),
        Sample("randint_like", lambda x: x + torch.randint_like(x, 1), "3c 4c"),
        Sample("normal", lambda x: x + 0 * torch.normal(0.0, 1.0, x.shape), "3c 4c"),
        Sample("empty_strided", lambda x: x + 0 * aten.empty_strided([x.shape[1]], [1]).nan_to_num(), "3c 4c"),
        Sample("new_empty_strided", lambda x: x + 0 * x.new_empty_strided([x.shape[1]], [1]).nan_to_num(), "3c 4c"),
        Sample("empty_permuted", lambda x: x + 0 * torch.empty_permuted(x.shape, [1, 0]).nan_to_num(), "3c 4c"),
        Sample("arange", lambda x: x + torch.arange(len(x))[:, None], "3p 4c", "places meet channels"),
        Sample("arange", lambda x, y: x + torch.arange(len(y)), "3c 1-, 4i", "places of the input"),
        Sample("linspace", lambda x: x + torch.linspace(0, 1, x.shape[1]), "3c 4p"),
        Sample("logspace", lambda x: x + torch.logspace(0, 1, x.shape[1]), "3c 4p"),
        *(Sample(n, lambda x, n=n: x * getattr(torch, n)(x.shape[1]), "3c 4p") for n in windows),
        Sample("eye", lambda x: x + torch.eye(len(x)), "3p 3p"),
        Sample("eye", lambda x: x @ torch.eye(x.shape[1], dtype=x.dtype), "3c 4p", "in a product"),
        Sample("randperm", lambda x: x + 0 * torch.randperm(x.shape[1]), "3c 4p"),
        Sample("tril_indices", lambda x: x[tuple(torch.tril_indices(*x.shape))], "3ck 3ck"),
        Sample("triu_indices", lambda x: x[tuple(torch.triu_indices(*x.shape))], "3ck 3ck"),
    ]


def _products() -> list[Sample]:
    return [
        Sample("mm", torch.mm, "3c 4c, 4c 5c"),
        Sample("mm", torch.mm, "3i 4i, 4p 5c", "on an input"),
        Sample("bmm", torch.bmm, "2c 3c 4c, 2c 4c 5c"),
        Sample("bmm", lambda x, y: x.unflatten(1, (2, -1)).movedim(1, 0) @ y, "3c 4c, 2p 2c 5c", "a matrix per head"),
        Sample("addmm", torch.addmm, "5c, 3c 4c, 4c 5c"),
        Sample("addmm", lambda b, x, w: torch.addmm(b, x, w, beta=0.5, alpha=2), "3c 5c, 3c 4c, 4c 5c", "scaled"),
        Sample("baddbmm", torch.baddbmm, "2c 3c 5c, 2c 3c 4c, 2c 4c 5c"),
        Sample("mv", torch.mv, "3c 4c, 4c"),
        Sample("dot", torch.dot, "4c, 4c"),
        Sample("addmm", F.linear, "3c 4c, 5c 4c, 5c", "linear"),
    ]


def _convolutions() -> list[Sample]:
    conv = F.conv2d
    grouped = functools.partial(F.conv2d, groups=2)
    backwards = F.conv_transpose2d
    return [
        Sample("convolution", conv, "2c 4c 5p 5p, 3c 4c 3- 3-, 3c"),
        Sample("convolution", conv, "2i 4i 5i 5i, 3c 4p 3- 3-, 3c", "on an input"),
        Sample("convolution", F.conv1d, "2c 4c 5p, 3c 4c 3-", "1d"),
        Sample("convolution", F.conv3d, "1- 2c 3p 3p 3p, 3c 2c 2- 2- 2-", "3d"),
        Sample("convolution", conv, "2c 4c 3c 3c, 3c 4c 1- 1-", "1x1"),
        Sample("convolution", backwards, "2c 4c 3p 3p, 4c 3c 2- 2-, 3c", "transposed"),
        Sample("convolution", grouped, "2c 6b 3p 3p, 4b 3b 2- 2-, 4b", "grouped"),
        Sample("convolution", functools.partial(backwards, groups=2), "2c 6b 3p 3p, 6b 2b 2- 2-, 4b", "grouped back"),
        Sample("convolution", _depthwise, "2c 4c 3p 3p, 4c 1- 2- 2-, 4c", "depthwise"),
        Sample("convolution", _depthwise, "2c 4c 3p 3p, 8c 1- 2- 2-, 8c", "depthwise twice as many"),
        Sample("convolution", _depthwise_back, "2c 4c 3p 3p, 4c 1- 2- 2-, 4c", "depthwise transposed"),
    ]


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, groups=x.shape[1])


def _depthwise_back(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose2d(x, weight, bias, groups=x.shape[1])


def _movement() -> list[Sample]:
    return [
        Sample("view", lambda x: x.view(-1), "3c 1-"),
        Sample("view", lambda x, y: (x @ y).view(-1), "3i 4i, 4p 5c", "flatten"),
        Sample("view", lambda x: x.view(-1), "3c 4c", "of two axes"),
        Sample("view", lambda x: x.view(-1).relu(), "3c 4c", "of two axes and on"),
        Sample("view", lambda x: x.view(2, -1), "6b", "in halves"),
        Sample("view", lambda x: x.unflatten(0, (-1, 2)), "6k", "in pairs"),
        Sample("view", lambda x, y: x @ y, "2c 3c 4c, 4c 5c", "product of batches"),
        Sample("_unsafe_view", lambda x: aten._unsafe_view(x, [2, -1]), "6b"),
        direct("_reshape_alias", lambda x: aten._reshape_alias(x, [2, len(x) // 2], [len(x) // 2, 1]), "6b"),
        Sample("view.dtype", lambda x: x.view(torch.int64).view(torch.float64), "3c 4c", "and back"),
        Sample("view.dtype", lambda x: x.view(torch.float32), "3p 4p", "in halves"),
        Sample("permute", lambda x: x.permute(2, 0, 1), "3c 4c 2c"),
        Sample("transpose", lambda x: x.transpose(0, 2), "3c 4c 2c"),
        Sample("t", lambda x: x.t() * 1, "3c 4c"),
        Sample("squeeze", lambda x: x.squeeze(1), "3c 1- 4c"),
        Sample("unsqueeze", lambda x: x.unsqueeze(1), "3c 4c"),
        Sample("expand", lambda x: x.expand(-1, 5, -1), "3c 1- 4c"),
        Sample("flip", lambda x: x.flip(1), "3c 4c"),
        Sample("roll", lambda x: x.roll(1, 1), "3c 4c"),
        Sample("repeat", lambda x: x.repeat(2, 2), "3c 4c"),
        Sample("select", lambda x: x.select(1, 0), "3c 4cp"),
        Sample("select", lambda x: x.select(1, 2), "3c 4ckp", "from the middle"),
        Sample("rot90", lambda x: x.rot90(), "3c 4c"),
        Sample("pixel_shuffle", lambda x: F.max_pool2d(F.pixel_shuffle(x, 2), 1), "2c 12c 2p 2p"),
        Sample("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), "2c 12c 2c 2c", "alone"),
        Sample("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), "2c 3c 4k 4k"),
        Sample("channel_shuffle", lambda x: F.channel_shuffle(x, 2), "2c 6b 2c 2c"),
        Sample("native_channel_shuffle", lambda x: aten.native_channel_shuffle(x, 2), "2c 6b 2c 2c"),
        Sample("unfold", lambda x: x.unfold(1, 2, 1), "3c 4ck"),
        *_pieces(),
    ]


def _pieces() -> list[Sample]:
    return [
        Sample("slice", lambda x: x[:, : x.shape[1] // 2], "3c 4ck", "the first half"),
        Sample("slice", lambda x: x[:, 1:], "3c 4ck", "all but one"),
        Sample("slice", lambda x: x[:, :2], "3c 4ck", "a fixed number"),
        Sample("slice", lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :], "3c 4c", "both halves"),
        Sample("slice", lambda x: x[:, ::2], "3c 4ck", "every other"),
        Sample("split", lambda x: x.split(x.shape[1] // 2, 1), "3c 4b"),
        Sample("split", lambda x: torch.chunk(x, 2, 1), "3c 4bc", "chunk"),
        Sample("_pack_padded_sequence", _packed, "2i 3i 4c"),
        Sample(
            "split", lambda x: torch.cat([x.chunk(2, 1)[0].tanh(), x.chunk(2, 1)[1].exp()], 1), "3c 4bc", "otherwise"
        ),
        Sample("split", lambda x: torch.chunk(x, 3, 1)[1], "3c 6bc", "one of three"),
        Sample("split_with_sizes", lambda x: x.split([x.shape[1] // 2, x.shape[1] // 2], 1), "3c 4b"),
        Sample("unbind", lambda x: x.unbind(1), "3c 4p"),
        Sample("unbind", lambda x: x.unflatten(1, (2, -1)).unbind(1), "3c 4b", "halves"),
        Sample("unsafe_split", lambda x: aten.unsafe_split(x, x.shape[1] // 2, 1), "3c 4b"),
        Sample("cat", lambda x, y: torch.cat([x, y], 1), "3c 4c, 3c 2c"),
        Sample("cat", lambda x, y: torch.cat([x, y], 1), "3p 4c, 3i 2i", "meets an input"),
        Sample("stack", lambda x, y: torch.stack([x, y], 1), "3c 4c, 3c 4c"),
        Sample("slice_scatter", lambda x, y: torch.slice_scatter(x, y, 1, 1, 1 + y.shape[1]), "3c 5ck, 3c 2k"),
        Sample("select_scatter", lambda x, y: torch.select_scatter(x, y, 1, 0), "3c 4ck, 3c"),
        Sample("constant_pad_nd", lambda x: F.pad(x, (1, 2)), "3c 4c"),
        Sample("constant_pad_nd", lambda x: F.pad(x, (0, 0, 1, 1), value=0.5), "3c 4c", "value"),
        Sample("constant_pad_nd", lambda x: F.pad(x, (-1, 0)), "3c 4ck", "crop"),
        Sample("index", lambda x: x[:, torch.tensor([2, 0])], "3c 4ck", "fixed places"),
        Sample("index", lambda x: x[:, torch.arange(x.shape[1])], "3c 4c", "all places"),
        Sample("index", lambda x, y: x[:, y.argsort()], "3c 4p, 4p", "places from data"),
        Sample("index_select", lambda x: x.index_select(1, torch.tensor([2, 0])), "3c 4ck"),
        Sample("index_select", lambda x: x.index_select(0, torch.tensor([0, 1, 2])), "3k 4c", "rows"),
        Sample("embedding", lambda w: F.embedding(torch.tensor([[2, 0], [1, 1]]), w), "3p 4c"),
        Sample("embedding", lambda w: F.embedding(torch.tensor(1), w), "3p 4c", "one row"),
        Sample("embedding", lambda w, x: F.embedding((x > 0).long(), w), "3p 4c, 5c", "indices from data"),
    ]


def _statistics() -> list[Sample]:
    two = "2c 4c 3c 3c"
    vectors = "4c, 4c, 4c, 4c"
    return [
        Sample("native_batch_norm", _batch_norm, f"{two}, {vectors}", low=0.1),
        Sample("native_batch_norm", _no_statistics, "2c 4c 3c 3c", "of the batch"),
        Sample("native_batch_norm", _standardised, "3c 4c 2c 2c, 3c", "of a filter"),
        Sample("_native_batch_norm_legit_no_training", _no_training, f"{two}, {vectors}", low=0.1),
        Sample("_native_batch_norm_legit", _legit, "2i 1i 3i 3i, 4c, 4c"),
        Sample("_native_batch_norm_legit_functional", _legit_functional, f"2i 1i 3i 3i, {vectors}"),
        Sample("native_layer_norm", lambda x, w, b: F.layer_norm(x, w.shape, w, b), "2c 3c 6c, 6c, 6c"),
        Sample("native_layer_norm", lambda x: F.layer_norm(x, x.shape[1:]), "2c 4c 6c", "two axes"),
        Sample("native_layer_norm", lambda x, w: F.layer_norm(x, w.shape, w), "2i 6i, 6p", "on an input"),
        Sample("native_group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), "2c 6b 3p 3p, 6b, 6b"),
        Sample("native_group_norm", lambda x: F.group_norm(x, 1), "2c 6c 3p 3p", "one group"),
        Sample("native_group_norm", lambda x: F.group_norm(x, 2), "2c 6b", "flat"),
        Sample("sum", lambda x: x.sum(1), "3c 4c"),
        Sample("sum", lambda x: x.sum(), "3c 4c", "all"),
        Sample("sum", lambda x: x.sum((0, 2), keepdim=True), "3c 4c 2c", "keepdim"),
        Sample("mean", lambda x: x.mean(1), "3c 4c"),
        Sample("mean", lambda x: x.mean((0, 2), keepdim=True), "3c 4c 2c", "two axes"),
        Sample("mean", lambda x: x.mean(), "3c 4c", "all"),
        Sample("pow sum sqrt", _weight_norm, "5c 4c 3c, 5c 1- 1-"),
        Sample("pow sum sqrt", functools.partial(_weight_norm, dim=1), "5c 4c, 1- 4c", "last"),
        *_other_reductions(),
    ]


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return torch._weight_norm_interface(v, g, dim)[0]


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var.abs(), weight, bias)


def _no_training(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    return aten._native_batch_norm_legit_no_training(x, weight, bias, mean, var.abs(), 0.1, 1e-5)[0]


def _legit(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return aten._native_batch_norm_legit(_widened(x, weight), weight, bias, True, 0.1, 1e-5)[0]


def _widened(x: Tensor, vector: Tensor) -> Tensor:
    """`x` with the channels of `vector`, and no labels elsewhere."""
    return x * vector.view(1, -1, *[1] * (x.ndim - 2))


def _legit_functional(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    return aten._native_batch_norm_legit_functional(_widened(x, mean), weight, bias, mean, var, True, 0.1, 1e-5)[0]


def _standardised(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, gain, training=True, momentum=0.0).reshape_as(weight)


def _no_statistics(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _other_reductions() -> list[Sample]:
    within = ["logsumexp", "prod", "any", "all", "argmax", "argmin"]
    extremes = ["amax", "amin", "aminmax"]
    pairs = ["max", "min", "median", "nanmedian", "mode"]
    spreads = ["var", "std", "var_mean", "std_mean"]
    return [
        *(Sample(n, _with(torch, n, 1), "3c 4p") for n in within),
        *(Sample(n, _with(torch, n, 1, keepdim=True), "3c 4p", "keepdim") for n in within),
        *(Sample(n, _with(torch, n, 1), "3c 4p") for n in pairs),
        *(Sample(n, _with(torch, n, 1, keepdim=True), "3c 4p", "keepdim") for n in pairs),
        *(Sample(n, _with(torch, n), "3p 4p", "all") for n in ["argmax", "median"]),
        *(Sample(n, _with(torch, n, dim=1), "3c 4c") for n in extremes),
        *(Sample(n, _with(torch, n, dim=1, keepdim=True), "3c 4c", "keepdim") for n in extremes),
        *(Sample(n, _with(torch, n), "3c 4c", "all") for n in [*extremes, "max", "min"]),
        *(Sample(n, lambda x, n=n: getattr(x, n)(1).values, "3c 4c", "no places") for n in ["max", "min"]),
        Sample("amax", lambda x: x.amax((0, 2)), "3c 4c 2c", "two axes"),
        Sample("amax", lambda x: x.view(x.shape[0], -1, 2).amax(2), "3c 4c", "pieces"),
        *(Sample(n, _with(torch, n, 1), "3c 4c") for n in spreads),
        *(Sample(n, _with(torch, n, 1, keepdim=True), "3c 4c", "keepdim") for n in spreads),
        *(Sample(n, _with(torch, n, (0, 2), correction=0), "3c 4c 5c", "biased") for n in spreads),
        *(Sample(n, _with(torch, n), "3c 4c", "all") for n in spreads),
        Sample("nansum", lambda x: x.nansum(1), "3c 4c"),
        Sample("count_nonzero", lambda x: (x > 0).count_nonzero(1), "3c 4c"),
        *_norms(),
        *_along(),
    ]


def _binary(x: Tensor, y: Tensor, weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    return F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), weight, reduction=reduction)


def _losses() -> list[Sample]:
    two = "3c 4c, 3c 4c"
    classes, labels, many = torch.tensor([0, 2, 1]), torch.tensor([[1, 2, 0, 3]] * 3), torch.zeros(2, 2, 2).long()
    lengths = torch.tensor([4, 4, 4])
    runs: dict[str, Any] = {
        **{name: getattr(F, name) for name in ("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss")},
        "binary_cross_entropy": _binary,
    }
    found = []
    for name, run in runs.items():
        ways = ("mean", "sum", "none")
        found += [Sample(name, functools.partial(run, reduction=reduction), two, reduction) for reduction in ways]
        found.append(Sample(name, run, "3p 4p, 3i 4i", "from an input"))
    return [
        *found,
        Sample("binary_cross_entropy", _binary, f"{two}, 4c", "weighed"),
        Sample("smooth_l1_loss", lambda x, y: F.smooth_l1_loss(x, y, beta=0.5, reduction="sum"), two, "bend"),
        Sample("nll_loss_forward", lambda x: F.nll_loss(x, classes), "3p 4p"),
        Sample("nll_loss_forward", lambda x: F.cross_entropy(x, classes, reduction="none"), "3p 4p", "cross entropy"),
        Sample("nll_loss2d_forward", lambda x: F.nll_loss(x, many), "2p 3p 2p 2p"),
        Sample("multi_margin_loss", lambda x: F.multi_margin_loss(x, classes), "3p 4p"),
        Sample("multilabel_margin_loss_forward", lambda x: F.multilabel_margin_loss(x, labels), "3p 4p"),
        Sample("_ctc_loss", lambda x: F.ctc_loss(x, labels[:, :2], lengths, lengths // 2), "4p 3p 4p"),
    ]


def _norms() -> list[Sample]:
    return [
        *(
            Sample("linalg_vector_norm", _with(torch.linalg, "vector_norm", p, 1), "3c 4c", f"p {p}")
            for p in (0, 1, 2.5)
        ),
        Sample("linalg_vector_norm", lambda x: x.norm(float("inf"), 1), "3c 4c", "largest"),
        Sample("linalg_vector_norm", lambda x: x.norm(-float("inf"), 1), "3c 4p", "least"),
        Sample("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x), "3c 4c", "all"),
        Sample("linalg_vector_norm", lambda x: F.normalize(x, dim=1), "3c 4c", "normalize"),
        Sample("linalg_vector_norm", lambda x, y: F.cosine_similarity(x, y, 1), "3c 4c, 3c 4c", "cosine"),
        Sample("norm", lambda x: aten.norm(x, 2, [1]), "3c 4c"),
        Sample("norm", lambda x: aten.norm(x, 2, [1], True), "3c 4c", "keepdim"),
        Sample("norm", lambda x: aten.norm(x), "3c 4c", "all"),
        Sample("norm", lambda x: aten.norm(x, -1, [1]), "3c 4p", "of reciprocals"),
        Sample("dist", torch.dist, "3c 4c, 3c 4c"),
        Sample("dist", lambda x, y: torch.dist(x, y, -1), "3p 4p, 3p 4p", "of reciprocals"),
        Sample("_cdist_forward", torch.cdist, "2c 3c 4c, 2c 5c 4c"),
        Sample("_cdist_forward", lambda x, y: torch.cdist(x, y, 1.0), "3i 4i, 5c 4p", "on an input"),
        Sample("_cdist_forward", torch.cdist, "2c 3c 4c, 5c 4c", "broadcast"),
        Sample("_euclidean_dist", lambda x, y: aten._euclidean_dist(x, y), "3c 4c, 5c 4c"),
        Sample("_pdist_forward", F.pdist, "3p 4c"),
        Sample("renorm", lambda x: x.renorm(2, 0, 1.0), "3c 4c 2c"),
        Sample("renorm", lambda x: x.renorm(1, -1, 1.0), "3c 4c", "last"),
    ]


def _along() -> list[Sample]:
    return [
        *(Sample(n, _with(torch, n, 0), "3p 4c") for n in ["cummax", "cummin"]),
        Sample("multinomial", lambda x: 0 * x.softmax(1).multinomial(2), "3c 4p"),
        Sample("_softmax", lambda x: x.softmax(1), "3c 4p"),
        Sample("_softmax", lambda x: x.softmax(-2), "3p 4c", "from the right"),
        Sample("_log_softmax", lambda x: x.log_softmax(1), "3c 4p"),
        Sample("_safe_softmax", lambda x: aten._safe_softmax(x, 1), "3c 4p"),
        *(Sample(n, _with(torch, n, 0), "3p 4c") for n in ["cumsum", "cumprod", "logcumsumexp"]),
        Sample("sort", lambda x: x.sort(1), "3c 4p"),
        Sample("sort", lambda x: x.sort(), "3c 4p", "by default"),
        Sample("sort", lambda x: x.sort(stable=True, dim=0), "3p 4c", "stable"),
        Sample("topk", lambda x: x.topk(2, 0), "3p 4c"),
        Sample("topk", lambda x: x.topk(2), "3c 4p", "by default"),
        Sample("kthvalue", lambda x: x.kthvalue(2, 0), "3p 4c"),
        Sample("kthvalue", lambda x: x.kthvalue(2), "3c 4p", "by default"),
    ]


def _windows() -> list[Sample]:
    one, two, three = "2c 3c 6p", "2c 3c 6p 6p", "1- 3c 4p 4p 4p"
    return [
        *_pooling(one, two, three),
        Sample("upsample_linear1d", _resized("linear"), one),
        Sample("upsample_bilinear2d", _resized("bilinear"), two),
        Sample("upsample_trilinear3d", _resized("trilinear"), three),
        Sample("upsample_bicubic2d", _resized("bicubic"), two),
        Sample("_upsample_bilinear2d_aa", _resized("bilinear", antialias=True), two),
        Sample("_upsample_bicubic2d_aa", _resized("bicubic", antialias=True), two),
        Sample("max_unpool2d", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]), two),
        Sample("max_unpool3d", lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), [2, 2, 2]), three),
        *_patches(),
        *_regions(),
        *(Sample(f"upsample_nearest{n}d", _resized("nearest"), s) for n, s in ((1, one), (2, two), (3, three))),
        *(Sample(f"_upsample_nearest_exact{n}d", _resized("nearest-exact"), s) for n, s in ((1, one), (2, two),
                                                                                       (3, three))),
        *(Sample(f"reflection_pad{n}d", _bordered("reflect", n), s) for n, s in ((1, one), (2, two), (3, three))),
        *(Sample(f"replication_pad{n}d", _bordered("replicate", n), s) for n, s in ((1, one), (2, two), (3, three))),
        Sample("grid_sampler_2d", _grid_sample, "2k 3c 4p 4p, 2p 3p 3p 2p", low=-1, high=1),
        Sample("grid_sampler_2d", _grid_sample, "2i 3i 4i 4i, 2p 3p 3p 2p", "of an input", low=-1, high=1),
        Sample("grid_sampler_3d", _grid_sample, "1- 3c 3p 3p 3p, 1- 2p 2p 2p 3p", low=-1, high=1),
        Sample("glu", lambda x: F.glu(x, 1), "3c 6c"),
        Sample("glu", F.glu, "3c 5c 4c", "the last axis"),
    ]  # fmt: skip


def _resized(mode: str, **options: Any) -> Run:
    return functools.partial(F.interpolate, scale_factor=2, mode=mode, **options)


def _bordered(mode: str, spatial: int) -> Run:
    return lambda x: F.pad(x, (1, 1) * spatial, mode)


def _grid_sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, align_corners=False)


def _pooling(one: str, two: str, three: str) -> list[Sample]:
    return [
        Sample("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 1, 1), two),
        Sample("avg_pool2d", lambda x: F.avg_pool2d(x, 2), "3c 6p 6p", "no batch"),
        Sample("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2), two),
        Sample("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2, return_indices=True), two, "indices"),
        Sample("_adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 2), two),
        Sample("mean", lambda x: F.adaptive_avg_pool2d(x, 1), "2c 3c 1- 1-", "global pool"),
        Sample("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 2), two),
        Sample("fractional_max_pool2d", _fractional, two),
        Sample("fractional_max_pool3d", _fractional3d, three),
        Sample("avg_pool3d", lambda x: F.avg_pool3d(x, 2), three),
        Sample("max_pool3d_with_indices", lambda x: F.max_pool3d(x, 2), three),
        Sample("_adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 2), three),
        Sample("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), three),
    ]


def _fractional(x: Tensor) -> Any:
    where = torch.full((*x.shape[:2], 2), 0.5, dtype=x.dtype)
    return aten.fractional_max_pool2d(x, [2, 2], [3, 3], where)[0]


def _fractional3d(x: Tensor) -> Any:
    where = torch.full((*x.shape[:2], 3), 0.5, dtype=x.dtype)
    return aten.fractional_max_pool3d(x, [2, 2, 2], [2, 2, 2], where)[0]


def _patches() -> list[Sample]:
    return [
        Sample("im2col", lambda x: F.unfold(x, 2), "2c 3c 4p 4p"),
        Sample("im2col", lambda x: F.unfold(x, 2).view(len(x), -1, 4, 9).sum(1), "2c 3c 4p 4p", "and apart"),
        Sample("im2col", lambda x: F.unfold(x, 1), "3c 4p 4p", "no batch, single places"),
        Sample("col2im", lambda x: F.fold(x, (3, 3), 2), "2c 12c 4p"),
        Sample("col2im", lambda x: F.fold(x, (2, 2), 1), "2c 3c 4p", "single places"),
        Sample("col2im", lambda x: F.fold(F.unfold(x, 2), (4, 4), 2), "2c 3c 4p 4p", "back"),
        Sample("col2im", lambda x: F.fold(x, (3, 3), 2), "12c 4p", "no batch"),
    ]


def _regions() -> list[Sample]:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 3.0, 3.0]], dtype=torch.float64)
    return [
        Sample("roi_align", lambda x: ops.roi_align(x, boxes, 2), "1- 3c 4p 4p"),
        Sample("roi_align", lambda x: ops.roi_align(x, boxes, 2), "2p 3c 4p 4p", "of a batch"),
        Sample("roi_align", lambda x, y: ops.roi_align(x, y.abs(), 2), "1- 3c 4p 4p, 1- 5p", "boxes from data", high=0),
        Sample("roi_pool", lambda x: ops.roi_pool(x, boxes, 2), "1- 3c 4p 4p"),
        Sample("ps_roi_align", lambda x: ops.ps_roi_align(x, boxes, 2), "1- 8p 4p 4p"),
        Sample("ps_roi_pool", lambda x: ops.ps_roi_pool(x, boxes, 2), "1- 8p 4p 4p"),
        Sample("nms", lambda x, y: ops.nms(torch.cat([x, x + y], 1), x[:, 0], 0.5), "3p 2p, 3p 2p", low=0.1),
        Sample("deform_conv2d", _deformed, "1- 3c 3p 3p, 4c 3c 2p 2p, 1- 8p 2p 2p, 1- 4p 2p 2p, 4c"),
        Sample("deform_conv2d", _shifted, "1- 3c 3p 3p, 4c 3c 2p 2p, 1- 8p 2p 2p", "plain"),
        Sample("deform_conv2d", _shifted, "1- 4c 3p 3p, 4c 1- 2p 2p, 1- 8i 2i 2i", "depthwise"),
        Sample("deform_conv2d", _shifted, "1- 4c 3p 3p, 4b 2c 2p 2p, 1- 8i 2i 2i", "grouped"),
        Sample("deform_conv2d", _shifted, "1- 4b 3p 3p, 4c 4b 2p 2p, 1i 16i 2i 2i", "two shifts"),
    ]  # fmt: skip


def _deformed(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor) -> Any:
    return ops.deform_conv2d(x, offset, weight, bias, mask=mask)


def _shifted(x: Tensor, weight: Tensor, offset: Tensor) -> Any:
    return ops.deform_conv2d(x, offset, weight)


def _spectra() -> list[Sample]:
    fft = torch.fft
    two = "2c 3c 4p 4p"
    return [
        Sample("_fft_r2c _fft_c2r", lambda x: fft.irfft2(fft.rfft2(x, norm="ortho")), two),
        Sample("_fft_r2c", lambda x: fft.rfft(x, dim=1).abs(), "3c 4p"),
        Sample("_fft_r2c", lambda x: fft.rfft(x), "4p", "flat"),
        Sample("_fft_c2c", lambda x: fft.ifft2(fft.fft2(x)).real, two),
        Sample("_fft_r2c", lambda x, w: fft.rfft2(x) * torch.view_as_complex(w), f"{two}, 3c 4p 3p 2p", "filter"),
        Sample("view_as_real", lambda x, y: torch.view_as_real(torch.complex(x, y)), "3c 4c, 3c 4c"),
        Sample("view_as_complex", lambda x: torch.view_as_complex(x).abs(), "3c 2p"),
        Sample("view_as_complex", lambda x: torch.view_as_complex(x.unflatten(1, (-1, 2))).abs(), "3c 6c", "pairs"),
        Sample("view_as_complex", _from_halves, "3c 6c", "halves"),
        Sample("complex", torch.complex, "3c 4c, 4c"),
        Sample("polar", torch.polar, "3c 4c, 4c"),
        Sample("_conj", lambda x, y: torch.complex(x, y).conj() * 2, "3c 4c, 3c 4c"),
        Sample("_neg_view", lambda x, y: torch.complex(x, y).conj().imag * 2, "3c 4c, 3c 4c"),
        Sample("_conj_physical", lambda x, y: torch.complex(x, y).conj_physical() * 2, "3c 4c, 3c 4c"),
        Sample("mm", lambda x, y: (torch.complex(x, x) @ torch.complex(y, y)).abs(), "3c 4c, 4c 5c", "complex"),
        Sample("angle", lambda x, y: torch.complex(x, y).angle(), "3c 4c, 3c 4c", "complex"),
    ]  # fmt: skip


def _from_halves(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.view(len(x), 2, -1).mT.contiguous())


def _gathered() -> list[Sample]:
    """Indices along one axis; `places` are numbers that belong to the input alone."""
    one = "3c 4p"
    middle = (slice(None), torch.tensor([0, 2]))
    return [
        Sample("gather", lambda x: x.gather(1, x.argsort(1)), one),
        Sample("gather", lambda x: x.gather(1, torch.tensor([[0, 2]]).expand(len(x), -1)), one, "same in all rows"),
        Sample("gather", lambda x, y: x.gather(0, y.argsort(0)), "3p 4c, 3p 4c", "from another"),
        Sample("gather", lambda x, y: x.gather(1, y.argsort(1)), "3p 4p, 3i 4i", "from an input"),
        Sample("gather", lambda x: x.gather(1, torch.tensor([[0, 2]])), "3p 4p", "of the first row"),
        Sample("gather", lambda x, y: x.gather(1, _rows(y, x.shape[2])), "2p 3p 4c, 2i 3i", "of tokens"),
        Sample("take", lambda x: x.take(torch.tensor([0, 2])), "3p 4p"),
        Sample("scatter", lambda x: x.scatter(1, x.argsort(1), 0.5), one, "a number"),
        Sample("scatter", lambda x, y: x.scatter(0, y.argsort(0), y), "3p 4c, 3p 4c"),
        Sample("scatter", lambda x, y: x * F.one_hot((y > 0).long(), 2), "3c 2p, 3c", "one hot"),
        Sample("scatter", lambda x, y: y.scatter(0, torch.tensor([[0, 1, 0, 1]]), x), "2p 5p, 3p 5p", "fewer"),
        Sample("scatter_add", lambda x, y: y.scatter_add(1, _rows(y[..., 0], x.shape[2]), x), "2c 3p 4cp, 2c 3p 4cp"),
        Sample("scatter_reduce", lambda x: x.scatter_reduce(1, x.argsort(1), x, "sum"), one),
        Sample("index_add", lambda x, y: x.index_add(1, torch.tensor([0, 2]), y), "3c 4p, 3c 2p"),
        Sample("index_copy", lambda x, y: x.index_copy(1, torch.tensor([0, 2]), y), "3c 4p, 3c 2p"),
        Sample("index_reduce", lambda x, y: x.index_reduce(-1, torch.tensor([0, 2]), y, "amax"), "3c 4p, 3c 2p"),
        Sample("index_fill", lambda x: x.index_fill(1, torch.tensor([0, 2]), 0.5), one),
        Sample("index_fill", lambda x, y: x.index_fill(0, y.argsort(), 0.5), "3p 4c, 3p", "places from data"),
        Sample("index_put", lambda x, y: _put(x, (torch.tensor([0, 2]),), y), "3p 4c, 2p 4c"),
        Sample("index_put", lambda x, y: _put(x, middle, y), "3c 4p 2c, 3c 2p 2c", "middle"),
        Sample("index_put", lambda x, y: _put(x, middle, y), "3c 4p 3c, 3c", "broadcast"),
        Sample("index_put", lambda x, y, z: _put(x, (y > 0,), z), "3p 4p 3c, 3i 4i, 3c", "mask"),
        Sample("index_put", lambda x, y: _put(x, (torch.tensor([0, 1]), slice(None), torch.tensor([1, 0])), y),
               "2p 3c 2p, 2p 3c", "apart"),
        Sample("index_put", lambda x, y: _put(x, (y.argsort(),), x.exp()), "3p 4c, 3p", "places from data"),
        Sample("nonzero", lambda x: (x > 0).nonzero(), "3p 4p"),
        Sample("masked_select", lambda x: x.masked_select(x > 0), "3p 4p"),
        Sample("masked_scatter", lambda x, y: x.masked_scatter(x > 0, y), "3p 4p, 3p 4p"),
        Sample("put", lambda x, y: x.put(torch.tensor([0, 2]), y), "3p 4p, 2p"),
        Sample("_unique2", lambda x: x.unique(return_counts=True), "3p 4p"),
        Sample("unique_dim", lambda x: x.unique(dim=0), "3p 4p"),
        Sample("unique_consecutive", lambda x: x.unique_consecutive(), "3p 4p"),
        Sample("bincount", lambda x: (x > 0).long().bincount(), "4p"),
        Sample("repeat_interleave", lambda x: x.repeat_interleave(torch.arange(3), 0), "3k 4c"),
        Sample("bucketize", lambda x: torch.bucketize(x, torch.arange(3.0)), "3c 4c"),
        Sample("bucketize", lambda x, y: torch.bucketize(x, y.sort()[0]), "3c 4c, 3p", "boundaries from data"),
        Sample("searchsorted", lambda x, y: torch.searchsorted(y.sort()[0], x), "3c 4c, 3p"),
        Sample("searchsorted", lambda x, y: torch.searchsorted(y.sort()[0], x), "3c 4c, 3c 5p", "by rows"),
        Sample("_embedding_bag_forward_only", lambda w: F.embedding_bag(torch.tensor([[2, 0], [1, 1]]), w), "3p 4c"),
        Sample("_embedding_bag", lambda w: aten._embedding_bag(w, torch.tensor([2, 0]), torch.tensor([0]))[0], "3p 4c"),
    ]  # fmt: skip


def _rows(x: Tensor, width: int) -> Tensor:
    """Places of rows in the order of `x`, the same for all of their `width` channels."""
    return x.argsort(1)[:, :, None].expand(-1, -1, width)


def _put(x: Tensor, where: tuple[Any, ...], what: Any) -> Tensor:
    x = x.clone()
    x[where] = what
    return x


def _checked(x: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(x)
    torch._linalg_check_errors(info, "inv", is_matrix=False)
    result: Tensor = inverse
    return result


def _matrices() -> list[Sample]:
    linalg = torch.linalg
    whole: dict[str, Run] = {
        "linalg_qr": linalg.qr, "linalg_matrix_exp": linalg.matrix_exp, "linalg_inv_ex": linalg.inv,
        "linalg_lstsq": lambda x: linalg.lstsq(x, x)[0], "linalg_pinv": linalg.pinv,
        "linalg_eig": lambda x: linalg.eig(x)[0].abs(),
        "linalg_lu_factor_ex": linalg.lu_factor,
        "_linalg_svd": linalg.svdvals, "_linalg_eigh": lambda x: linalg.eigvalsh(x + x.mT), "_linalg_det": linalg.det,
        "_linalg_slogdet": linalg.slogdet, "_linalg_solve_ex": lambda x: linalg.solve(x, x + 1),
        "linalg_solve_triangular": lambda x: linalg.solve_triangular(x, x + 1, upper=True),
        "linalg_cholesky_ex": lambda x: linalg.cholesky(x + 5 * torch.eye(3)),
        "cholesky_solve": lambda x: x.cholesky_solve(x), "cholesky_inverse": lambda x: x.cholesky_inverse(),
        "linalg_ldl_factor_ex": lambda x: linalg.ldl_factor(x + x.mT)[0],
    }  # fmt: skip
    return [
        Sample("_trilinear", F.bilinear, "2c 3c, 2c 4c, 5c 3c 4c, 5c"),
        Sample("_trilinear", F.bilinear, "2i 3i, 2p 4c, 5c 3p 4c", "on an input"),
        Sample("addbmm", torch.addbmm, "3c 5c, 2c 3c 4c, 2c 4c 5c"),
        Sample("addmv", torch.addmv, "3c, 3c 4c, 4c"),
        Sample("addr", torch.addr, "3c 4c, 3c, 4c"),
        Sample("linalg_cross", lambda x, y: torch.linalg.cross(x, y, dim=1), "2c 3p 4c, 2c 3p 4c"),
        Sample("linalg_cross", torch.linalg.cross, "2p 3p, 2i 3i", "on an input"),
        Sample("diagonal", torch.diagonal, "3c 3c 2c"),
        Sample("diagonal", lambda x: x.diagonal(1, 1, 2), "2c 3p 4p", "beside it"),
        Sample("diagonal", lambda x: x.expand(-1, 3).diagonal(), "3p 1-", "of equal columns"),
        Sample("diagonal_copy", torch.diag, "3c 3c"),
        Sample("trace", torch.trace, "3c 3c"),
        Sample("diag_embed", torch.diag_embed, "3c 4c"),
        Sample("diag_embed", lambda x, y: torch.diag_embed(x, 0, 0, 2) @ y, "3c 4c, 4c 5c", "in a product"),
        Sample("diag_embed", lambda x: torch.diag_embed(x, 1), "3c 4p", "beside it"),
        Sample("block_diag", torch.block_diag, "3c 4c, 2c 5c"),
        Sample("affine_grid_generator", lambda x: F.affine_grid(x, [2, 1, 3, 3], align_corners=False), "2p 2p 3p"),
        Sample("as_strided", lambda x: x.as_strided((2, 2), (1, 2)), "3p 4p"),
        Sample("linalg_householder_product", lambda x, y: linalg.householder_product(x, y), "3p 3p, 3p"),
        Sample("linalg_householder_product", linalg.householder_product, "4c 3p 3p, 4c 3p", "in a batch"),
        Sample("linalg_matrix_exp", linalg.matrix_exp, "4c 2c 3p 3p", "in a batch"),
        Sample("_linalg_solve_ex", linalg.solve, "4c 3p 3p, 4c 3p 3p", "in a batch", low=0.5),
        Sample("_linalg_solve_ex", linalg.solve, "3p 3p, 4p 3p 3p", "broadcast", low=0.5),
        Sample("linalg_qr", linalg.qr, "4c 3p 3p", "in a batch"),
        Sample("_linalg_det", linalg.det, "4c 3p 3p", "in a batch"),
        Sample("_linalg_check_errors", _checked, "4c 3p 3p", low=0.5),
        *(Sample(name, run, "3p 3p", low=0.5) for name, run in whole.items()),
    ]


def _meetings() -> list[Sample]:
    """Two or three operators, where the order in which channels arrive, or their parts, matter."""
    return [
        Sample("flip", lambda x: x.flip(1) * x, "3c 4c", "on itself"),
        Sample("roll", lambda x: x.roll(1, 1) * x, "3c 4k", "on itself"),
        Sample("roll", lambda x: x.roll(1), "4c", "flat"),
        Sample("cat", lambda x: torch.cat([x, x], 1), "3c 4c", "twice"),
        Sample("cat", lambda x: torch.cat(_halves(x)[::-1], 1), "3c 4bc", "halves swapped"),
        Sample("cat", lambda x: torch.cat([x.flatten(), torch.empty(0, dtype=x.dtype)]), "3c 1-", "with nothing"),
        Sample("cat", lambda x, y, z: torch.cat([x, y], 1) + z, "2c 4c, 2c 2c, 2c 6c", "meets a third"),
        Sample("cat", lambda x, y: torch.cat([x, torch.zeros_like(y)], 1) * 2, "2k 4c, 2k 2k", "with zeros"),
        Sample("expand", lambda x: x.expand(5, -1, -1), "3c 4c", "in front"),
        Sample("repeat", lambda x: x.repeat(2, 1, 1), "3c 4c", "in front"),
        Sample("squeeze", lambda x: x.squeeze(), "3c 1- 4c 1-", "all"),
        Sample("stack", lambda x, y, z: torch.stack([x, y, z], -1), "3c 4c, 3c 4c, 3c 4c", "last"),
        Sample("view", lambda x, y: (x * y[:, None, None]).flatten(1), "2i 1i 3i 3i, 4c", "channels of an image"),
        Sample("view", lambda x, y: (x * y).unflatten(2, (2, -1)).transpose(1, 2), "2i 3i 1i, 6b", "heads"),
        Sample("bmm", lambda x, y: _heads(x) @ _heads(y).mT, "3c 6b, 4c 6b", "heads"),
        Sample("bmm", lambda x, y: (_heads(x) @ _heads(y)).movedim(0, 1).flatten(1), "3c 8c, 4c 6b", "values"),
        Sample("split", lambda x: torch.mul(*_halves(x)), "3c 4c", "halves meet"),
        Sample("split", lambda x: x.split(3, 1), "3c 5ck", "with a rest"),
        Sample("slice", lambda x: x[:, -3:-1], "3c 4ck", "from the end"),
        Sample("slice", lambda x, y: x[1:] * y[:-1], "4ck 3c, 4ck 3c", "shifted"),
        Sample("slice_scatter", _overwritten, "3ck 5c, 2c 5c", "other rows"),
        Sample("index", lambda x: x[torch.tensor([[0, 2], [1, 0]])], "3k 4c", "a table"),
        Sample("index", lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 0])], "2k 3c 2k", "two axes"),
        Sample("index", lambda x, y: x[y > y.min()], "3p 4c, 3i", "a mask from data"),
        Sample("index", lambda x, y: x[:, y > y.min()], "2c 3p 4p 2c, 3i 4i", "a mask over two axes"),
        Sample("index", lambda x, y: x[:, y.argsort()[:2]], "3c 4p, 4p", "a few places from data"),
        Sample("constant_pad_nd", lambda x, y: F.pad(x, (0, 1)) + y, "3c 4c, 3c 5cp", "meets places"),
        Sample("native_layer_norm", lambda x: F.layer_norm(x.t(), [len(x)]), "4c 3c", "transposed"),
        Sample("native_group_norm", lambda x: F.group_norm(x, x.shape[1]), "2c 4c 3p", "of single channels"),
        Sample("sum", lambda x, y: (x * y).sum(-1), "3c 4c, 3c 4c", "of a product"),
        Sample("mean", lambda x, y: (x - x.mean(1, keepdim=True)) * y, "3c 4c, 4c", "centred"),
        Sample("mean", lambda x, y: (x - x.mean(1, keepdim=True)).square().mean(1), "3c 4c, 1-", "variance by hand"),
        Sample("where", lambda x, y: torch.where(x > 0, y, 0.5), "3c 4c, 4c", "one number"),
        Sample("masked_fill", lambda x, y: x.masked_fill(y > 0, 0.5), "3c 4p, 4i", "mask from an input"),
        Sample("convolution", lambda x, w: F.conv2d(x, w, groups=2), "2c 6b 3p 3p, 2p 3b 2- 2-", "one filter each"),
        Sample("convolution", lambda x, w: F.conv2d(x, w, stride=2, padding=1), "2c 4c 5p 5p, 3c 4c 3- 3-", "stride"),
        Sample("convolution", _two, "1i 2i 5i 5i, 4c 2p 3- 3-, 3c 4c 2- 2-", "twice"),
        Sample("convolution", _shuffled, "1i 2i 3i 3i, 8b 2p 1- 1-, 6b 4b 1- 1-", "shuffled groups"),
        Sample("embedding", lambda w: F.embedding(torch.tensor([0, 1]), w, padding_idx=0), "3p 4c", "padding"),
        Sample("baddbmm", torch.baddbmm, "1- 5c, 2c 3c 4c, 2c 4c 5c", "broadcast"),
        Sample("amax", lambda x: x * x.amax(0, keepdim=True), "3c 4c", "gate"),
        Sample("_softmax", lambda x, y: (x @ y.mT).softmax(-1) @ y, "3c 4c, 5p 4c", "attention"),
    ]  # fmt: skip


def _two(x: Tensor, weight: Tensor, after: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(x, weight), after)


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    return torch.chunk(x, 2, 1)


def _heads(x: Tensor) -> Tensor:
    return x.view(len(x), 2, -1).movedim(1, 0)


def _overwritten(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[: len(y)] = y
    return x


def _shuffled(x: Tensor, weight: Tensor, after: Tensor) -> Tensor:
    x = F.conv2d(x, weight)
    x = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    return F.conv2d(x, after, groups=2)


SAMPLES: tuple[Sample, ...] = (
    *_pointwise(), *_copies(), *_factories(), *_products(), *_convolutions(), *_movement(), *_statistics(), *_losses(),
    *_windows(),
    *_spectra(), *_gathered(), *_matrices(),
    *_meetings(),
)  # fmt: skip

#: Operators that can't be recorded here, each with the reason.
UNREACHABLE: dict[str, str] = {
    "bernoulli": "the recorder writes ones_like instead, so that nothing is drawn",
    "mkldnn_max_pool2d": "takes tensors in MKL-DNN's own layout only",
    "cudnn_batch_norm": "runs on CUDA only",
    "miopen_batch_norm": "runs on ROCm only",
    "cudnn_grid_sampler": "runs on CUDA only",
    "nonzero_static": "gives as many places as it is told to, without a meta kernel",
    "_unsafe_index_put": "is written by torch.compile only",
}
