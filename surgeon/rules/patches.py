"""Windows as columns: unfold and fold, whose channel axis holds one block of places per channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from surgeon.rules import layout
from surgeon.rules.marks import Ledger, Marked, Plane, replace
from surgeon.rules.registry import rule


@rule("im2col")
def im2col(ledger: Ledger, x: Marked, kernel: Sequence[int], *_: Any) -> Marked:
    """From ``(n, c, h, w)`` to ``(n, c * places of a window, windows)``."""
    places = math.prod(kernel)

    def column(labels: Tensor) -> Tensor:
        return labels[..., 0, 0].repeat_interleave(places, -1).unsqueeze(-1)

    ndim = len(x.shape)
    return layout.move(ledger, column, layout.slide(ledger, x, [ndim - 2, ndim - 1]))


@rule("col2im")
def col2im(ledger: Ledger, x: Marked, size: Sequence[int], kernel: Sequence[int], *_: Any) -> Marked:
    """From ``(n, c * places of a window, windows)`` to ``(n, c, h, w)``: a block of places becomes one channel."""
    ndim, block = len(x.shape), math.prod(kernel)
    blocks = replace(
        x,
        shape=_cut_axis(x.shape, ndim - 2, block),
        span=_cut_axis(x.span, ndim - 2, block),
        planes=tuple(_cut_plane(plane, ndim - 2, block) for plane in x.planes),
        value=None,
    )
    # (n, c, block, windows) by now: channels stay, the other two become the image
    return layout.slide(ledger, blocks, [ndim - 1, ndim])


def _cut_axis(sizes: Sequence[int], axis: int, block: int) -> tuple[int, ...]:
    return (*sizes[:axis], sizes[axis] // block, block, *sizes[axis + 1 :])


def _cut_plane(plane: Plane, channel: int, block: int) -> Plane:
    axes = {axis + (axis > channel) for axis in plane.axes}
    if channel in plane.axes:
        return replace(
            plane,
            labels=plane.labels.reshape(_cut_axis(plane.labels.shape, channel, block)),
            axes=frozenset(axes | {channel + 1}),
        )
    return replace(plane, labels=plane.labels.unsqueeze(channel), axes=frozenset(axes))
