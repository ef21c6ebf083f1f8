"""CIFAR-10 and CIFAR-100 from a local copy, in any of the forms in which it is handed around.

The python version is a pickle. It is not loaded: its operations are listed and the two things needed, a long string of
bytes and a list of numbers, are picked out.
"""

from __future__ import annotations

import itertools
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from surgeon.errors import InputError

__all__ = ["CIFAR", "Kind", "read"]

_PIXELS = 3 * 32 * 32
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Part = tuple[Bytes, Ints]


@dataclass(frozen=True)
class Kind:
    """One of the two data sets: names of its folders, files and labels."""

    classes: int
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    label_bytes: int
    meta: str


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
#: By the name that the user gives.
CIFAR: Mapping[str, Kind] = {
    "cifar10": Kind(10, "cifar-10-batches", _BATCHES, ("test_batch",), "labels", 1, "batches.meta.txt"),
    "cifar100": Kind(100, "cifar-100", ("train",), ("test",), "fine_labels", 2, "fine_label_names.txt"),
}
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read(name: str, root: Path) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    """The classes, and of ``"train"`` and ``"test"`` the pixels (uint8 (N, 3, 32, 32)) and the labels (int64 (N,)).

    Raises
    ------
    InputError
        If there is no copy under `root`, or a damaged one.
    """
    kind = CIFAR[name]
    for attempt in (_python, _binary, _arrays):
        parts = attempt(name, kind, root)
        if parts:
            return _classes(name, kind, root), {split: _checked(kind, *part) for split, part in parts.items()}
    raise InputError(
        f"{root}: no copy of {name}; expected there the python version ({_python_folder(kind)}/), the binary version "
        f"({_binary_folder(kind)}/), {name}_train.npz and {name}_test.npz with the arrays images (N, 32, 32, 3) and "
        f"labels (N,), or image folders {name}/train/CLASS/*.png and {name}/test/CLASS/*.png. Nothing is downloaded"
    )


def _python_folder(kind: Kind) -> str:
    return f"{kind.folder}-py" if kind.classes == 10 else f"{kind.folder}-python"


def _binary_folder(kind: Kind) -> str:
    return f"{kind.folder}-bin" if kind.classes == 10 else f"{kind.folder}-binary"


def _classes(name: str, kind: Kind, root: Path) -> tuple[str, ...]:
    meta = root / _binary_folder(kind) / kind.meta
    if meta.exists():
        found = tuple(meta.read_text(encoding="utf-8").split())
        if len(found) == kind.classes:
            return found
    return _NAMES if name == "cifar10" else tuple(f"class {number}" for number in range(kind.classes))


def _checked(kind: Kind, pixels: Bytes, labels: Ints) -> tuple[Tensor, Tensor]:
    if len(labels) != len(pixels) or not len(labels) or labels.min() < 0 or labels.max() >= kind.classes:
        raise InputError(f"{len(pixels)} images with {len(labels)} labels of {kind.classes} classes don't fit together")
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels)


def _joined(parts: Iterator[Part]) -> Part:
    pixels, labels = zip(*parts, strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _both(kind: Kind, folder: Path, suffix: str, one: Callable[[Path], Part]) -> dict[str, Part]:
    if not (folder / f"{kind.train[0]}{suffix}").exists():
        return {}
    names = {"train": kind.train, "test": kind.test}
    return {split: _joined(one(folder / f"{f}{suffix}") for f in files) for split, files in names.items()}


# ---------------------------------------------------------------- the binary version


def _binary(name: str, kind: Kind, root: Path) -> dict[str, Part]:  # noqa: ARG001  # as the others
    return _both(kind, root / _binary_folder(kind), ".bin", lambda path: _binary_file(kind, path))


def _binary_file(kind: Kind, path: Path) -> Part:
    row = kind.label_bytes + _PIXELS
    data = np.fromfile(path, dtype=np.uint8)
    if not len(data) or len(data) % row:
        raise InputError(f"{path}: {len(data)} bytes, expected a multiple of {row}; fetch the file again")
    table = data.reshape(-1, row)
    return table[:, kind.label_bytes :].reshape(-1, 3, 32, 32), table[:, kind.label_bytes - 1].astype(np.int64)


# ---------------------------------------------------------------- the python version


def _python(name: str, kind: Kind, root: Path) -> dict[str, Part]:  # noqa: ARG001  # as the others
    return _both(kind, root / _python_folder(kind), "", lambda path: _python_file(kind, path))


def _python_file(kind: Kind, path: Path) -> Part:
    try:
        values = list(_arguments(path.read_bytes()))
    except (ValueError, IndexError, UnicodeError) as problem:
        raise InputError(f"{path}: damaged, or not of CIFAR's python version ({problem}); fetch it again") from problem
    blocks = [v for v in values if isinstance(v, bytes) and len(v) >= _PIXELS and len(v) % _PIXELS == 0]
    labels = _numbers_behind(values, kind.labels)
    if len(blocks) != 1 or len(labels) * _PIXELS != len(blocks[0]):
        raise InputError(
            f"{path}: {len(blocks)} blocks of images and {len(labels)} numbers under {kind.labels!r}; give the files "
            "as they are published, or the binary version"
        )
    pixels = np.frombuffer(blocks[0], dtype=np.uint8).reshape(-1, 3, 32, 32)
    return pixels.copy(), np.array(labels, dtype=np.int64)


def _arguments(data: bytes) -> Iterator[Any]:
    """The arguments of a pickle's operations, none of which is carried out; text that was bytes is bytes."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name.endswith(("PUT", "GET")):  # their numbers are places in the pickle's memory
            continue
        raw = operation.name in ("STRING", "BINSTRING", "SHORT_BINSTRING")
        yield argument.encode("latin-1") if raw and isinstance(argument, str) else argument


def _numbers_behind(values: list[Any], key: str) -> list[int]:
    """The whole numbers that follow a key, up to the next text."""
    start = next((n for n, value in enumerate(values) if value in (key, key.encode())), len(values))
    rest = itertools.takewhile(lambda value: not isinstance(value, str | bytes), values[start + 1 :])
    return [value for value in rest if type(value) is int]


# ---------------------------------------------------------------- arrays


def _arrays(name: str, kind: Kind, root: Path) -> dict[str, Part]:  # noqa: ARG001  # as the others
    paths = {split: root / f"{name}_{split}.npz" for split in ("train", "test")}
    if not paths["train"].exists():
        return {}
    return {split: _npz(path) for split, path in paths.items() if split == "train" or path.exists()}


def _npz(path: Path) -> Part:
    try:
        with np.load(path, allow_pickle=False) as stored:
            images, labels = stored["images"], stored["labels"]
    except (ValueError, KeyError, zipfile.BadZipFile) as problem:
        raise InputError(f"{path}: {problem}; expected the arrays images and labels") from problem
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != images.shape[:1]:
        raise InputError(
            f"{path}: images {images.dtype}{list(images.shape)}, labels {list(labels.shape)}; expected "
            "uint8[N, 32, 32, 3] and [N]"
        )
    return images.transpose(0, 3, 1, 2), labels.astype(np.int64)
