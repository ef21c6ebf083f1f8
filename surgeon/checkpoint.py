"""Checkpoint: one safetensors file holds the weights, the plan and where the model came from. Nothing is unpickled.

A file is data of unknown origin until every field is checked. Without a `factory` only a torchvision model name
of the file is followed, never an import path; the plan is applied to the freshly built architecture, and each
tensor must then fit by name, shape and type.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from surgeon.errors import CheckpointError, ModelError, PlanError
from surgeon.planning import Plan
from surgeon.rewriting import rewrite

__all__ = [
    "FORMAT",
    "Header",
    "build_origin",
    "check_origin",
    "load",
    "load_dense",
    "read_header",
    "save",
    "write_beside",
]

#: Version of the file format that this module writes; it reads this one only.
FORMAT = 1

_KEY = "surgeon"
_FIELDS = {"format": int, "class": str, "plan": dict, "aliases": dict, "frozen": list, "training": bool}

#: Keyword arguments of torchvision's builders that a file may set, with the check each value must pass.
_KWARGS: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": lambda value: type(value) is int and 1 <= value <= 1_000_000,
    "image_size": lambda value: type(value) is int and 1 <= value <= 4096,
    "aux_logits": lambda value: type(value) is bool,
    "aux_loss": lambda value: type(value) is bool,
    "init_weights": lambda value: type(value) is bool,
    "transform_input": lambda value: type(value) is bool,
    "weights_backbone": lambda value: value is None,
}

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_TYPES = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


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
        Shape and type of each stored tensor, such as ``((64, 3, 3, 3), "F32")``.
    """

    class_name: str
    plan: Plan
    origin: Mapping[str, Any] | None
    aliases: Mapping[str, str]
    frozen: tuple[str, ...]
    training: bool
    tensors: Mapping[str, tuple[tuple[int, ...], str]]


# ---------------------------------------------------------------- writing


def save(path: str | os.PathLike[str], model: nn.Module, plan: Plan, origin: Mapping[str, Any] | None = None) -> None:
    """Write a pruned model, its plan and its origin into one safetensors file.

    The file is written beside `path` and renamed, so an existing file is either replaced whole or untouched.

    Parameters
    ----------
    path:
        Where to write.
    model:
        The pruned model.
    plan:
        The plan that made it.
    origin:
        Where the dense model came from. ``{"torchvision": NAME, "kwargs": {...}}`` lets :func:`load` work without a
        factory; anything else is kept for the reader, never followed.

    Raises
    ------
    CheckpointError
        If the model holds state that is no tensor.
    OSError
        If the file can't be written (no such folder, no space, no permission).
    """
    tensors, aliases = _distinct(_state(model))
    header = {
        "format": FORMAT,
        "class": type(model).__name__,
        "plan": json.loads(plan.to_json()),
        "origin": None if origin is None else dict(origin),
        "aliases": aliases,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "training": model.training,
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_beside(path) as temporary:
        _write(stored, temporary, {_KEY: json.dumps(header, sort_keys=True)})


@contextlib.contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder; renamed to `path` if the body succeeds, removed if it doesn't.

    Raises
    ------
    OSError
        If the folder is missing or can't be written to, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder; give a file name", str(target))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(2, "no such folder; make it first", str(target.absolute().parent))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch(exist_ok=False)  # a plain open: the file gets the rights that the user's umask says
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:
        raise OSError(f"{path.parent}: the file can't be written: {problem}") from problem
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of {type(model).__name__} is {type(value).__name__}, and a surgeon file holds tensors only; "
                "keep it in a buffer, or save it yourself"
            )
    return dict(state)


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once: tied names become aliases, tensors that share only a part of their memory are copied."""
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if storage in storages else tensor
        storages.add(storage)
    return tensors, aliases


# ---------------------------------------------------------------- reading


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check everything in a file but the numbers.

    Raises
    ------
    CheckpointError
        If the file is truncated, no surgeon file, of another version, or has a malformed field.
    OSError
        If it can't be read.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        tensors = {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    if _KEY not in metadata:
        raise CheckpointError(f"{path}: safetensors, but not written by surgeon (no {_KEY!r} entry in its header)")
    try:
        fields = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: the header is no JSON: {problem}") from problem
    return _header(path, fields, tensors)


def load(
    path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None, *, example_inputs: Any = None
) -> nn.Module:
    """Open a file that :func:`save` wrote, and give back the pruned model on the CPU.

    Parameters
    ----------
    path:
        The file.
    factory:
        Makes the dense architecture, with any weights. Without it the file's torchvision name is followed.
    example_inputs:
        What the dense model's forward takes, where the plan can't describe it (arguments that are no tensors).

    Raises
    ------
    CheckpointError
        If the file is damaged or forged, or belongs to another model; the first difference is named.
    OSError
        If it can't be read.
    """
    header = read_header(path)
    small = _cut(path, header, _dense(path, header, factory), example_inputs)
    expected = _state(small)
    _compare(path, header, expected)
    with _opened(path) as file:
        stored = {name: file.get_tensor(name) for name in header.tensors}
    for name, source in header.aliases.items():
        stored[name] = stored[source]
    _fill(small, expected, stored)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name not in header.frozen)
    return small.train(header.training)


def load_dense(path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The dense architecture that a file was cut from, with fresh weights (to compare sizes and speed).

    Raises
    ------
    CheckpointError
        As :func:`load`.
    """
    return _dense(path, read_header(path), factory)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    with Path(path).open("rb"):  # a missing or unreadable file is Python's own error
        pass
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as problem:
        raise CheckpointError(f"{path}: damaged or no safetensors file: {problem}") from problem


def _header(path: str | os.PathLike[str], fields: Any, tensors: dict[str, tuple[tuple[int, ...], str]]) -> Header:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: the header is {type(fields).__name__}, expected an object")
    for name, kind in _FIELDS.items():
        if type(fields.get(name)) is not kind:
            came = repr(fields.get(name))[:80]
            raise CheckpointError(f"{path}: header field {name!r} is {came}, expected {kind.__name__}")
    if fields["format"] != FORMAT:
        found = fields["format"]
        raise CheckpointError(f"{path}: format {found}, this surgeon reads {FORMAT}; use a matching version")
    if unknown := sorted(set(fields) - set(_FIELDS) - {"origin"}):
        raise CheckpointError(f"{path}: unknown header field {unknown[0]!r}")
    return Header(
        class_name=fields["class"],
        plan=_plan(path, fields["plan"]),
        origin=_origin(path, fields.get("origin")),
        aliases=_aliases(path, fields["aliases"], tensors),
        frozen=_frozen(path, fields["frozen"], tensors),
        training=fields["training"],
        tensors=tensors,
    )


def _plan(path: str | os.PathLike[str], fields: dict[str, Any]) -> Plan:
    try:
        return Plan.from_json(json.dumps(fields))
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


def _origin(path: str | os.PathLike[str], origin: Any) -> dict[str, Any] | None:
    if origin is not None and not isinstance(origin, dict):
        raise CheckpointError(f"{path}: header field 'origin' is {type(origin).__name__}, expected an object")
    return origin


# ---------------------------------------------------------------- building


def check_origin(origin: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The torchvision name and keyword arguments of an origin, if they are ones that may be followed.

    Raises
    ------
    CheckpointError
        For a name that torchvision doesn't list, or an argument that is not allowed.
    """
    from torchvision.models import list_models  # late: a second of import that only files with such an origin need

    name, kwargs = origin.get("torchvision"), origin.get("kwargs", {})
    if not isinstance(name, str) or name not in list_models():
        raise CheckpointError(f"origin {str(name)[:80]!r} is no torchvision model of this installation; pass factory=")
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"the origin's kwargs are {type(kwargs).__name__}, expected an object")
    for key, value in kwargs.items():
        if key not in _KWARGS or not _KWARGS[key](value):
            raise CheckpointError(
                f"the origin sets {str(key)[:80]!r} to {str(value)[:80]!r}, which is not allowed; pass factory="
            )
    return name, kwargs


def build_origin(origin: Mapping[str, Any]) -> nn.Module:
    """Build the dense torchvision model of an origin, with random weights; nothing is downloaded.

    Raises
    ------
    CheckpointError
        As :func:`check_origin`, or if torchvision refuses the arguments.
    """
    from torchvision.models import get_model

    name, kwargs = check_origin(origin)
    try:
        model = get_model(name, weights=None, **kwargs)
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"torchvision can't build {name} with {kwargs}: {problem}") from problem
    assert isinstance(model, nn.Module)
    return model


def _dense(path: str | os.PathLike[str], header: Header, factory: Callable[[], nn.Module] | None) -> nn.Module:
    origin = header.origin or {}
    if factory is None and "torchvision" not in origin:
        told = f" (made from {json.dumps(origin)})" if origin else ""
        raise CheckpointError(
            f"{path}: holds a {header.class_name} that is not from torchvision{told}; pass factory=, a callable that "
            "makes the dense model"
        )
    try:
        model = build_origin(origin) if factory is None else factory()
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory gave {type(model).__name__}, expected a torch.nn.Module")
    if type(model).__name__ != header.class_name:
        raise CheckpointError(f"{path}: holds a {header.class_name}, but the dense model is {type(model).__name__}")
    return model.cpu()


def _cut(path: str | os.PathLike[str], header: Header, dense: nn.Module, example_inputs: Any) -> nn.Module:
    try:
        # In place: the dense model was made for this; nobody else holds it.
        return rewrite(dense, header.plan, example_inputs, inplace=True)
    except Exception as problem:  # the file's inputs go through the model's own forward, which may raise anything
        told = str(problem) or type(problem).__name__
        raise CheckpointError(f"{path}: its plan doesn't fit the dense {header.class_name}: {told}") from problem


def _compare(path: str | os.PathLike[str], header: Header, expected: Mapping[str, Tensor]) -> None:
    known = set(header.tensors) | set(header.aliases)
    for name in sorted(set(expected) - known):
        raise CheckpointError(f"{path}: tensor {name!r} of {header.class_name} is missing")
    for name in sorted(known - set(expected)):
        raise CheckpointError(f"{path}: tensor {name!r} doesn't belong to {header.class_name}")
    for name, tensor in expected.items():
        shape, kind = header.tensors[header.aliases.get(name, name)]
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name} has shape {list(shape)}, after the file's plan {list(tensor.shape)} was expected"
            )
        if not _same_kind(kind, tensor.dtype):
            raise CheckpointError(f"{path}: {name} holds {kind}, but {tensor.dtype} was expected")


def _same_kind(stored: str, dtype: torch.dtype) -> bool:
    """A float may be stored in another precision (a model saved in half); every other type must be the same."""
    if dtype.is_floating_point:
        return stored in _FLOATS
    return _TYPES.get(stored) is dtype


def _fill(model: nn.Module, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    types = {stored[name].dtype for name, tensor in expected.items() if tensor.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())  # buffers outside the file follow too
    state = _state(model)
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.dtype != stored[name].dtype:
                _retype(model, name, stored[name].dtype)
    model.load_state_dict(dict(stored), strict=True)


def _retype(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Give one parameter or buffer another type; ties survive, for the object stays."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    tensor.data = tensor.data.to(dtype)
