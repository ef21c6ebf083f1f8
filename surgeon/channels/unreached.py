"""Layers that the example inputs don't reach, and the channels that other data may bring to them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from surgeon.channels.structure import Ints, Structure
from surgeon.rules import Marked
from surgeon.tracing import Trace, named_modules, named_parameters


def unreached(trace: Trace) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own, none of which the recording holds."""
    known = {id(parameter) for name, parameter in named_parameters(trace.model) if name in trace.tensors}
    return [
        (name, module)
        for name, module in named_modules(trace.model)
        if _has_its_own(module) and not any(id(parameter) in known for parameter in module.parameters())
    ]


def _has_its_own(module: nn.Module) -> bool:
    held = module._parameters.values()
    return any(parameter is not None for parameter in held) or hasattr(module, "parametrizations")


def beside_unreached(structure: Structure) -> Iterator[tuple[str, Ints]]:
    """Each layer that the data may lead to elsewhere, with the channels of every value that is as wide as it.

    What it reads or makes then is as wide as its tensors are, and those stay whole.
    """
    trace = structure.labels.trace
    if not trace.unexplored:
        return
    for name, module in unreached(trace):
        widths = _widths(module)
        marks = structure.labels.marks.values()
        found = [channels for mark in marks for channels in _as_wide(structure, mark, widths)]
        if found:
            numbers = np.unique(np.concatenate(found))
            yield name, numbers[numbers >= 0]


def _widths(module: nn.Module) -> set[int]:
    """How many channels the layer may read or make."""
    groups = int(getattr(module, "groups", 1))
    return {size * times for own in module.parameters() for size in own.shape[:2] for times in (1, groups)} - {1}


def _as_wide(structure: Structure, mark: Marked, widths: set[int]) -> Iterator[Ints]:
    for plane in mark.planes:
        if not plane.example and any(mark.span[axis] in widths for axis in plane.axes):
            yield np.unique(structure.of(plane.labels))
