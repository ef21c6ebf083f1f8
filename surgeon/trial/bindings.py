"""Numbers that the user's program holds and that follow a width (``self.dim``, ``self.head_dim``).

Which number means which width is found where a trial fails: one that equals a dense width there is bound to it, and
the trial that gets past the place says whether it was meant. A binding once found holds for all widths, and is
carried over to all calls of the same line, where each has a width of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import fx

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, Ints, flat
from surgeon.rules import Plane
from surgeon.tracing import operator_name
from surgeon.trial.targets import Attribute, Literal, Target, held_numbers


class Where(NamedTuple):
    """A width at a call: of which value there, which plane, which axis (None: all), counted how.

    `unit` says what is counted: places, different channels, or only the channels of the n-th group there; a negative
    number stands for so many places at the front. A `value` that is a name means a tensor of the module itself, and
    `plane` the axis.
    """

    value: int | str
    plane: int
    axis: int | None
    unit: str | int


@dataclass(frozen=True, eq=False)
class Binding:
    """A held number, or a sequence; each part is a constant (of any kind) or the channels whose kept number it is."""

    target: Target
    kind: type
    parts: tuple[Any, ...]

    def value(self, kept: Flags) -> Any:
        """What it must be when these channels stay (one bool per channel)."""
        flags = np.append(kept, True)
        numbers = [int(flags[part].sum()) if isinstance(part, np.ndarray) else part for part in self.parts]
        return numbers[0] if self.kind is int else self.kind(numbers)


def settings(bindings: Iterable[Binding], kept: Flags) -> dict[Target, Any]:
    """The numbers that the bound targets must have."""
    return {binding.target: binding.value(kept) for binding in bindings}


@dataclass(frozen=True, eq=False)
class Guess:
    """A held number that equals a width at a call: the module `up` levels above the innermost, and what it holds.

    It is the `rank`-th of the numbers that are held there; `given`: the call itself got this number.
    """

    up: int
    rank: int
    target: Target
    parts: tuple[Where | None, ...]
    value: Any
    given: bool

    @property
    def kind(self) -> Hashable:
        """What it is, the same at all calls of a line."""
        target = self.target
        held = (target.name, target.key) if isinstance(target, Attribute) else (self.rank, target.position)
        return self.up, held, self.parts


def guesses(graph: ChannelGraph, node: fx.Node, kept: Flags | None) -> list[Guess]:
    """All numbers around `node` that equal a width there that changes (None: any), the innermost module's first."""
    site = node.meta.get("site")
    if site is None:
        return []
    widths = list(_widths(graph, node))
    wholes = {where.value: where for where, _ in widths if where.unit == "places" and where.axis is None}
    by_size = _changing(widths, kept)
    given = set(_given(node.args))
    found = []
    for up, path in enumerate(_paths(site.path)):
        for rank, (target, value) in enumerate(held_numbers(graph.trace.model, path, _line(node))):
            readings = (*_one_each(wholes, value), *_readings(value, by_size))
            same = not given.isdisjoint([value] if isinstance(value, int) else value)
            found += [Guess(up, rank, target, parts, value, same) for parts in readings]
    return found


def _given(args: Any) -> Iterator[int]:
    """The whole numbers that a call got."""
    for value in args:
        if isinstance(value, list | tuple):
            yield from _given(value)
        elif type(value) is int:
            yield value


def together(found: Iterable[Guess]) -> tuple[Guess, ...]:
    """Of each number that the call itself got the first guess where it is from."""
    first: dict[Any, Guess] = {}
    for guess in found:
        if guess.given and isinstance(guess.value, int) and all(g.target != guess.target for g in first.values()):
            first.setdefault(guess.value, guess)
    return tuple(first.values())


def _paths(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts), -1, -1)]


def _readings(value: Any, by_size: dict[int, list[Where]]) -> Iterator[tuple[Where | None, ...]]:
    """The ways in which a number, or all numbers of a sequence at once, may be widths."""
    numbers: Sequence[Any] = [value] if isinstance(value, int) else value
    options = [by_size.get(n, []) if type(n) is int else [] for n in numbers]
    for choice in range(max(map(len, options), default=0)):
        yield tuple(ways[min(choice, len(ways) - 1)] if ways else None for ways in options)


def _one_each(wholes: Mapping[str | int, Where], value: Any) -> Iterator[tuple[Where | None, ...]]:
    """The sizes of the parts that a call gives, in their order; `wholes` are the values around it."""
    if not isinstance(value, int) and len(value) > 1 and all(number in wholes for number in range(len(value))):
        yield tuple(wholes[number] for number in range(len(value)))


def _changing(widths: Sequence[tuple[Where, Ints]], kept: Flags | None) -> dict[int, list[Where]]:
    """Widths around a call by their dense size; of those with the same dense and small size the first.

    No width is 0: where none of the counted places stays, they tell nothing of the places beside them, which do.
    """
    flags = np.append(kept, True) if kept is not None else None
    found: dict[int, dict[int | None, Where]] = {}
    for where, channels in widths:
        small = int(flags[channels].sum()) if flags is not None else None
        if small not in (0, len(channels)):
            found.setdefault(len(channels), {}).setdefault(small, where)
    return {size: list(ways.values()) for size, ways in found.items()}


def _widths(graph: ChannelGraph, node: fx.Node) -> Iterator[tuple[Where, Ints]]:
    """All widths at a call, each with the channels that it counts: of values, of a slice's bounds, of weights."""
    for number, source in enumerate(_values(node)):
        mark = graph.structure.labels.marks.get(source)
        for index, plane in enumerate(mark.planes if mark is not None else ()):
            for axis in (None, *(sorted(plane.axes) if len(plane.axes) > 1 else ())):
                channels = _along(graph, plane, axis)
                ways: dict[str | int, Ints] = {"places": channels, "channels": np.unique(channels)}
                ways |= dict(enumerate(_by_group(graph, channels)))
                yield from ((Where(number, index, axis, unit), counted) for unit, counted in ways.items())
    yield from _bounds(graph, node)
    path = node.meta["site"].path
    for (name, axis), channels in _own_widths(graph, path):
        yield Where(name.removeprefix(f"{path}."), axis, None, "places"), channels


def _bounds(graph: ChannelGraph, node: fx.Node) -> Iterator[tuple[Where, Ints]]:
    """Where a slice starts and where it stops, as numbers of places at the front of what is sliced."""
    source, axis, *bounds = node.args if operator_name(node) == "slice" and len(node.args) > 1 else (None, 0)
    mark = graph.structure.labels.marks.get(source) if isinstance(source, fx.Node) else None
    if mark is None or not isinstance(source, fx.Node):
        return
    size, number = source.meta["shape"][axis], _values(node).index(source)
    for index, plane in enumerate(mark.planes):
        for bound in bounds[:2] if plane.axes == {axis} else ():
            if isinstance(bound, int) and 0 < bound < size:
                yield Where(number, index, None, -bound), _along(graph, plane, None)[:bound]


def _own_widths(graph: ChannelGraph, path: str) -> Iterator[tuple[tuple[str, int], Ints]]:
    """The axes of the tensors that the module at `path` itself holds."""
    space, own = graph.structure.labels.space, graph.trace.model.get_submodule(path)
    for name in (*own._parameters, *own._buffers):
        full = f"{path}.{name}" if path else name
        for plane in space.planes.get(full, ()):
            place = full, max(plane.axes)
            yield place, graph.structure.along(*place)


def _values(node: fx.Node) -> list[fx.Node]:
    """The result of a call (or its several results) and its operands."""
    parts = [user for user in node.users if user.target is operator.getitem]
    return [*(parts or [node]), *node.all_input_nodes]


def _channels(graph: ChannelGraph, node: fx.Node, where: Where) -> Ints:
    """The channels whose number is this width; an empty array if there is none here."""
    nothing = np.zeros(0, dtype=np.int64)
    if isinstance(where.value, str):
        own = ".".join(filter(None, (node.meta["site"].path, where.value))), where.plane
        return graph.structure.along(*own) if own in graph.structure.labels.space.index else nothing
    values = _values(node)
    mark = graph.structure.labels.marks.get(values[where.value]) if where.value < len(values) else None
    if mark is None or where.plane >= len(mark.planes):
        return nothing
    return _counted(graph, _along(graph, mark.planes[where.plane], where.axis), where.unit)


def _along(graph: ChannelGraph, plane: Plane, axis: int | None) -> Ints:
    """The channel of each place of a plane, flat; of one `axis` alone where there are several."""
    labels = plane.labels
    if axis is not None:  # one row of several: they are equally long, or no number could hold it
        for other in plane.axes - {axis}:
            labels = labels.narrow(other, 0, 1)
    return graph.structure.channel[flat(labels)]


def _counted(graph: ChannelGraph, channels: Ints, unit: str | int) -> Ints:
    """Those of the places' channels that a width counts; `unit` as in :class:`Where`."""
    if unit == "places":
        return channels
    if unit == "channels":
        return np.unique(channels)
    if isinstance(unit, int) and unit < 0:
        return channels[:-unit]
    groups = _by_group(graph, channels)
    return groups[unit] if isinstance(unit, int) and unit < len(groups) else np.zeros(0, dtype=np.int64)


def _by_group(graph: ChannelGraph, channels: Ints) -> list[Ints]:
    """The channels of each group, where there is more than one kind."""
    unique = np.unique(channels)
    group = graph.group_of[unique]
    kinds = dict.fromkeys(group.tolist())
    return [unique[group == kind] for kind in kinds if kind >= 0] if len(kinds) > 1 else []


def _line(node: fx.Node) -> int | None:
    source = node.meta["site"].source
    return source.line if source is not None else None


def target_at(graph: ChannelGraph, node: fx.Node, guess: Guess) -> Target | None:
    """What `guess` is about at another call of the same line."""
    paths = _paths(node.meta["site"].path)
    if guess.up >= len(paths):
        return None
    if isinstance(guess.target, Attribute):
        return replace(guess.target, path=paths[guess.up])
    held = [target for target, _ in held_numbers(graph.trace.model, paths[guess.up], _line(node))]
    other = held[guess.rank] if guess.rank < len(held) else None  # a line of the user's may be many of a graph
    return other if isinstance(other, Literal) and other.position == guess.target.position else None


def bind(graph: ChannelGraph, node: fx.Node, guess: Guess) -> Binding | None:
    """`guess` at another call of the same line; None where the number is none of the widths there."""
    target = target_at(graph, node, guess)
    if target is None:
        return None
    held = dict(held_numbers(graph.trace.model, target.path, _line(node)))
    if target not in held:
        return None
    value = held[target]
    numbers = [value] if isinstance(value, int) else list(value)
    if len(numbers) != len(guess.parts):
        return None
    parts: list[Any] = list(numbers)
    for index, where in enumerate(guess.parts):
        if where is not None:
            parts[index] = _channels(graph, node, where)
            if len(parts[index]) != numbers[index]:
                return None
    return Binding(target, int if isinstance(value, int) else type(value), tuple(parts))


def calls_alike(graph: ChannelGraph, node: fx.Node) -> list[fx.Node]:
    """`node`, and all other calls of the user's line and of its operator."""
    own = line_and_operator(node)
    if own[0] is None:
        return [node]
    return [node, *(n for n in graph.trace.calls if n is not node and line_and_operator(n) == own)]


def line_and_operator(node: fx.Node) -> tuple[str | None, str]:
    """The user's line that makes a call, and its operator."""
    return _written(node), operator_name(node)


def _written(node: fx.Node) -> str | None:
    source = node.meta["site"].source
    return str(source) if source is not None else None


def bind_alike(graph: ChannelGraph, nodes: Sequence[fx.Node], guess: Guess) -> list[Binding]:
    """`guess` at all of these calls; a number is bound once."""
    found: dict[Target, Binding] = {}
    for node in nodes:
        binding = bind(graph, node, guess)
        if binding is not None:
            found.setdefault(binding.target, binding)
    return list(found.values())
