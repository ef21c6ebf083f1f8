"""The JSON files that runs keep: written whole, and trusted no more than any other file when they are read again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import reprlib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from surgeon.errors import CheckpointError
from surgeon.files import write_beside
from surgeon.jsontext import dump_json, read_json

__all__ = [
    "as_read",
    "blamed",
    "changed",
    "read_file",
    "read_lines",
    "read_text",
    "shaped",
    "write_file",
    "write_lines",
]

#: Bytes of a file, and of what it says in memory: above anything that a run writes.
_LARGEST, _ROOM = 2**28, 2**30


def write_file(path: str | os.PathLike[str], value: Any, indent: int | None = 1) -> None:
    """Write a value as JSON, whole or not at all; numbers come back as they are, also those that aren't finite.

    Raises
    ------
    OSError
        If it can't be written.
    TypeError
        If JSON has no word for a part of it.
    """
    text = dump_json(_plain(value), indent, exact=True)
    with write_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, whole or not at all; for others to read, so what is not finite is null.

    Raises
    ------
    OSError
        If it can't be written.
    """
    text = "".join(dump_json(row) + "\n" for row in rows)
    with write_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_read(value: Any) -> Any:
    """What comes back of a value that is written and read: tuples are lists, keys are text."""
    return read_json(dump_json(value, exact=True), _ROOM, exact=True)


def changed(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Names under which two runs were asked for different things."""
    return [name for name in dict.fromkeys([*asked, *saved]) if saved.get(name) != asked.get(name)]


def read_file(path: str | os.PathLike[str], kind: Any, advice: str) -> Any:
    """What :func:`write_file` wrote, as an instance of `kind`: a dataclass, or another type with all its parts.

    Parameters
    ----------
    kind:
        As :func:`shaped` takes it.
    advice:
        What the user may do where the file can't be used, such as ``"give another folder"``.

    Raises
    ------
    CheckpointError
        If the file is no JSON, too large, or something in it is of another type than it should be; the place is named.
    OSError
        If it can't be read.
    """
    text = read_text(path, advice)
    with blamed(path, advice):
        return shaped(kind, read_json(text, _ROOM, exact=True))


def read_lines(path: str | os.PathLike[str], kind: Any, advice: str) -> list[Any]:
    """The rows of a JSON-lines file, each as :func:`read_file` reads a whole one.

    Raises
    ------
    CheckpointError, OSError
        As :func:`read_file`.
    """
    rows = []
    for number, line in enumerate(read_text(path, advice).splitlines(), 1):
        with blamed(f"{path}:{number}", advice):
            rows.append(shaped(kind, read_json(line)))
    return rows


def read_text(path: str | os.PathLike[str], advice: str) -> str:
    """The text of a regular file in UTF-8, if it isn't larger than what runs write.

    Raises
    ------
    CheckpointError
        If it is something else.
    OSError
        If it can't be read.
    """
    place = Path(path)
    status = place.stat()
    if not place.is_file():
        raise CheckpointError(f"{path}: is no regular file; {advice}")
    if status.st_size > _LARGEST:
        raise CheckpointError(f"{path}: {status.st_size} bytes, expected at most {_LARGEST}; {advice}")
    with blamed(path, advice):
        return place.read_bytes().decode()


@contextlib.contextmanager
def blamed(where: str | os.PathLike[str], advice: str) -> Iterator[None]:
    """A ValueError in the body is the fault of what stands in a file.

    Raises
    ------
    CheckpointError
        In its place; it names the file, what is wrong and what to do.
    """
    try:
        yield
    except CheckpointError:
        raise
    except ValueError as problem:
        raise CheckpointError(f"{where}: damaged, or of another tool: {problem}; {advice}") from problem


# ---------------------------------------------------------------- types


def shaped(kind: Any, value: Any, place: str = "") -> Any:
    """The value as an instance of a type, checked down to its last part.

    Parameters
    ----------
    kind:
        ``Any``; a plain type of JSON's (an ``int`` is a ``float`` as well, a ``bool`` is neither); a dataclass, of
        exactly its fields; ``tuple``, ``list``, ``dict`` and ``Mapping`` with the types of their parts; a union.
    place:
        Where the value stands, for the message: ``steps[3].history``.

    Raises
    ------
    ValueError
        If a part is of another type.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _instance(kind, value, place)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, place)
    if origin is tuple:
        return _tuple(get_args(kind), value, place)
    if origin is list:
        return list(_tuple((*get_args(kind), ...), value, place))
    if origin in (dict, Mapping):
        _require(isinstance(value, dict), "an object", value, place)
        return {name: shaped(get_args(kind)[1], item, f"{place}[{reprlib.repr(name)}]") for name, item in value.items()}
    if origin is not None:
        _require(isinstance(value, origin), getattr(origin, "__name__", "another"), value, place)
        return value
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, _WORDS.get(kind, "null"), value, place)
    return value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object",
          list: "a list"}  # fmt: skip


def _instance(kind: Any, value: Any, place: str) -> Any:
    _require(isinstance(value, dict), "an object", value, place)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := next((name for name in value if name not in fields), None):
        raise ValueError(f"{place or 'the file'} has an unknown field {reprlib.repr(unknown)}")
    missing = [name for name, field in fields.items() if name not in value and _is_needed(field)]
    if missing:
        raise ValueError(f"{place or 'the file'} has no field {missing[0]!r}")
    return kind(**{name: shaped(hints[name], part, _within(place, name)) for name, part in value.items()})


def _is_needed(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    _require(isinstance(value, list), "a list", value, place)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    _require(len(value) == len(kinds), f"a list of {len(kinds)}", value, place)
    return tuple(shaped(kind, part, f"{place}[{n}]") for n, (kind, part) in enumerate(zip(kinds, value, strict=True)))


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        if type(value) is kind:
            return value
    return shaped(kinds[-1], value, place)


def _require(holds: bool, expected: str, value: Any, place: str) -> None:
    if not holds:
        raise ValueError(f"{place or 'the file'} is {reprlib.repr(value)}, expected {expected}")


def _within(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _plain(value: Any) -> Any:
    """Dataclasses, wherever they stand, as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
