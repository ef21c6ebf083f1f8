"""torchvision's operators: regions of a feature map, suppressed boxes, convolutions at shifted places."""

from __future__ import annotations

from typing import Any

from surgeon.rules import layout, reasons
from surgeon.rules.contraction import convolve
from surgeon.rules.marks import Ledger, Marked, replace
from surgeon.rules.registry import rule
from surgeon.rules.statistics import keep_groups


def _steer(ledger: Ledger, *values: Marked) -> None:
    """Numbers that say where to look: none of them can go."""
    for value in values:
        ledger.pin(value.planes, reasons.mixes(ledger.node))


def _regions(ledger: Ledger, x: Marked, regions: Marked) -> Marked:
    """Channels as they are; the examples of the batch become regions, in whatever order they are asked for."""
    _steer(ledger, regions, replace(x, planes=tuple(p for p in x.planes if 0 in p.axes)))
    inside = replace(x, planes=tuple(p for p in x.planes if 0 not in p.axes), value=None, free=False)
    return layout.slide(ledger, inside, [2, 3])


@rule("roi_align")
def roi_align(ledger: Ledger, x: Marked, regions: Marked, *_: Any) -> Marked:
    return _regions(ledger, x, regions)


@rule("roi_pool")
def roi_pool(ledger: Ledger, x: Marked, regions: Marked, *_: Any) -> list[Marked]:
    """The second result says where each maximum was."""
    result = _regions(ledger, x, regions)
    return [result, replace(result)]


@rule("ps_roi_align", "ps_roi_pool")
def ps_roi_align(ledger: Ledger, x: Marked, regions: Marked, *_: Any) -> list[Marked]:
    """Each part of a region reads a channel of its own, which is told by its number."""
    _steer(ledger, x, regions)
    return [Marked((), ()), Marked((), ())]


@rule("affine_grid_generator")
def affine_grid(ledger: Ledger, theta: Marked, *_: Any) -> Marked:
    """The numbers of a matrix say where to look."""
    _steer(ledger, theta)
    return Marked((), ())


@rule("nms")
def nms(ledger: Ledger, boxes: Marked, scores: Marked, *_: Any) -> Marked:
    _steer(ledger, boxes, scores)
    return Marked((), ())


@rule("deform_conv2d")
def deform_conv2d(
    ledger: Ledger, x: Marked, weight: Marked, offset: Marked, mask: Marked, bias: Marked, *numbers: Any
) -> Marked:
    """A convolution whose windows are shifted: places of the shifts are told by their number."""
    _steer(ledger, offset, mask)
    groups, offset_groups = numbers[6:8]
    for plane in x.planes:
        if 1 in plane.axes and not plane.example:
            keep_groups(ledger, plane, offset_groups)
    return convolve(ledger, x, weight, bias, (groups, ledger.dense.args[11]))  # type: ignore[arg-type]  # an int
