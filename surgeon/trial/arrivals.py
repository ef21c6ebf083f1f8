"""Norms without weights: their width attributes follow what arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.tracing import named_modules
from surgeon.trial.targets import Attribute, Target

#: Of each kind of norm the axis that it counts and the attribute that says how many.
_NORMS: dict[type[nn.Module], tuple[int, str]] = {
    _NormBase: (1, "num_features"),
    nn.GroupNorm: (1, "num_channels"),
    nn.LayerNorm: (-1, "normalized_shape"),
}


def arrivals(graph: ChannelGraph, kept: Flags) -> dict[Target, Any]:
    """Width attributes of the norms that have no tensor of their own when these channels stay (bool per channel)."""
    first: dict[str, fx.Node] = {}
    for node in graph.trace.calls:
        first.setdefault(node.meta["site"].path, node)
    found: dict[Target, Any] = {}
    for name, module in named_modules(graph.trace.model):
        kind = _kind(module)
        if kind is None or name not in first or [*module.parameters(), *module.buffers()]:
            continue
        size = _arriving(graph, kept, first[name], kind[0])
        if size is not None:
            found[Attribute(name, kind[1])] = (size,) if kind[1] == "normalized_shape" else size
            if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
                found[Attribute(name, "num_groups")] = size  # a group for every channel
    return found


def _kind(module: nn.Module) -> tuple[int, str] | None:
    return next((entry for kind, entry in _NORMS.items() if isinstance(module, kind)), None)


def _arriving(graph: ChannelGraph, kept: Flags, node: fx.Node, counted: int) -> int | None:
    mark = graph.structure.labels.marks.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    for plane in mark.planes if mark is not None else ():
        if mark is not None and plane.axes == {counted % len(mark.shape)}:
            return int(np.append(kept, True)[graph.structure.of(plane.labels)].sum())
    return None
