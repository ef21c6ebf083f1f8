"""The channel graph as lanes beside the list of layers, as version control draws its branches.

Layers stand below each other in the order in which the forward calls them. A group is a lane from the first layer that
makes its channels to the last one that reads them; lanes that don't meet share a column. So nothing crosses a name, and
a network of 250 layers is as easy to read as one of ten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Drawing", "Lane", "Row", "lanes"]

_ROW, _MARGIN = 26, 10  # pixels
_LANE_WIDTHS, _WIDEST = (8, 14), 240  # least and most of a lane, and what all of them may take if they can
_HUES = (212, 24, 150, 280, 340, 190, 50, 255, 110, 0)  # next to each other they are easy to tell apart


@dataclass(frozen=True)
class Mark:
    """Where a lane meets a layer; role: produces, follows or consumes."""

    y: int
    role: str


@dataclass(frozen=True)
class Lane:
    """One group, drawn at `x` from `top` to `bottom` (pixels); `number` is its place in the report."""

    number: int
    name: str
    size: int
    kept: int
    x: int
    top: int
    bottom: int
    hue: int
    marks: tuple[Mark, ...]


@dataclass
class Row:
    """One layer, with the numbers of the groups that it makes, passes on and reads."""

    layer: str
    produces: list[int] = field(default_factory=list)
    follows: list[int] = field(default_factory=list)
    consumes: list[int] = field(default_factory=list)

    @property
    def groups(self) -> list[int]:
        """The numbers of all groups that the layer has to do with, each once."""
        return list(dict.fromkeys([*self.produces, *self.follows, *self.consumes]))


@dataclass(frozen=True)
class Drawing:
    """Lanes and rows; sizes in pixels."""

    width: int
    height: int
    row_height: int
    lanes: tuple[Lane, ...]
    rows: tuple[Row, ...]


_ROLES = {"produces": "producers", "follows": "followers", "consumes": "consumers"}


def lanes(groups: Sequence[Mapping[str, Any]], flow: Sequence[str]) -> Drawing:
    """Lay the groups of a report out beside its layers.

    Parameters
    ----------
    groups, flow:
        As :class:`surgeon.Report` has them.
    """
    rows = {layer: Row(layer) for layer in flow}
    for number, group in enumerate(groups):
        for role, key in _ROLES.items():
            for layer in group[key]:
                getattr(rows.setdefault(layer, Row(layer)), role).append(number)
    place = {layer: index for index, layer in enumerate(rows)}
    spans = [sorted(place[layer] for key in _ROLES.values() for layer in group[key]) for group in groups]
    columns = _columns(spans)
    count = max(columns, default=0) + 1
    step = min(max(_WIDEST // count, _LANE_WIDTHS[0]), _LANE_WIDTHS[1])
    places = [_MARGIN + step // 2 + step * column for column in columns]
    drawn = tuple(_lane(number, group, spans[number], places[number], place) for number, group in enumerate(groups))
    return Drawing(2 * _MARGIN + step * count, _ROW * len(rows), _ROW, drawn, tuple(rows.values()))


def _lane(number: int, group: Mapping[str, Any], span: list[int], x: int, place: Mapping[str, int]) -> Lane:
    marks = {_middle(place[layer]): role for role, key in reversed(_ROLES.items()) for layer in group[key]}
    return Lane(
        number, group["name"], group["size"], group["kept"], x,
        _middle(span[0]), _middle(span[-1]), _HUES[number % len(_HUES)],
        tuple(Mark(y, role) for y, role in sorted(marks.items())),
    )  # fmt: skip


def _middle(row: int) -> int:
    return _ROW * row + _ROW // 2


def _columns(spans: Sequence[Sequence[int]]) -> list[int]:
    """A column for each span, the first that is free from its beginning to its end."""
    taken: list[int] = []  # the last row that each column is used in
    columns = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda n: (spans[n][0], spans[n][-1])):
        first, last = spans[number][0], spans[number][-1]
        free = next((column for column, end in enumerate(taken) if end < first), len(taken))
        taken[free : free + 1] = [last]
        columns[number] = free
    return columns
