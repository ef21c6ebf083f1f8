"""Steps in which groups of different widths can go while sums of their widths stay equal.

A head of 7 pairs that turn with the position and 2 channels that don't is as wide as one of 16 channels beside it: two
of these go with a pair, one with each of the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from surgeon.channels.structure import Ints


@dataclass(frozen=True)
class Even:
    """Parts that must keep equally many places, since one number of the program says how many each has.

    Attributes
    ----------
    parts:
        Of each part the groups that it holds, by name, with the places that it has of each of their channels.
    """

    parts: tuple[frozenset[tuple[str, int]], ...]

    def __iter__(self) -> Iterator[str]:
        """The groups' names."""
        return iter(dict.fromkeys(name for part in self.parts for name, _ in sorted(part)))


#: Of each group (by a number) how many of its channels.
Amounts = Mapping[int, int]
_Terms = dict[int, Fraction]


def even_path(rows: Iterable[Amounts], sizes: Sequence[int]) -> Ints:
    """Channels of each group that are gone after each step, so that every row, times these, is 0.

    One row per step (the first: nothing is gone), one column per group (`sizes`: of all of them); each group keeps a
    channel at least, and they go about as fast as each other. Only the first row where no step can be.
    """
    whole = np.array(sizes, dtype=np.int64)
    steps = [_as_row(step, len(whole)) for step in _smallest(rows, range(len(whole)))]
    path = [np.zeros(len(whole), dtype=np.int64)]
    while True:
        ways = [(float(((path[-1] + step) / whole)[step > 0].max()), path[-1] + step) for step in steps]
        possible = [(share, gone) for share, gone in ways if (gone < whole).all()]
        if not possible:
            return np.stack(path)
        path.append(min(possible, key=lambda way: way[0])[1])


def _as_row(step: Amounts, width: int) -> Ints:
    row = np.zeros(width, dtype=np.int64)
    row[list(step)] = list(step.values())
    return row


def _smallest(rows: Iterable[Amounts], groups: Collection[int]) -> Iterator[Amounts]:
    """By elimination the least step of each group on whose number others' depend, and that depends on no other's."""
    solved = _solved([{group: Fraction(n) for group, n in row.items() if n} for row in rows])
    if solved is None:
        return
    for free in groups:
        if free not in solved:
            terms = {free: Fraction(1)} | {group: found[free] for group, found in solved.items() if free in found}
            whole = math.lcm(*(number.denominator for number in terms.values()))
            yield {group: int(number * whole) for group, number in terms.items()}


def _solved(rows: Sequence[_Terms]) -> dict[int, _Terms] | None:
    """Groups whose numbers follow from others', with the factor of each of these, none below 0; None if not so."""
    solved: dict[int, _Terms] = {}
    while rows:
        waiting = []
        for row in rows:
            terms = _inserted(row, solved)
            found = _alone(terms)
            if found is None and terms:
                waiting.append(terms)
            for group, others in (found or {}).items():
                solved = {known: _inserted(value, {group: others}) for known, value in solved.items()}
                solved[group] = others
        if len(waiting) == len(rows):
            return None
        rows = waiting
    return solved


def _inserted(terms: _Terms, solved: Mapping[int, _Terms]) -> _Terms:
    """The same sum with others' numbers in place of those that follow from them."""
    found: _Terms = {}
    for group, factor in terms.items():
        for other, part in solved.get(group, {group: Fraction(1)}).items():
            found[other] = found.get(other, Fraction(0)) + factor * part
    return {group: factor for group, factor in found.items() if factor}


def _alone(terms: _Terms) -> dict[int, _Terms] | None:
    """What a sum that is 0 says of the only group on one side of it; of one side alone, that all of them are 0."""
    sides = [[g for g, factor in terms.items() if (factor > 0) is side] for side in (True, False)]
    if not all(sides):
        return {group: {} for group in terms} or None
    alone = next((side[0] for side in sides if len(side) == 1), None)
    if alone is None:
        return None
    return {alone: {group: -factor / terms[alone] for group, factor in terms.items() if group != alone}}
