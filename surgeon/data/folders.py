"""Folders of images: ``DIR/CLASS/*.jpg``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from surgeon.data.pixels import check_range
from surgeon.errors import InputError

__all__ = ["SUFFIXES", "check_images", "is_hidden", "scan", "told"]

#: What counts as an image.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


def scan(path: Path) -> dict[str, list[Path]]:
    """Image files of ``DIR/CLASS/*.jpg`` by class, sorted; those of ``DIR/*.jpg`` under the class "".

    Hidden files and folders, such as a notebook's or a file manager's copies, are passed over at every depth.

    Raises
    ------
    InputError
        If the folder is missing or empty, or has one class, or one without images.
    """
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if not path.is_dir():
        raise InputError(f"{path}: not a folder; expected DIR/CLASS/*.jpg or DIR/*.jpg")
    entries = sorted(entry for entry in path.iterdir() if not is_hidden(entry.name))
    found = {entry.name: _images(entry) for entry in entries if entry.is_dir()}
    empty = [name for name, files in found.items() if not files]
    found = {name: files for name, files in found.items() if files}
    if found and empty:  # without it the classes behind it would have other labels
        raise InputError(f"{path / empty[0]}: a class folder without images; fill it, or remove it")
    if len(found) > 1:
        return found
    own = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    if own and not found:
        return {"": own}
    if not found:
        raise InputError(f"{path}: holds no images; expected DIR/CLASS/*.jpg or DIR/*.jpg")
    only = next(iter(found))
    raise InputError(
        f"{path}: has one class folder only ({only!r}), expected at least two, as DIR/CLASS/*.jpg; for images "
        f"without labels give the folder that holds them: {path / only}"
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images."""
    return name.startswith(".")


def _images(path: Path) -> list[Path]:
    found: list[Path] = []
    for where, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]  # what is left here is walked next
        shown = (name for name in names if not is_hidden(name))
        found += [Path(where) / name for name in shown if Path(name).suffix.lower() in SUFFIXES]
    return sorted(found)


def check_images(paths: Sequence[Path]) -> None:
    """Look at the head of each file: what is no image, or none that can be used, is better told now than hours later.

    Raises
    ------
    InputError
        If there are such; the first is named.
    """
    found = {path: reason for path in paths if (reason := _broken(path)) is not None}
    if found:
        path, reason = next(iter(found.items()))
        more = f"; {len(found) - 1:,} more of {len(paths):,} are broken, too" if len(found) > 1 else ""
        raise InputError(f"{path}: can't be read ({reason}){more}; remove what is broken")


def _broken(path: Path) -> str | None:
    """Why a file is no image."""
    try:
        with Image.open(path) as image:
            check_range(image)
            return None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        return told(problem)


def told(problem: Exception) -> str:
    """What is wrong with an image, without its path: Pillow would give the absolute one."""
    if isinstance(problem, UnidentifiedImageError):
        return "no image, or of a kind that Pillow doesn't know"
    return getattr(problem, "strerror", None) or str(problem)
