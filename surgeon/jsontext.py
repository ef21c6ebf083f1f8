"""JSON from files of unknown origin, read strictly, and written so that it can be read again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

__all__ = ["dump_json", "read_json"]

#: How deep arrays and objects may stand in each other; what surgeon writes stays far below.
_DEEPEST = 64
#: Digits of a whole number; reading one takes time that grows with their square.
_LONGEST_NUMBER = 64
#: A Python object for each comma and bracket takes up to so many bytes.
_BYTES_EACH = 64
#: What any text may come to in memory, however short its file is.
_ALWAYS = 2**24
#: Control characters steer terminals; halves of surrogate pairs can't be printed at all.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
#: How numbers that aren't finite are told, where they must come back: ``{"float": "nan"}``.
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def read_json(text: str, room: int = 0, *, exact: bool = False) -> Any:
    """The value of a JSON text, with no surprise in it.

    Parameters
    ----------
    text:
        RFC 8259: no NaN, no infinity; here also no name twice in an object, no whole number of more than
        64 digits, nothing nested deeper than 64, no control characters in strings (but tabs and line ends).
    room:
        Bytes that the value may take in memory; 16 MiB are always allowed.
    exact:
        Give back the numbers that aren't finite, as :func:`dump_json` tells them.

    Raises
    ------
    ValueError
        With what is wrong; a text that would take more memory is refused before it is read.
    """
    marks = sum(map(text.count, ",[{"))
    if _BYTES_EACH * marks > max(room, _ALWAYS):
        raise ValueError(f"{marks} values in {len(text)} characters are more than its file has room for")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_exact if exact else _object,
            parse_constant=_refuse,
            parse_int=_whole,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for part in _parts(value):
        if isinstance(part, str) and (found := _UNPRINTABLE.search(part)):
            raise ValueError(f"a string holds the control character {found[0]!r}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 10_000 else "?"
        raise ValueError(f"an object names {twice[:80]!r} twice")
    return result


def _exact(pairs: list[tuple[str, Any]]) -> Any:
    result = _object(pairs)
    named = result.get("float") if len(result) == 1 else None
    return _SPECIAL[named] if isinstance(named, str) and named in _SPECIAL else result


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"{digits[:_LONGEST_NUMBER]}... has too many digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:80]} is beyond all numbers")
    return value


def _parts(value: Any) -> Iterator[Any]:
    """Every value and every name in it; no recursion, since the depth is what is checked."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST + 1):
        yield from level
        level = [part for holder in level for part in _held(holder)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEEPEST}")


def _held(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def dump_json(value: Any, indent: int | None = None, *, exact: bool = False) -> str:
    """`value` as a text that :func:`read_json` reads: what is not finite is null, control characters are replaced.

    What JSON has no word for becomes its ``str``. With `exact`, what is not finite comes back as it was if it is read
    so, and what JSON has no word for is a TypeError.
    """
    return json.dumps(_readable(value, exact), indent=indent, allow_nan=False)


def _readable(value: Any, exact: bool) -> Any:
    if isinstance(value, Mapping):
        return {_clean(str(key)): _readable(item, exact) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item, exact) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _special(value) if exact else None
    if exact and not isinstance(value, str):
        raise TypeError(f"{value!r} is nothing that JSON can hold")
    return _clean(str(value))


def _special(value: float) -> dict[str, str]:
    return {"float": str(value)}


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
