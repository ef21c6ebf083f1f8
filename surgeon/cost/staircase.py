"""The channel steps of a device: widths between two multiples of it cost what the upper one costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from surgeon.cost.tables import Place, Table

#: Steps that are looked for; finer ones can't be told from none.
CANDIDATES = (64, 32, 16, 8)
#: Multiples of all of them, and the widths just above.
WIDTHS = tuple(sorted({width + more for width in range(64, 129, 8) for more in (0, 1)} - {129}))
#: Where no step is found, channels go by this many at a time all the same.
DEFAULT = 8
#: Share of the rise from one multiple to the next that may lie anywhere but right behind the lower one.
_SMOOTH = 0.35
#: How much cheaper than the next multiple the width half-way to it may be, for noise.
_SLACK = 0.12
_PASSES = 5


def find_step(seconds: Mapping[int, float]) -> int:
    """The largest step at whose multiples the cost jumps and between which it doesn't rise; 1 if there is none.

    Parameters
    ----------
    seconds:
        Width -> time, at least of :data:`WIDTHS`.
    """
    for step in CANDIDATES:
        lower = range(min(WIDTHS), max(WIDTHS), step)
        rise = sum(seconds[width + step] - seconds[width] for width in lower)
        smooth = sum(seconds[width + step] - seconds[width + 1] for width in lower)
        # half-way between two multiples of the true step is dearer than this one's half-way, which is a multiple itself
        half = sum(seconds[width + step // 2] for width in lower if width + step // 2 in seconds)
        whole = sum(seconds[width + step] for width in lower if width + step // 2 in seconds)
        if rise > 0 and smooth <= _SMOOTH * rise and half >= (1 - _SLACK) * whole:
            return step
    return 1


#: Kind of layer -> a call that makes `out` channels of as many, on this device.
Probe = Callable[[int, Place], Callable[[], Any]]


def _convolution(kernel: int, *, depthwise: bool = False) -> Probe:
    def probe(width: int, place: Place) -> Callable[[], Any]:
        dtype, device = getattr(torch, place.dtype), torch.device(place.device)
        x = torch.rand(1, width, 28, 28, device=device).to(dtype).contiguous(memory_format=place.format)
        weight = torch.rand(width, 1 if depthwise else width, kernel, kernel, device=device).to(dtype)
        weight = weight.contiguous(memory_format=place.format)
        padding, groups = kernel // 2, width if depthwise else 1
        return lambda: torch.nn.functional.conv2d(x, weight, padding=padding, groups=groups)

    return probe


def _linear(width: int, place: Place) -> Callable[[], Any]:
    dtype, device = getattr(torch, place.dtype), torch.device(place.device)
    x = torch.rand(256, 8 * width, device=device).to(dtype)
    weight = torch.rand(8 * width, 8 * width, device=device).to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


#: Kinds of layers whose steps are looked for.
PROBES: Mapping[str, Probe] = {
    "convolution": _convolution(3),
    "pointwise convolution": _convolution(1),
    "depth-wise convolution": _convolution(3, depthwise=True),
    "linear": _linear,
}


def steps_of(
    table: Table, kinds: Sequence[str] | None = None, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, tuple[int, dict[int, float]]]:
    """The channel step of each kind of layer, and the seconds that it was read off, by width."""
    found = {}
    kinds = list(PROBES) if kinds is None else kinds
    for number, kind in enumerate(kinds):
        calls = {f"probe {kind} {width}": (kind, width) for width in WIDTHS}
        # several passes over all widths: a machine that is slow for a while is slow for all of them
        times = table.least({key: _probe(*which, table.place) for key, which in calls.items()}, _PASSES)
        seconds = {width: times[key] for key, (_, width) in calls.items()}
        found[kind] = (find_step(seconds), seconds)
        table.save()  # a kind at a time: whoever stops it has those that are done
        if progress is not None:
            progress("measure", number + 1, len(kinds))
    return found


def _probe(kind: str, width: int, place: Place) -> Callable[[], Callable[[], Any]]:
    return lambda: PROBES[kind](width, place)


def channel_step(table: Table) -> int:
    """The step in which plans cut on this device: that of its convolutions, or 8 where they have none."""
    step, _ = steps_of(table, ["convolution"])["convolution"]
    return max(step, DEFAULT)
