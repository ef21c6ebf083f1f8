"""The plan: which channels go. Frozen, readable JSON, and good for any fresh copy of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags
from surgeon.errors import PlanError
from surgeon.jsontext import dump_json, read_json
from surgeon.trial import Fit

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Channels to remove, by group.

    Attributes
    ----------
    model:
        Class name of the model that it was made for.
    removed:
        Group name -> removed channels, as positions in the group's leading layer.
    inputs:
        Description of the example inputs (:meth:`surgeon.Inputs.spec`), to trace a fresh copy with.
    budget, criterion, seed:
        What was asked.
    sizes:
        Group name -> how many channels it had, of the groups that are cut: a model with others is another model. Empty
        where that isn't known (plans written by hand).
    fitted:
        How it fits the model that it was made on; not part of the JSON.
    """

    model: str
    removed: Mapping[str, tuple[int, ...]]
    inputs: Any = None
    budget: Mapping[str, Any] = field(default_factory=dict)
    criterion: str = ""
    seed: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    fitted: Fit | None = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, graph: ChannelGraph) -> Plan:
        """The plan that removes nothing."""
        return cls(type(graph.trace.model).__name__, {}, graph.trace.inputs.spec())

    def to_json(self) -> str:
        """The plan as indented JSON, one line per group."""
        head = {
            "surgeon_plan": FORMAT, "model": self.model, "criterion": self.criterion, "seed": self.seed,
            "budget": dict(self.budget), "inputs": self.inputs, "sizes": dict(self.sizes),
        }  # fmt: skip
        text = dump_json(head, indent=2)[:-2]
        rows = [f"    {json.dumps(name)}: {json.dumps(list(gone))}" for name, gone in self.removed.items()]
        return text + ',\n  "removed": {' + ("\n" + ",\n".join(rows) + "\n  " if rows else "") + "}\n}"

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan back, from its text or a file's bytes (UTF-8).

        Raises
        ------
        PlanError
            If `text` is no plan: the message names the field.
        """
        try:
            data = read_json(text if isinstance(text, str) else text.decode())
        except ValueError as problem:
            raise PlanError(f"the plan can't be read, it is no JSON: {problem}") from problem
        return cls.read(data)

    @classmethod
    def read(cls, data: Any) -> Plan:
        """The plan that :meth:`to_json` wrote, once its text is read; every field is checked.

        Raises
        ------
        PlanError
            If it is no plan: the message names the field.
        """
        if not isinstance(data, dict) or data.get("surgeon_plan") != FORMAT:
            raise PlanError(f"not a surgeon plan of format {FORMAT} (the field surgeon_plan is missing or different)")
        values = {name: _typed(data, name, default) for name, default in _FIELDS.items()}
        return cls(
            removed=_removed(data.get("removed")), inputs=data.get("inputs"), sizes=_sizes(data.get("sizes")), **values
        )

    def kept(self, graph: ChannelGraph) -> Flags:
        """Flags of the channels that stay, on the graph of a copy of the model.

        Raises
        ------
        PlanError
            If a group or a channel isn't there, a group has another size, or would be empty.
        """
        flags = np.ones(graph.structure.count, dtype=bool)
        for name, gone in self.removed.items():
            group = graph.named.get(name)
            if group is None:
                known = ", ".join(list(graph.named)[:5])
                raise PlanError(
                    f"the plan cuts group {name!r}, which this model doesn't have (it has {known}, ...)"
                    f"{self._whose(graph)}"
                )
            if self.sizes.get(name, group.size) != group.size:
                raise PlanError(
                    f"the plan was made for {self.sizes[name]} channels in group {name!r}, this model has "
                    f"{group.size}{self._whose(graph)}"
                )
            where = dict(zip(group.channels, group.numbers, strict=True))
            for channel in gone:
                if channel not in where:
                    raise PlanError(f"the plan removes channel {channel} of group {name!r}, which has no such channel")
                flags[where[channel]] = False
            if not flags[group.numbers].any() and group.size == _lead_size(graph, group.name):
                raise PlanError(f"the plan removes all {group.size} channels of group {name!r}: at least one must stay")
        return flags

    def _whose(self, graph: ChannelGraph) -> str:
        """Whose plan it is, where that is another class of model."""
        own = type(graph.trace.model).__name__
        return "" if self.model in ("", own) else f"; the plan is one of a {self.model[:80]}, this is a {own}"


def _lead_size(graph: ChannelGraph, name: str) -> int:
    """How many channels the layer that leads this group makes in all its groups."""
    layer = name.partition("#")[0]
    return sum(g.size for n, g in graph.named.items() if n.partition("#")[0] == layer)


#: Plain fields of a plan; the default gives the type.
_FIELDS: dict[str, Any] = {"model": "", "criterion": "", "seed": 0, "budget": {}}


def _typed(data: Mapping[str, Any], name: str, default: Any) -> Any:
    value = data.get(name, default)
    if not isinstance(value, type(default)) or isinstance(value, bool):
        raise PlanError(f"the plan's field {name!r} is {type(value).__name__}, expected {type(default).__name__}")
    return value


def _removed(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise PlanError("the plan's field 'removed' is missing or no object of group names")
    result = {}
    for name, channels in value.items():
        good = isinstance(channels, list) and all(type(c) is int and c >= 0 for c in channels)
        if not good or len(set(channels)) != len(channels):
            raise PlanError(f"the plan's channels of group {name!r} must be distinct whole numbers, 0 or more")
        result[name] = tuple(sorted(channels))
    return result


def _sizes(value: Any) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(type(size) is int and size > 0 for size in value.values()):
        raise PlanError("the plan's field 'sizes' must be an object of whole numbers, 1 or more")
    return value


def sizes_by_group(graph: ChannelGraph, removed: Mapping[str, Any]) -> dict[str, int]:
    """How many channels the groups have that are cut."""
    return {name: graph.named[name].size for name in removed}


def removed_by_group(graph: ChannelGraph, kept: Flags) -> dict[str, tuple[int, ...]]:
    """The plan's own form of `kept`."""
    result = {}
    for group in graph.named.values():
        gone = tuple(sorted(c for c, n in zip(group.channels, group.numbers, strict=True) if not kept[n]))
        if gone:
            result[group.name] = gone
    return result
