"""Checkpoint: one safetensors file holds the weights, the plan and where the model came from. Nothing is unpickled.

A file is data of unknown origin until every field is checked. Without a `factory` only a torchvision model name
of the file is followed, never an import path; the plan is applied to the freshly built architecture, and each
tensor must then fit by name, shape and type. A graph module is built from its own description, which can name torch's
operators and layers and nothing else.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from surgeon.checkpoint.coding import Coded, Form, check_total, decode, encode
from surgeon.checkpoint.fitting import TYPES, check_tensors, check_ties, distinct, fill, state_of
from surgeon.checkpoint.graphs import build, describe, kept_outside
from surgeon.checkpoint.header import FORMAT, KEY, Header, opened, read_header
from surgeon.checkpoint.origin import build_origin, check_origin, is_followed
from surgeon.checkpoint.sketch import bytes_of, check_memory, compare_dense, cut_sketch, fill_sketch
from surgeon.errors import CheckpointError, ModelError, PlanError
from surgeon.files import check_name, write_beside
from surgeon.jsontext import dump_json, read_json
from surgeon.planning import Plan
from surgeon.report import tensor_bytes
from surgeon.rewriting import rewrite
from surgeon.tracing import Inputs, unwrap

_log = logging.getLogger("surgeon")

__all__ = [
    "FORMAT", "Header", "build_origin", "check_origin", "is_followed", "load", "load_dense", "read_header", "save",
    "write_tensors",
]  # fmt: skip


def save(
    path: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan,
    origin: Mapping[str, Any] | None = None,
    *,
    compact: bool | Mapping[str, str] = False,
) -> None:
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
        Where the dense model came from. ``{"torchvision": NAME, "kwargs": {...}}``, or ``{"surgeon": NAME, ...}`` for
        one of :mod:`surgeon.models`, lets :func:`load` work without a factory; anything else is kept for the reader,
        never followed.
    compact:
        Store tensors that have many zeros or few distinct values by those; they come back to the bit. A mapping says
        of tensors by name which of the two they are stored by, be it smaller or not: ``"sparse"`` or ``"shared"``.

    Raises
    ------
    CheckpointError
        If the model holds state that is no tensor, or is a graph module with operators that are not torch's own.
    OSError
        If the file can't be written (no such folder, no space, no permission).
    """
    model = unwrap(model)  # load() makes the model itself, whose class and names these are
    graph = describe(model) if isinstance(model, fx.GraphModule) else None
    tensors, aliases = distinct(state_of(model) | (kept_outside(model) if graph else {}))
    header = {
        "format": FORMAT,
        "class": type(model).__name__,
        "plan": json.loads(plan.to_json()),
        "origin": None if origin is None else dict(origin),
        "aliases": aliases,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "training": model.training,
    }
    header |= {"graph": graph} if graph else {}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if compact is not False:
        stored, header["coded"] = _coded(stored, {} if compact is True else compact)
    with write_beside(path) as temporary:
        write_tensors(stored, temporary, {KEY: _text(header)})


def _text(header: Mapping[str, Any]) -> str:
    """The header as JSON that :func:`load` will read."""
    text = dump_json(header)
    try:
        read_json(text, len(text) * 64)
    except ValueError as problem:
        raise CheckpointError(f"the header can't be written so that it can be read again: {problem}") from problem
    return text


def _coded(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What to store, and how the header describes it."""
    stored: dict[str, Tensor] = {}
    forms: dict[str, Form] = {}
    for name, tensor in tensors.items():
        found = encode(tensor, kinds.get(name))
        if found is None:
            stored[name] = tensor
            continue
        code, numbers = found.form.parts(name)
        stored[code], stored[numbers] = found.code, found.numbers
        forms[name] = found.form
    check_total(forms, sum(tensor.numel() * tensor.element_size() for tensor in stored.values()))
    return stored, {name: form.to_json() for name, form in forms.items()}


def load(
    path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None, *, example_inputs: Any = None
) -> nn.Module:
    """Open a file that :func:`save` wrote, and give back the pruned model on the CPU.

    Parameters
    ----------
    path:
        The file.
    factory:
        Makes the dense architecture, with any weights. Without it, a graph module is built as the file says, of
        operators of torch alone; for other models the file's name of a torchvision model, or of one of
        :mod:`surgeon.models`, is followed.
    example_inputs:
        What the dense model's forward takes, where the plan can't describe it (arguments that are no tensors); on any
        device.

    Raises
    ------
    CheckpointError
        If the file is damaged or forged, or belongs to another model; the first difference is named.
    OSError
        If it can't be read.
    """
    header = read_header(path)
    if header.graph is not None and factory is None:
        return _built(path, header)
    example_inputs = None if example_inputs is None else Inputs.of(example_inputs).to("cpu")  # where the model will be
    dense = _dense(path, header, factory, numbers=False)
    compare_dense(path, header, state_of(dense))
    try:
        small = _filled(path, header, cut_sketch(dense, header.plan, example_inputs))
    except PlanError as problem:
        if factory is None:  # the file chose the model, which may be a large one: it isn't built for another look
            raise _unfit(path, header, problem) from problem
        small = None
    if small is None:  # its forward needs numbers, or it keeps some that the file doesn't have
        _log.debug("%s: its forward is run, to see what it makes of the plan", path, extra={"stage": "load"})
        small = _for_real(path, header, dense if factory is not None else None, example_inputs)
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name not in header.frozen)
    return small.train(header.training)


def _filled(path: str | os.PathLike[str], header: Header, sketch: nn.Module | None) -> nn.Module | None:
    """The model with the file's numbers, where all of its own come from there."""
    if sketch is None:
        return None
    check_tensors(path, header, state_of(sketch))
    check_ties(path, header, sketch)
    return sketch if fill_sketch(sketch, _stored(path, header)) else None


def _for_real(path: str | os.PathLike[str], header: Header, dense: nn.Module | None, example_inputs: Any) -> nn.Module:
    """The model by way of the dense one with all its numbers."""
    if dense is None:
        sketch = _dense(path, header, None, numbers=False)
        check_memory(path, tensor_bytes(sketch))
        dense = _dense(path, header, None)
    small = _cut(path, header, dense, example_inputs)
    expected = state_of(small)
    check_tensors(path, header, expected)
    check_ties(path, header, small)
    fill(small, expected, _stored(path, header))
    return small


def _stored(path: str | os.PathLike[str], header: Header) -> dict[str, Tensor]:
    """The file's tensors by all their names."""
    check_memory(path, bytes_of(header))
    with opened(path) as file:
        stored = {name: _tensor(path, file, header, name) for name in header.tensors}
    for name, tensor in stored.items():
        if (tuple(tensor.shape), tensor.dtype) != (header.tensors[name][0], TYPES.get(header.tensors[name][1])):
            raise CheckpointError(f"{path}: {name} isn't what the header says of it: the file changed meanwhile")
    return stored | {name: stored[source] for name, source in header.aliases.items()}


def _tensor(path: str | os.PathLike[str], file: Any, header: Header, name: str) -> Tensor:
    if name not in header.coded:
        plain: Tensor = file.get_tensor(name)
        return plain
    form = header.coded[name]
    try:
        return decode(Coded(form, *(file.get_tensor(part) for part in form.parts(name))))
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {name}: {problem}") from problem


def _built(path: str | os.PathLike[str], header: Header) -> nn.Module:
    """The graph module that a file describes."""
    try:
        sketch = {name: torch.empty(shape, dtype=TYPES[kind], device="meta")
                  for name, (shape, kind) in header.tensors.items()}  # fmt: skip
        build(header.graph, header.class_name, sketch, header.aliases)
        stored = _stored(path, header)
        own = {name: stored[name].clone() for name in header.tensors}  # the file's memory is not the model's
        model = build(header.graph, header.class_name, own, header.aliases)
    except CheckpointError:
        raise
    except Exception as problem:  # the file is data: whatever is wrong with it is the file's fault
        told = str(problem) or type(problem).__name__
        raise CheckpointError(f"{path}: its graph is damaged, or not allowed: {told}") from problem
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in header.frozen and parameter.requires_grad)
    return model


def load_dense(path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """The dense architecture that a file was cut from, with fresh weights (to compare sizes and speed).

    Raises
    ------
    CheckpointError
        As :func:`load`.
    """
    return _dense(path, read_header(path), factory)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file (inside :func:`write_beside`).

    Raises
    ------
    OSError
        If it can't be written.
    """
    check_name(path)
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as problem:
        found = re.search(r"os error (\d+)", str(problem))  # the library tells the system's word in its own
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(problem), os.fspath(path)) from problem


def _dense(
    path: str | os.PathLike[str], header: Header, factory: Callable[[], nn.Module] | None, *, numbers: bool = True
) -> nn.Module:
    """The dense model; without `numbers`, one that a file's origin names takes no memory."""
    origin = header.origin or {}
    if factory is None and not is_followed(origin):
        told = f" (made from {json.dumps(origin)})" if origin else ""
        raise CheckpointError(
            f"{path}: holds a {header.class_name} that is not from torchvision{told}; pass factory=, a callable that "
            "makes the dense model"
        )
    try:
        model = build_origin(origin, numbers=numbers) if factory is None else factory()
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory gave {type(model).__name__}, expected a torch.nn.Module")
    made = type(model).__name__
    if made != header.class_name:
        raise CheckpointError(f"{path}: holds a {header.class_name}, but the dense model is {made}; pass its factory")
    return model.cpu() if numbers or factory is not None else model


def _cut(path: str | os.PathLike[str], header: Header, dense: nn.Module, example_inputs: Any) -> nn.Module:
    if not header.plan.removed:
        return dense
    try:
        # In place: the dense model was made for this; nobody else holds it.
        return rewrite(dense, header.plan, example_inputs, inplace=True)
    except Exception as problem:  # the file's inputs go through the model's own forward, which may raise anything
        raise _unfit(path, header, problem) from problem


def _unfit(path: str | os.PathLike[str], header: Header, problem: Exception) -> CheckpointError:
    told = str(problem) or type(problem).__name__
    return CheckpointError(f"{path}: its plan doesn't fit the dense {header.class_name}: {told}")
