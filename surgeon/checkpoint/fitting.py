"""Tensors of a file against those of the model that they are meant for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.checkpoint.header import Header
from surgeon.errors import CheckpointError

__all__ = ["TYPES", "check_tensors", "check_ties", "distinct", "fill", "state_of"]

#: Types of numbers that a file may hold, as safetensors calls them.
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict.

    Raises
    ------
    CheckpointError
        If something in it is no tensor.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of {type(model).__name__} is {type(value).__name__}, and a surgeon file holds tensors only; "
                "keep it in a buffer, or save it yourself"
            )
    return dict(state)


def distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
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


def check_tensors(path: str | os.PathLike[str], header: Header, expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and kinds of numbers before anything is read.

    Raises
    ------
    CheckpointError
        With the first difference.
    """
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


def check_ties(path: str | os.PathLike[str], header: Header, model: nn.Module) -> None:
    """Check that what is one tensor in the model is one in the file.

    Raises
    ------
    CheckpointError
        With the first two names that aren't.
    """
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if header.aliases.get(name, name) != header.aliases.get(other, other) and tensor.numel():
            raise CheckpointError(f"{path}: {name} and {other} are one tensor of {header.class_name}, the file has two")


def _same_kind(stored: str, dtype: torch.dtype) -> bool:
    """A float may be stored in another precision (a model saved in half); every other type must be the same."""
    if dtype.is_floating_point:
        return TYPES.get(stored, torch.int64).is_floating_point
    return TYPES.get(stored) is dtype


def fill(model: nn.Module, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Put the numbers in, in the precision that they are stored in."""
    types = {stored[name].dtype for name, tensor in expected.items() if tensor.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())  # buffers outside the file follow too
    state = state_of(model)
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
