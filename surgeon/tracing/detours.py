"""Ways that the example's data doesn't take.

Behind a decision of the data may lie layers that the example doesn't reach: the other branch of an ``if``, an expert
that no token goes to. What feeds them must keep fitting them, so further passes decide otherwise than the data did, at
all lines and at each of the first ones, as long as they reach more of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Decisions whose outcome steers Python, as a number or as a size.
STEERING = frozenset({"_local_scalar_dense", "is_nonzero", "nonzero", "index"})
#: Lines that are tried one by one.
_MOST_LINES = 8
#: Places of which all are picked; of more only those that the data picks are.
_MOST_PLACES = 1 << 20
#: Beyond this many times the decisions of the first pass, a loop doesn't end any more.
_MOST_TIMES, _MOST_MORE = 4, 256
#: How far beyond any number of the model's own a number is moved.
_FAR = 1e3


@dataclass(frozen=True)
class Detour:
    """How a pass decides otherwise than the data.

    Attributes
    ----------
    way:
        ``"more"``: every test is passed, every number large, every place picked; ``"less"``: the reverse;
        ``"other"``: whatever the data doesn't say.
    line:
        The only line of the program whose decisions are turned; None for all.
    """

    way: str
    line: str | None = None

    def turned(self, name: str, args: Sequence[Any], decision: Any) -> Any:
        """Another decision; the same one where there is no other."""
        if isinstance(decision, bool | int | float):
            return self._number(decision)
        if name == "nonzero":
            return self._places(args[0], decision)
        if name in ("index", "index_put"):
            return self._indices(args[1], decision)
        return decision

    def _number(self, value: float) -> Any:
        if isinstance(value, bool):
            return not value if self.way == "other" else self.way == "more"
        if isinstance(value, int):
            wanted = value == 0 if self.way == "other" else self.way == "more"
            return (value or 1) if wanted else 0
        return (-1 if self.way == "less" else 1) * (abs(value) + 1) * _FAR

    def _places(self, mask: Tensor, decision: Tensor) -> Tensor:
        """Rows of coordinates: every place, or none."""
        wanted = not len(decision) if self.way == "other" else self.way == "more"
        if len(decision) == (mask.numel() if wanted else 0) or (wanted and mask.numel() > _MOST_PLACES):
            return decision
        return torch.ones_like(mask, dtype=torch.bool).nonzero() if wanted else decision[:0]

    def _indices(self, indices: Sequence[Any], decision: list[Any]) -> list[Any]:
        """Indices in which each mask picks every place, or none."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                own = torch.stack(decision[len(found) : len(found) + index.ndim], 1)
                found += self._places(index, own).unbind(1)
            else:
                found.append(index)
        return decision if [_size(index) for index in found] == [_size(index) for index in decision] else found


def _size(index: Any) -> int:
    return index.numel() if isinstance(index, Tensor) else 0


def _has_many_ways(decision: Any) -> bool:
    """Whether turning a decision doesn't show all that may come of it: a number may be any."""
    return isinstance(decision, int | float) and not isinstance(decision, bool)


class Lines:
    """Lines at which the data steers the forward, and which of them some pass has turned.

    Attributes
    ----------
    open:
        Those that no finished pass has turned, in the order in which they were met.
    """

    def __init__(self) -> None:
        self.open: dict[str, None] = {}
        self._closed: set[str] = set()

    def meet(self, line: str) -> None:
        """The data decides at this line."""
        if line not in self._closed:
            self.open[line] = None

    def turn(self, lines: Iterable[str]) -> None:
        """A pass that turned these came to its end."""
        for line in lines:
            self._closed.add(line)
            self.open.pop(line, None)

    def detours(self) -> Iterable[Detour]:
        """What to try, one after the other."""
        if not self.open:
            return
        yield Detour("more")
        yield Detour("less")
        for line in list(self.open)[:_MOST_LINES]:
            yield Detour("other", line)


class Turning:
    """One pass on a detour.

    Parameters
    ----------
    decided:
        How many decisions the first pass took.
    """

    def __init__(self, detour: Detour, decided: int) -> None:
        self.lines: set[str] = set()
        self._detour, self._left = detour, _MOST_TIMES * decided + _MOST_MORE

    def turned(self, name: str, args: Sequence[Any], decision: Any, line: str) -> Any:
        """What this pass decides in place of `decision`.

        Raises
        ------
        RuntimeError
            If it came into a loop that the data would have ended.
        """
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("no end to the decisions")
        if self._detour.line not in (None, line):
            return decision
        other = self._detour.turned(name, args, decision)
        if other is not decision and not _has_many_ways(decision):
            self.lines.add(line)
        return other
