"""Windows that slide over space: pooling, interpolation, reflecting borders; and the gated linear unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surgeon.rules import algebra, layout, reasons
from surgeon.rules.layout import move
from surgeon.rules.marks import Ledger, Marked, replace
from surgeon.rules.registry import rule


def _window(names: str, spatial: int) -> None:
    def run(ledger: Ledger, x: Marked, *args: Any, **kwargs: Any) -> Any:
        result = layout.slide(ledger, x, range(len(x.shape) - spatial, len(x.shape)))
        return result if "shape" in ledger.node.meta else [result, replace(result)]

    rule(*names.split())(run)


_window("""upsample_linear1d upsample_nearest1d
           _upsample_nearest_exact1d reflection_pad1d replication_pad1d""", 1)  # fmt: skip
_window(
    """avg_pool2d max_pool2d_with_indices mkldnn_max_pool2d _adaptive_avg_pool2d
           adaptive_max_pool2d upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_nearest_exact2d
           _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d fractional_max_pool2d""",
    2,
)
_window(
    """avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d adaptive_max_pool3d
           fractional_max_pool3d upsample_trilinear3d
           upsample_nearest3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d""",
    3,
)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(ledger: Ledger, x: Marked, grid: Marked, *_: Any) -> Marked:
    ledger.pin(grid.planes, reasons.mixes(ledger.node))
    return layout.slide(ledger, x, range(2, len(x.shape)))


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(ledger: Ledger, x: Marked, places: Marked, size: Sequence[int], *_: Any) -> Marked:
    """The places are counted inside each channel's own image."""
    ndim = len(x.shape)
    spatial = range(ndim - len(size), ndim)
    return algebra.join(ledger, [layout.slide(ledger, value, spatial) for value in (x, replace(places, value=None))])


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
