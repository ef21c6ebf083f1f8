"""Complex numbers and Fourier transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgeon.rules import layout
from surgeon.rules.marks import Ledger, Marked, replace
from surgeon.rules.registry import rule


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fft(ledger: Ledger, x: Marked, dim: Sequence[int], *_: Any) -> Marked:
    """Every result along the transformed axes depends on all places there."""
    return replace(layout.slide(ledger, x, [axis % len(x.shape) for axis in dim]), value=None, free=False)


def _as_pairs(labels: Tensor) -> Tensor:
    return labels.unsqueeze(-1).expand(*labels.shape, 2)


@rule("view_as_real")
def view_as_real(ledger: Ledger, x: Marked) -> Marked:
    return layout.move(ledger, _as_pairs, x)


@rule("view_as_complex")
def view_as_complex(ledger: Ledger, x: Marked) -> Marked:
    """The real and the imaginary part become one place: they go together."""
    pair = len(x.shape) - 1
    pairs = layout.slide(ledger, x, [pair])
    return layout.drop_axis(replace(pairs, shape=(*x.shape[:pair], 1)), pair)
