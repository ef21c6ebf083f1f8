"""How much a user asked for: one number for all, or one for each kind of layer, or for layers by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from surgeon.errors import BudgetError, SelectionError
from surgeon.finegrained.layers import KINDS, Weight

__all__ = ["Amount", "Value", "per_weight"]

#: The key of a number that holds for all.
_ALL = "*"


@dataclass(frozen=True)
class Value:
    """A number, and the key under which it was given."""

    key: str
    value: float


@dataclass(frozen=True)
class Amount:
    """What was asked: which option, and its numbers by key; the first key that fits a layer counts."""

    kind: str
    values: Mapping[str, float]

    @classmethod
    def of(cls, **options: float | Mapping[str, float] | None) -> Amount:
        """The one option that is given.

        Raises
        ------
        BudgetError
            If it is not exactly one, or a number is out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if len(given) != 1:
            told = " and ".join(given) if given else "nothing"
            raise BudgetError(f"{told} given: give exactly one of {', '.join(options)}")
        ((kind, value),) = given.items()
        values = dict(value) if isinstance(value, Mapping) else {_ALL: value}
        if not values:
            raise BudgetError(f"{kind} is an empty mapping: give numbers for 'conv', 'linear' or layers")
        for key, number in values.items():
            _check(kind, key, number)
        return cls(kind, values)

    def value(self, weight: Weight) -> Value | None:
        """What holds for a weight."""
        for key, number in self.values.items():
            if key in (_ALL, weight.kind) or any(fnmatchcase(place.layer, key) for place in weight.places):
                return Value(key, number)
        return None


def _check(kind: str, key: str, number: Any) -> None:
    told = kind if key == _ALL else f"{kind}[{key!r}]"
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
        raise BudgetError(f"{told}={number!r}: expected a number, 0 or more")
    if kind == "amount" and number >= 1:
        raise BudgetError(f"{told}={number!r}: expected a share below 1; at least one weight per layer stays anyhow")
    if kind == "k" and (number != int(number) or not 1 <= number <= 255):
        raise BudgetError(f"{told}={number!r}: expected a whole number of values, 1 to 255 (a byte, with zero)")


def per_weight(weights: Sequence[Weight], asked: Amount) -> list[Value | None]:
    """The value of every weight; None where no key fits.

    Raises
    ------
    SelectionError
        If a key fits no weight and is no kind.
    """
    found = [asked.value(weight) for weight in weights]
    names = [place.layer for weight in weights for place in weight.places]
    for key in asked.values:
        if key != _ALL and key not in KINDS and not any(fnmatchcase(name, key) for name in names):
            close = difflib.get_close_matches(key, [*KINDS, *names], 3)
            hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
            raise SelectionError(f"{asked.kind}: {key!r} is neither 'conv' nor 'linear' nor a layer with weights{hint}")
    return found
