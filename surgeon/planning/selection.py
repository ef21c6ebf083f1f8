"""Which layers the user named: modules, qualified names, or globs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import fx, nn

from surgeon.channels import ChannelGraph, layer_of
from surgeon.channels.structure import Ints
from surgeon.errors import SelectionError
from surgeon.tracing import named_modules, named_tensors


def select_layers(model: nn.Module, wanted: Iterable[Any], option: str = "ignored_layers") -> set[str]:
    """Qualified names of the modules that `option` chooses and of everything inside them.

    Raises
    ------
    SelectionError
        If a name or glob matches nothing, or a module isn't part of the model.
    """
    wanted = _listed(wanted)
    odd = [item for item in wanted if not isinstance(item, str | nn.Module)]
    if odd:
        raise SelectionError(f"{option} holds {odd[0]!r}; expected modules, names or globs")
    names = {name: module for name, module in named_modules(model) if name}
    chosen: set[str] = set()
    for item in wanted:
        found = {name for name, module in names.items() if _matches(item, name, module)}
        if not found:
            raise SelectionError(_nothing(item, list(names), option))
        chosen |= {name for name in names for top in found if name == top or name.startswith(f"{top}.")}
    return chosen


def names_of_layers(model: nn.Module, wanted: Iterable[nn.Module | str] | None) -> list[nn.Module | str]:
    """The same layers by name: graphs, and the models between steps, have modules of their own."""
    names = {part: name for name, part in named_modules(model)}
    return [names.get(layer, layer) if isinstance(layer, nn.Module) else layer for layer in _listed(wanted)]


def _listed(wanted: Any) -> list[Any]:
    """One layer stands for a list of it; None for none."""
    return [wanted] if isinstance(wanted, str | nn.Module) else list(wanted or ())


def _matches(item: nn.Module | str, name: str, module: nn.Module) -> bool:
    return module is item if isinstance(item, nn.Module) else fnmatchcase(name, item)


def _nothing(item: nn.Module | str, names: list[str], option: str) -> str:
    if isinstance(item, nn.Module):
        return f"{option} holds a {type(item).__name__} that is no part of this model; pass the model's own modules"
    close = difflib.get_close_matches(item, names, 3)
    hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
    return f"{option}: {item!r} matches no layer of the model{hint}"


def channels_made_by(graph: ChannelGraph, layers: set[str]) -> Ints:
    """Numbers of the channels that these layers make."""
    structure = graph.structure
    space = structure.labels.space
    shared = _filters_of_others(graph.trace.model, layers)
    found = [
        structure.channel[start : start + size]
        for place, start, size in zip(space.places, space.starts, space.sizes, strict=True)
        if structure.produced[start] and (layer_of(place[0]) in layers or place in shared)
    ]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def _filters_of_others(model: nn.Module, layers: set[str]) -> set[tuple[str, int]]:
    """Where these layers make channels by tensors that go by another layer's name: (tensor, axis)."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    found = set()
    for layer, module in named_modules(model):
        across = getattr(module, "transposed", False) or isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for tensor in module._parameters.values() if layer in layers else ():
            if tensor is not None and layer_of(names[id(tensor)]) not in layers:
                found.add((names[id(tensor)], int(across and tensor.ndim > 1)))
    return found


def channels_in(graph: ChannelGraph, units: set[str]) -> Ints:
    """Numbers of the channels of these modules' tensors, and of all that the calls inside them take or give."""
    structure = graph.structure
    labels, space = structure.labels, structure.labels.space
    own = [
        structure.channel[start : start + size]
        for (tensor, _), start, size in zip(space.places, space.starts, space.sizes, strict=True)
        if layer_of(tensor) in units
    ]
    met = [
        structure.of(plane.labels)
        for node in _touched(graph.trace.graph, units)
        if node in labels.marks
        for plane in labels.marks[node].planes
    ]
    found = np.unique(np.concatenate([*own, *met, np.zeros(0, dtype=np.int64)]))
    return found[found >= 0]


def _touched(graph: fx.Graph, units: set[str]) -> set[fx.Node]:
    """The calls inside these modules, and what they take."""
    inside = [node for node in graph.nodes if "site" in node.meta and node.meta["site"].path in units]
    return {node for call in inside for node in (call, *call.all_input_nodes)}
