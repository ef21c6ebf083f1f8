"""Norms without weights: their width attributes follow what arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags

#: New size of the channel axis that arrives at a layer, by its name.
Arrivals = Mapping[str, int]


def _features(module: Any, size: int) -> None:
    module.num_features = size


def _channels(module: Any, size: int) -> None:
    if module.num_groups == module.num_channels:
        module.num_groups = size  # a group for every channel
    module.num_channels = size


def _shape(module: Any, size: int) -> None:
    module.normalized_shape = (size,)


#: Of each kind of norm the axis that it counts and the attribute that says how many.
_NORMS: dict[type[nn.Module], tuple[int, Callable[[Any, int], None]]] = {
    _NormBase: (1, _features),
    nn.GroupNorm: (1, _channels),
    nn.LayerNorm: (-1, _shape),
}


def arrivals(graph: ChannelGraph, kept: Flags) -> dict[str, int]:
    """What arrives at each norm that has no tensor of its own when these channels stay (bool per channel)."""
    bare = {
        name: m for name, m in graph.trace.model.named_modules() if _kind(m) and not [*m.parameters(), *m.buffers()]
    }
    first: dict[str, fx.Node] = {}
    for node in graph.trace.calls:
        first.setdefault(node.meta["site"].path, node)
    sizes = {name: _arriving(graph, kept, first[name], _kind(m)) for name, m in bare.items() if name in first}
    return {name: size for name, size in sizes.items() if size is not None}


def _kind(module: nn.Module) -> tuple[int, Callable[[Any, int], None]] | None:
    return next((entry for kind, entry in _NORMS.items() if isinstance(module, kind)), None)


def _arriving(graph: ChannelGraph, kept: Flags, node: fx.Node, kind: Any) -> int | None:
    mark = graph.structure.labels.marks.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    for plane in mark.planes if mark is not None else ():
        axis = kind[0] % len(mark.shape) if mark is not None else 0
        if plane.axes == {axis}:
            return int(np.append(kept, True)[graph.structure.of(plane.labels)].sum())
    return None


def follow_arrivals(model: nn.Module, found: Arrivals) -> None:
    """Set the width attributes of the norms of the cut model."""
    for name, size in found.items():
        module = model.get_submodule(name)
        kind = _kind(module)
        if kind is not None:
            kind[1](module, size)
