"""Numbers as a person reads them, always with their unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

__all__ = ["FILTERS", "change", "count", "size", "time"]

_MINUS, _NONE = "\N{MINUS SIGN}", "\N{EN DASH}"


def count(value: float) -> str:
    """12,345."""
    return f"{value:,}"


def short(value: float) -> str:
    """4.09 G: three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 1000 or prefix == "G":
            return (
                f"{value:,.0f}" if not prefix else f"{value:.3g} {prefix}" if value < 1000 else f"{value:,.0f} {prefix}"
            )
        value /= 1000
    raise AssertionError


def size(value: float) -> str:
    """527.8 MB, in decimal units."""
    return f"{short(value)}B" if value >= 1000 else f"{value:.0f} B"


def change(after: float, before: float) -> str:
    """How much less, as "-41.2 %" with a real minus sign."""
    if not before:
        return _NONE
    percent = 100 * (after / before - 1)
    return f"{percent:+.1f} %".replace("-", _MINUS) if after != before else "±0 %"


def share(value: float, of: float) -> float:
    """Percent, for the length of a bar."""
    return round(100 * value / of, 2) if of else 0.0


def percent(value: float) -> str:
    """91.8 %."""
    return f"{100 * value:.1f} %"


def time(seconds: float) -> str:
    """1.25 ms: three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1 or unit == "µs":
            return f"{_digits(seconds * factor)} {unit}"
    raise AssertionError


def _digits(value: float) -> str:
    places = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 2
    return f"{value:,.{min(places, 3)}f}"


def error(value: float | None) -> str:
    """4.9e-15."""
    return _NONE if value is None else f"{value:.1e}"


def number(value: float | None) -> str:
    """Four digits."""
    return _NONE if value is None else f"{value:.4g}"


def dotted(name: str) -> Markup:
    """A layer's name, which may go on in the next line behind each dot."""
    return escape(name).replace(".", Markup(".<wbr>"))


FILTERS: dict[str, Callable[..., Any]] = {
    "change": change, "count": count, "dotted": dotted, "error": error, "number": number, "percent": percent,
    "share": share, "short": short, "size": size, "time": time,
}  # fmt: skip
