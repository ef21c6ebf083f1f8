"""Amounts as users give them: read, and refused where they are malformed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from surgeon.errors import BudgetError

__all__ = ["check_filters", "check_ratio", "counted_amount", "plain_amounts", "seconds_of"]


def plain_amounts(amounts: Mapping[str, Any]) -> dict[str, Any]:
    """The amounts that were given, NumPy's numbers (a sweep is often an array of them) as Python's own."""
    return {name: _plain(amount) for name, amount in amounts.items() if amount is not None}


def _plain(amount: Any) -> Any:
    if isinstance(amount, list):
        return [_plain(each) for each in amount]
    if isinstance(amount, tuple):
        return tuple(map(_plain, amount))
    return amount.item() if isinstance(amount, np.generic) else amount


def check_filters(name: str, amount: Any) -> None:
    """Refuse what is no number of filters.

    Raises
    ------
    BudgetError
        If it is not a whole number of 1 at least.
    """
    if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise BudgetError(f"{name}={amount!r}: expected a positive whole number of convolution filters to remove")


def check_ratio(name: str, amount: Any) -> None:
    """Refuse what is no share of channels.

    Raises
    ------
    BudgetError
        If it is not above 0 and below 1.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1:
        raise BudgetError(f"{name}={amount!r}: expected the share of channels to remove, above 0 and below 1")


def counted_amount(name: str, amount: Any, dense: float) -> float:
    """An absolute number from ``0.5``, ``"50%"`` or an absolute number.

    Raises
    ------
    BudgetError
        If it is none of them.
    """
    text = f"{name}={amount!r}: expected a share up to 1 (0.5 or '50%'), or a whole number"
    if isinstance(amount, str):
        amount = _number(amount)
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < float("inf"):
        raise BudgetError(text)
    if isinstance(amount, float):
        if amount > 1:
            raise BudgetError(text)
        return int(dense * amount)
    return amount


def _number(text: str) -> float | int | None:
    """A share from ``"50%"`` or ``"0.5"``, a whole number from ``"1000"``; None from anything else."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    if text.endswith("%"):
        return value / 100
    return int(value) if value > 1 and value.is_integer() else value


def seconds_of(name: str, amount: Any, dense: float) -> float:
    """Seconds from a share (``0.6``, ``"60%"``) of the dense model's, or from ``"12ms"``, ``"0.5s"``, ``"800us"``.

    Raises
    ------
    BudgetError
        If it is neither.
    """
    text = str(amount).strip() if isinstance(amount, str | float) else ""
    unit = next((unit for unit in (*_UNITS, "%") if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * (_UNITS[unit] if unit in _UNITS else dense / _SHARES[unit])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (unit in _SHARES and value > dense):
        raise BudgetError(
            f"{name}={amount!r}: expected a share up to 1 of the dense model's time (0.6 or '60%'), or a time with its "
            "unit ('12ms', '0.5s')"
        )
    return value


#: Longest first: "ms" ends with "s", too.
_UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0}
_SHARES = {"%": 100.0, "": 1.0}
