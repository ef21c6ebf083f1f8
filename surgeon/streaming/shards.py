"""Weights in safetensors shards, read and written one tensor at a time.

The layout is that of the Hugging Face hub: ``model.safetensors``, or ``model.safetensors.index.json``, which says in
which of several files each tensor is.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.checkpoint.header import opened
from surgeon.errors import CheckpointError
from surgeon.files import write_beside
from surgeon.jsonfiles import blamed, read_file, shaped, write_file

__all__ = ["INDEX", "SINGLE", "Shards", "write_shards"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: How safetensors calls types.
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is read from its file when it is asked for, and not kept.

    Attributes
    ----------
    files:
        Name of the file that holds each tensor.
    shapes:
        Shape and type of each, as the files' headers say.

    Raises
    ------
    CheckpointError
        If the index or a header is damaged, or they don't agree.
    OSError
        If a file can't be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.files = self._index()
        self.shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for file in dict.fromkeys(self.files.values()):
            self._read_header(file)
        missing = [name for name in self.files if name not in self.shapes]
        if missing:
            raise CheckpointError(f"{self.folder / INDEX}: {missing[0]} is not in {self.files[missing[0]]}")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.files:
            raise KeyError(name)
        with opened(self.folder / self.files[name]) as file:  # opened anew, so that no page of it stays mapped
            found: Tensor = file.get_tensor(name)
            return found

    def __contains__(self, name: object) -> bool:
        return name in self.files  # a mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def _index(self) -> dict[str, str]:
        path = self.folder / INDEX
        if not path.exists():
            if not (self.folder / SINGLE).exists():
                raise CheckpointError(f"{self.folder}: holds neither {INDEX} nor {SINGLE}")
            with opened(self.folder / SINGLE) as file:
                return dict.fromkeys(file.keys(), SINGLE)
        index = read_file(path, dict[str, Any], "fetch it again")
        with blamed(path, "fetch it again"):
            found: dict[str, str] = shaped(dict[str, str], index.get("weight_map"), "weight_map")
        for name in found.values():
            if Path(name).name != name:
                raise CheckpointError(f"{path}: names a file outside its folder, {name[:80]!r}")
            if Path(name).suffix != ".safetensors":
                raise CheckpointError(f"{path}: names {name[:80]!r}, which is no .safetensors file")
        return found

    def _read_header(self, name: str) -> None:
        with opened(self.folder / name) as file:
            for tensor in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(tensor)
                dtype = _TYPES.get(str(part.get_dtype()))
                if dtype is None:
                    raise CheckpointError(f"{self.folder / name}: {tensor} is of type {part.get_dtype()}")
                if self.files.get(tensor) == name:
                    self.shapes[tensor] = torch.Size(part.get_shape()), dtype


def write_shards(
    folder: Path, files: Mapping[str, str], shapes: Mapping[str, tuple[torch.Size, torch.dtype]], tensors: Any
) -> int:
    """Write each file with the tensors that belong in it, one after the other; gives the bytes of all tensors.

    Parameters
    ----------
    files, shapes:
        As in :class:`Shards`; of what is to be written.
    tensors:
        ``tensors(name)`` gives each when its turn comes.

    Raises
    ------
    OSError
        If a file can't be written.
    """
    total = sum(_size(*shapes[name]) for name in files)
    for file in dict.fromkeys(files.values()):
        own = {name: shapes[name] for name, place in files.items() if place == file}
        with write_beside(folder / file) as temporary:
            _write(temporary, own, tensors)
    if set(files.values()) != {SINGLE}:
        index = {"metadata": {"total_size": total}, "weight_map": dict(files)}
        write_file(folder / INDEX, index, indent=2)
    return total


def _size(shape: torch.Size, dtype: torch.dtype) -> int:
    return shape.numel() * dtype.itemsize


def _write(path: Path, shapes: Mapping[str, tuple[torch.Size, torch.dtype]], tensors: Any) -> None:
    """One file: its header's length, the header, the numbers. safetensors' own writer wants all of them at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (shape, dtype) in shapes.items():
        end = place + _size(shape, dtype)
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, dtype) in shapes.items():
            tensor = tensors(name).detach().cpu().contiguous()
            if (tensor.shape, tensor.dtype) != (shape, dtype):
                raise CheckpointError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(shape)} {dtype}")
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
