"""The values of the label pass: planes instead of numbers, and the ledger in which rules write what they find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

#: The label of a place that belongs to no channel (the input's channels, padding): whatever meets it stays.
FIXED = 0


# Of the two classes that follow, thousands are made: a frozen dataclass's own __init__ sets field by field, at four
# times the cost. Neither compares by value: tensors have no single truth value.


@dataclass(frozen=True, eq=False, init=False)
class Plane:
    """Labels along some axes of a value.

    Attributes
    ----------
    labels:
        int64, as many dimensions as the value; of full size along `axes`, of size 1 elsewhere.
    axes:
        Where the label may vary. Kept apart from the sizes: a group cut down to one channel still has its axis.
    example:
        True for the plane that says which example of the batch a place belongs to.
    """

    labels: Tensor
    axes: frozenset[int]
    example: bool = False

    def __init__(self, labels: Tensor, axes: frozenset[int], example: bool = False) -> None:
        self.__dict__.update(labels=labels, axes=axes, example=example)

    @property
    def key(self) -> tuple[bool, frozenset[int]]:
        """Planes with equal keys describe the same axes in the same sense."""
        return (self.example, self.axes)


@dataclass(frozen=True, eq=False, init=False)
class Marked:
    """What the label pass knows of one tensor.

    Attributes
    ----------
    shape:
        Its shape in this run.
    span:
        Its shape in the dense run; whether an axis is broadcast is read off here, since a cut may leave one channel.
    planes:
        Its labels. A tensor without planes belongs to no channel.
    free:
        Made by the forward itself (``zeros``): takes the size it is asked for, so it holds nothing in place.
    constant:
        Depends on parameters and constants alone.
    value:
        The numbers, for index tensors whose values were recorded.
    stretched:
        Axes along which one place was repeated (``expand``) to the size that was asked for: still broadcast, in `span`.
    """

    shape: tuple[int, ...]
    span: tuple[int, ...]
    planes: tuple[Plane, ...] = ()
    free: bool = False
    constant: bool = False
    value: Tensor | None = None
    stretched: frozenset[int] = frozenset()

    def __init__(
        self,
        shape: tuple[int, ...],
        span: tuple[int, ...],
        planes: tuple[Plane, ...] = (),
        *,
        free: bool = False,
        constant: bool = False,
        value: Tensor | None = None,
        stretched: frozenset[int] = frozenset(),
    ) -> None:
        self.__dict__.update(
            shape=shape, span=span, planes=planes, free=free, constant=constant, value=value, stretched=stretched
        )

    def covers(self, axis: int) -> bool:
        """Whether some plane labels `axis`."""
        return any(axis in plane.axes for plane in self.planes)


_Mark = TypeVar("_Mark", Plane, Marked)


def replace(mark: _Mark, **changes: Any) -> _Mark:
    """``dataclasses.replace``, which would take a fifth of the label pass: the new mark's fields are set at once."""
    made = object.__new__(type(mark))
    made.__dict__.update(mark.__dict__, **changes)
    return made


@dataclass(frozen=True)
class Pinned:
    """Labels that may not be cut, and why."""

    labels: Tensor
    reason: str
    node: fx.Node


@dataclass(frozen=True)
class Anchor:
    """Labels that belong to a fixed coordinate (a group of a convolution, a head): each must keep its own."""

    labels: Tensor
    coordinates: Tensor
    node: fx.Node
    kind: str


@dataclass(frozen=True)
class Tie:
    """Parts of one axis that must keep equally many places; ``parts[i]`` holds the labels of part i."""

    parts: tuple[Tensor, ...]
    node: fx.Node


@dataclass(frozen=True)
class Summed:
    """An operand of `node` that is summed over the axes of `plane`: silencing a channel zeroes it here."""

    node: fx.Node
    operand: int
    plane: Plane
    constant: bool


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one call: `macs`, times the kept share of each factor's labels."""

    node: fx.Node
    macs: int
    factors: tuple[Tensor, ...]


#: Labels that are the same channels, place by place, and the call that says so.
Couple = tuple[Tensor, Tensor, fx.Node]


@dataclass
class Ledger:
    """Everything that the rules report while the graph runs on labels."""

    couples: list[Couple] = field(default_factory=list)
    pins: list[Pinned] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    summed: list[Summed] = field(default_factory=list)
    statistics: dict[fx.Node, list[Plane]] = field(default_factory=dict)
    produced: list[tuple[Tensor, bool]] = field(default_factory=list)
    consumed: list[Tensor] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    slices: dict[tuple[fx.Node, int], list[tuple[int, int, Tensor, fx.Node]]] = field(default_factory=dict)
    indexed: list[tuple[fx.Node, Tensor]] = field(default_factory=list)
    node: fx.Node = None  # type: ignore[assignment]  # set by the label pass before each rule
    dense: fx.Node = None  # type: ignore[assignment]  # the same call in the dense recording

    number: Callable[[str, int, int], Tensor] = None  # type: ignore[assignment]  # numbers new labels; set likewise
    made: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """How much has been noted of each kind."""
        return {name: len(found) for name, found in vars(self).items() if isinstance(found, list | dict)}

    def forget(self, since: dict[str, int]) -> None:
        """Drop what was noted after these counts were taken; labels that were numbered meanwhile belong to nobody."""
        for name, count in since.items():
            found = getattr(self, name)
            for key in list(found)[count:] if isinstance(found, dict) else ():
                del found[key]
            if isinstance(found, list):
                del found[count:]

    def fresh(self, size: int) -> Tensor:
        """New labels for `size` places that the forward makes itself, in the size that it needs."""
        name = f"_made_in_{self.dense.name}"
        self.made[name] += 1
        return self.number(name, self.made[name], size)

    def couple(self, one: Plane, other: Plane) -> None:
        """The labels of both planes are the same channels, place by place."""
        if not one.example:
            self.couples.append((one.labels, other.labels, self.node))

    def pin(self, planes: Iterable[Plane], reason: str) -> None:
        """No channel of these planes may go."""
        self.pins += [Pinned(p.labels, reason, self.node) for p in planes if not p.example]

    def anchor(self, plane: Plane, axes: Iterable[int], kind: str) -> None:
        """Each label stays at its coordinates along `axes`."""
        axes = sorted(axes)
        if plane.example or not axes:
            return
        coordinates = torch.zeros([1] * plane.labels.ndim, dtype=torch.int64)
        for axis in axes:
            size = plane.labels.shape[axis]
            steps = torch.arange(size).view([size if a == axis else 1 for a in range(plane.labels.ndim)])
            coordinates = coordinates * size + steps
        shape = torch.Size(max(a, b) for a, b in zip(plane.labels.shape, coordinates.shape, strict=True))
        labels, places = plane.labels.expand(shape), coordinates.expand(shape)
        self.anchors.append(Anchor(labels, places, self.node, kind))

    def keep_part(self, part: Tensor, number: int = 0) -> None:
        """These labels, and no others of their axis, are taken by the running call as part `number`."""
        self.anchors.append(Anchor(part, torch.full_like(part, number), self.node, "part"))

    def number_by(self, index: fx.Node, labels: Tensor) -> None:
        """The numbers in `index`, a tensor of the model, are places on an axis with these labels."""
        self.indexed.append((index, labels))

    def tie(self, parts: Sequence[Tensor]) -> None:
        """Equally many places of each part must stay."""
        self.ties.append(Tie(tuple(parts), self.node))


def compact(labels: Tensor) -> tuple[Tensor, frozenset[int]]:
    """Shrink every axis along which `labels` doesn't vary to size 1; also give the axes that are left."""
    axes = []
    for axis, size in enumerate(labels.shape):
        if size <= 1:
            continue
        if labels.stride(axis) and (_differs(labels, axis) or bool((labels != labels.narrow(axis, 0, 1)).any())):
            axes.append(axis)
        else:
            labels = labels.narrow(axis, 0, 1)
    return labels, frozenset(axes)


def _differs(labels: Tensor, axis: int) -> bool:
    """Whether the labels of the first row along `axis` differ: where they do, the rest needn't be read."""
    if not labels.numel():
        return False
    row = labels.numpy()[tuple(slice(None) if a == axis else 0 for a in range(labels.ndim))]
    return bool(row[0] != row[1] or (row != row[0]).any())


def spread(plane: Plane, shape: Sequence[int]) -> Tensor:
    """The plane's labels at every place of a value of this shape (a view, nothing is copied).

    Of a value without places (no box was found) the labels are those that it would have with one: another input has.
    """
    return plane.labels.expand(*(size or 1 for size in shape))
