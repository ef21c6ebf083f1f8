"""Widths that the user's own modules hold in attributes (``self.dim``): found where the forward fails without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.trial.arrivals import Attributes
from surgeon.trial.blame import Misfit


def held_widths(graph: ChannelGraph, misfit: Misfit, kept: Flags) -> list[Attributes]:
    """Single attributes of the modules around the misfit that equal a dense width there, with the small one instead.

    Which of them the forward means is for trials to say: the one that gets it past this place.
    """
    pairs = dict(_widths(graph, misfit, kept))
    site = misfit.node.meta.get("site")
    if site is None or not pairs:
        return []
    parts = site.path.split(".") if site.path else []
    paths = [".".join(parts[:depth]) for depth in range(len(parts), -1, -1)]
    modules = [(path, graph.trace.model.get_submodule(path)) for path in paths]
    return [{(path, name): value} for path, module in modules for name, value in _changes(module, pairs)]


def _widths(graph: ChannelGraph, misfit: Misfit, kept: Flags) -> Iterator[tuple[int, int]]:
    """Dense and small number of channels of every plane that meets at the misfit."""
    flags = np.append(kept, True)
    for node in (misfit.node, *misfit.node.all_input_nodes):
        mark = graph.structure.labels.marks.get(node)
        for plane in mark.planes if mark is not None else ():
            channels = np.unique(graph.structure.of(plane.labels))
            small = int(flags[channels].sum())
            if small != len(channels):
                yield len(channels), small


def _changes(module: nn.Module, pairs: dict[int, int]) -> Iterator[tuple[str, Any]]:
    if type(module).__module__.startswith("torch.nn"):
        return  # torch's own layers have their followers
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, int) and value in pairs:
            yield name, pairs[value]
        elif isinstance(value, tuple | list) and any(type(v) is int and v in pairs for v in value):
            yield name, type(value)(pairs.get(v, v) if type(v) is int else v for v in value)
