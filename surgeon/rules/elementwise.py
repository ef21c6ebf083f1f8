"""Elementwise operators and tensors that the forward makes itself."""

from __future__ import annotations

from typing import Any

from surgeon.rules import algebra, layout
from surgeon.rules.marks import Ledger, Marked, replace
from surgeon.rules.registry import rule

POINTWISE = """
    abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor
    ceil celu clamp clamp_max clamp_min complex copysign cos cosh deg2rad digamma div elu eq erf erfc erfinv exp exp2
    expm1 floor floor_divide fmax fmin fmod frac ge gelu gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot
    isinf isnan isneginf isposinf ldexp le leaky_relu lerp lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and
    logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num ne neg polar polygamma
    pow rad2deg reciprocal relu remainder round rrelu_with_noise rsqrt rsub sgn sigmoid sign signbit silu sin sinc sinh
    softplus softshrink sqrt sub tan tanh threshold trunc where xlogy
""".split()
for _name in POINTWISE:
    rule(_name)(algebra.pointwise)


@rule("clone", "detach", "alias", "_to_copy", "lift_fresh", "bernoulli", "_conj", "_conj_physical", "_neg_view",
      "fill", "zero", "exponential", "uniform", "normal_functional", "log_normal", "cauchy", "geometric")  # fmt: skip
def same_places(ledger: Ledger, value: Marked, *args: Any, **kwargs: Any) -> Marked:
    return replace(value)


@rule("_prelu_kernel")
def prelu(ledger: Ledger, x: Marked, weight: Marked) -> Marked:
    return algebra.join(ledger, [x, weight])


@rule(
    *"""zeros ones full empty scalar_tensor rand randn randint normal zeros_like ones_like full_like
          empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty empty_strided
          new_empty_strided empty_permuted""".split()
)
def factory(ledger: Ledger, *args: Any, **kwargs: Any) -> Marked:
    return Marked((), (), free=True, constant=True)


@rule("native_dropout")
def dropout(ledger: Ledger, value: Marked, *_: Any) -> list[Marked]:
    return [replace(value), replace(value)]


@rule("arange", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices", "hann_window",
      "hamming_window", "blackman_window", "bartlett_window", "kaiser_window")  # fmt: skip
def numbering(ledger: Ledger, *args: Any, **kwargs: Any) -> Marked:
    """Places that differ from each other: a cut would renumber them, so they hold what they meet."""
    return Marked((), (), constant=True)


@rule("log_sigmoid_forward")
def log_sigmoid(ledger: Ledger, value: Marked) -> list[Marked]:
    """The second result is the exponential, for the backward pass; on CUDA it has no places."""
    filled = all(user.meta["shape"].numel() for user in ledger.dense.users)
    return [replace(value), replace(value) if filled else Marked((), ())]


@rule("tril", "triu")
def triangle(ledger: Ledger, value: Marked, *_: Any) -> Marked:
    ndim = len(value.shape)
    return layout.mix(ledger, value, [ndim - 2, ndim - 1])
