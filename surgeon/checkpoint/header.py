"""A file's header: everything but the numbers, checked field by field."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from surgeon.checkpoint.coding import Form, check_total, read_form
from surgeon.errors import CheckpointError, PlanError
from surgeon.files import check_name
from surgeon.jsontext import read_json
from surgeon.planning import Plan

__all__ = ["FORMAT", "KEY", "Header", "opened", "read_header", "read_metadata"]

#: Version of the file format that this module writes; it reads this one only.
FORMAT = 1

#: Entry of safetensors' metadata that holds the header.
KEY = "surgeon"
#: What Python takes to hold one tensor's entry, and what entries may take in any file.
_BYTES_EACH, _ALWAYS = 256, 2**24
_FIELDS = {"format": int, "class": str, "plan": dict, "aliases": dict, "frozen": list, "training": bool}


@dataclass(frozen=True)
class Header:
    """What a file says about itself, checked field by field.

    Attributes
    ----------
    class_name:
        Class of the model that was saved.
    plan:
        What was cut.
    origin:
        Where the dense model came from, such as ``{"torchvision": "vgg16_bn", "kwargs": {}}``; None if unknown.
    aliases:
        Second names of tied tensors, each with the name under which the tensor is stored.
    frozen:
        Parameters without gradient.
    training:
        Whether the model was in training mode.
    tensors:
        Shape and type of each tensor, such as ``((64, 3, 3, 3), "F32")``.
    graph:
        How the model itself is built, where it is a graph module.
    coded:
        How those tensors are stored that aren't as they are.
    """

    class_name: str
    plan: Plan
    origin: Mapping[str, Any] | None
    aliases: Mapping[str, str]
    frozen: tuple[str, ...]
    training: bool
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    graph: Mapping[str, Any] | None = None
    coded: Mapping[str, Form] = field(default_factory=dict)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check everything in a file but the numbers.

    Raises
    ------
    CheckpointError
        If the file is truncated, no surgeon file, of another version, or has a malformed field.
    OSError
        If it can't be read.
    """
    with opened(path) as file:
        size = Path(path).stat().st_size
        fields = read_metadata(path, file, KEY, size)
        tensors = _tensors(path, file, size)
    return _header(path, fields, tensors, size)


def read_metadata(path: str | os.PathLike[str], file: Any, key: str, size: int) -> Any:
    """The JSON value that surgeon keeps under `key` in a safetensors file of `size` bytes.

    Raises
    ------
    CheckpointError
        If there is none, or it is no JSON that :func:`~surgeon.jsontext.read_json` reads.
    """
    metadata = file.metadata() or {}
    if key not in metadata:
        raise CheckpointError(f"{path}: safetensors, but not written by surgeon (no {key!r} entry in its header)")
    try:
        return read_json(metadata[key], 2 * size)
    except ValueError as problem:
        raise CheckpointError(f"{path}: the header is no JSON: {problem}") from problem


def _tensors(path: str | os.PathLike[str], file: Any, size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of the file."""
    names = list(file.keys())
    if _BYTES_EACH * len(names) > max(2 * size, _ALWAYS):
        raise CheckpointError(f"{path}: {len(names)} tensors in {size} bytes; a model has fewer, or larger ones")
    if strange := next((name for name in names if not name.isprintable()), None):
        raise CheckpointError(f"{path}: a tensor is called {strange[:80]!r}; names are of printable characters")
    found = {}
    for name in names:
        part = file.get_slice(name)
        found[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    return found


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The open safetensors file.

    Raises
    ------
    CheckpointError
        If it is damaged.
    OSError
        If it can't be read.
    """
    check_name(path)
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for a writer
        raise OSError(errno.EINVAL, "is a device or a pipe, no regular file", os.fspath(path))
    with Path(path).open("rb"):  # a missing or unreadable file is Python's own error
        pass
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as problem:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {problem}") from problem


def _header(
    path: str | os.PathLike[str], fields: Any, stored: dict[str, tuple[tuple[int, ...], str]], file_bytes: int
) -> Header:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: the header is {type(fields).__name__}, expected an object")
    for name, kind in _FIELDS.items():
        if type(fields.get(name)) is not kind:
            came = repr(fields.get(name))[:80]
            raise CheckpointError(f"{path}: header field {name!r} is {came}, expected {kind.__name__}")
    if fields["format"] != FORMAT:
        found = fields["format"]
        raise CheckpointError(f"{path}: format {found}, this surgeon reads {FORMAT}; use a matching version")
    if unknown := sorted(set(fields) - set(_FIELDS) - {"origin", "graph", "coded"}):
        raise CheckpointError(f"{path}: unknown header field {unknown[0]!r}")
    coded = _coded(path, _object(path, "coded", fields.get("coded")) or {}, stored, file_bytes)
    tensors = _meant(stored, coded)
    return Header(
        class_name=fields["class"],
        plan=_plan(path, fields["plan"]),
        origin=_object(path, "origin", fields.get("origin")),
        aliases=_aliases(path, fields["aliases"], tensors),
        frozen=_frozen(path, fields["frozen"], tensors),
        training=fields["training"],
        tensors=tensors,
        graph=_object(path, "graph", fields.get("graph")),
        coded=coded,
    )


def _coded(
    path: str | os.PathLike[str], fields: dict[str, Any], stored: Mapping[str, Any], file_bytes: int
) -> dict[str, Form]:
    try:
        forms = {name: read_form(name, form, stored) for name, form in fields.items()}
        check_total(forms, file_bytes)
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem
    if both := sorted(set(forms) & set(stored)):
        raise CheckpointError(f"{path}: tensor {both[0]!r} is stored twice")
    return forms


def _meant(
    stored: Mapping[str, tuple[tuple[int, ...], str]], coded: Mapping[str, Form]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of the tensors that a file means, whatever they are stored as."""
    parts = {part for name, form in coded.items() for part in form.parts(name)}
    plain = {name: kind for name, kind in stored.items() if name not in parts}
    return plain | {name: (form.shape, form.dtype) for name, form in coded.items()}


def _plan(path: str | os.PathLike[str], fields: dict[str, Any]) -> Plan:
    try:
        return Plan.read(fields)
    except PlanError as problem:
        raise CheckpointError(f"{path}: its plan is malformed: {problem}") from problem


def _aliases(path: str | os.PathLike[str], aliases: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    for name, source in aliases.items():
        if name in tensors or not isinstance(source, str) or source not in tensors:
            raise CheckpointError(
                f"{path}: {name!r} is said to share {str(source)[:80]!r}, which is no other stored tensor"
            )
    return aliases


def _frozen(path: str | os.PathLike[str], names: list[Any], tensors: Mapping[str, Any]) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str) or name not in tensors:
            raise CheckpointError(f"{path}: frozen parameter {str(name)[:80]!r} is not in the file")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path}: a frozen parameter is named twice")
    return tuple(names)


def _object(path: str | os.PathLike[str], name: str, value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{path}: header field {name!r} is {type(value).__name__}, expected an object")
    return value
