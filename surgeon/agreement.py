"""Agreement: how far two results of a forward are apart, whatever tensors they are made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from surgeon.contents import tensors_in

__all__ = ["distance"]


def distance(expected: Any, found: Any) -> float:
    """The largest difference of two equally built results, relative to the largest number of each tensor expected.

    NaN where nothing is compared: no tensor, only zeros, or numbers that are not finite. Infinite where the two don't
    have tensors of the same number, shapes and kinds.
    """
    ours, theirs = tensors_in(expected), tensors_in(found)
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return math.inf
    errors = [_relative(a, b) for a, b in zip(ours, theirs, strict=True) if a.numel()]
    if any(math.isnan(error) for error in errors) or not errors:
        return math.nan
    return max(errors)


def _relative(expected: Tensor, found: Tensor) -> float:
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if bool((expected == found.to(expected)).all()) else math.inf
    wide = expected.detach().cpu().to(torch.complex128 if expected.is_complex() else torch.float64)
    error = (found.detach().cpu().to(wide.dtype) - wide).abs().max()
    scale = wide.abs().max()
    return float(error / scale)  # 0 / 0 is NaN: equal zeros prove nothing
