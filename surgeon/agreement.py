"""Agreement: how far two results of a forward are apart, whatever tensors they are made of."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from surgeon.contents import tensors_in

__all__ = ["distance", "full_precision"]

#: Who may compute float32 in less, each by its own setting (torch 2.9 and later).
_EACH = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """In the body float32 is computed in full: a GPU's convolutions take TF32 by default, with three digits.

    Two ways to compute the same thing differ by as much then, which says nothing about them.
    """
    try:
        before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the program has set them one by one
        with _each_in_full():
            yield
        return
    try:
        _set_precision(False, "highest")
        yield
    finally:
        _set_precision(*before)


def _set_precision(short_convolutions: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = short_convolutions
    torch.set_float32_matmul_precision(products)


@contextlib.contextmanager
def _each_in_full() -> Iterator[None]:
    parts: list[Any] = [operator.attrgetter(name)(torch.backends) for name in _EACH]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def distance(expected: Any, found: Any) -> float:
    """The largest difference of two equally built results, relative to the largest number of each tensor expected.

    NaN where nothing is compared: no tensor, or in each of them only zeros or numbers that are not finite. Infinite
    where the two don't have tensors of the same number, shapes and kinds, where whole numbers differ, and where what
    was found isn't finite though all that was expected is.
    """
    ours, theirs = tensors_in(expected), tensors_in(found)
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return math.inf
    errors = [_relative(a, b) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    return max((error for error in errors if not math.isnan(error)), default=math.nan)


def _relative(expected: Tensor, found: Tensor) -> float:
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if bool((expected == found.to(expected)).all()) else math.inf
    wide = expected.detach().cpu().to(torch.complex128 if expected.is_complex() else torch.float64)
    error = float((found.detach().cpu().to(wide.dtype) - wide).abs().max())
    scale = float(wide.abs().max())
    if not math.isfinite(scale) or scale == error == 0:
        return math.nan  # equal zeros prove nothing
    return error / scale if scale and math.isfinite(error) else math.inf
