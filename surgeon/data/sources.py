"""Where images come from, and into which parts they are split. The test part is never given to training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from surgeon.data.cifar import CIFAR, read
from surgeon.data.digits import read_digits
from surgeon.data.folders import check_images, is_hidden, scan
from surgeon.data.preprocess import Preprocess, read_pixels
from surgeon.errors import InputError

__all__ = ["CIFAR", "DIGITS", "Data", "Split", "hold_out", "open_data", "training_folder"]

#: Name of the images that come with scikit-learn, and how many of them are kept apart for the test.
DIGITS, _TESTED = "digits", 0.2
#: So many files at either end are looked at before a run: some ten seconds.
_LOOKED_AT = 50_000
#: Folder names that mean a part.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "training_set"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "test_set"),
}


@dataclass(frozen=True)
class Split:
    """Images with labels, in memory or in files.

    Attributes
    ----------
    labels:
        int64 of shape (N,).
    pixels:
        uint8 of shape (N, C, H, W), or None where there are `files`.
    files:
        One path per image, or nothing.
    """

    labels: Tensor
    pixels: Tensor | None = None
    files: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """Some of the images, in this order."""
        pixels = None if self.pixels is None else self.pixels[indices]
        files = tuple(self.files[int(index)] for index in indices) if self.files else ()
        return replace(self, labels=self.labels[indices], pixels=pixels, files=files)

    def loaded(self, preprocess: Preprocess) -> Split:
        """The same images in memory, as they are before they are normalised.

        Raises
        ------
        InputError
            If one can't be read.
        """
        if self.pixels is not None:
            return replace(self, pixels=preprocess.fitted(self.pixels))
        return Split(self.labels, torch.stack([read_pixels(path, preprocess.pixels) for path in self.files]))

    def drawn(self, count: int, seed: int = 0) -> Split:
        """At most `count` images, drawn evenly over the classes, which follow each other in turn."""
        return self.take(_in_turn(self.labels, seed)[:count])


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes
    ----------
    name:
        As the user called it.
    classes:
        Names of the classes, in the order of the labels.
    train, val, test:
        Its parts. Where `val` is None, hold some of `train` out (:func:`hold_out`); `test` is for the end alone.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None = None
    test: Split | None = None

    def checked(self) -> Data:
        """The same, once every file turned out to be an image (of very many the first and the last are looked at).

        Raises
        ------
        InputError
            If one is none.
        """
        files = [file for part in (self.train, self.val, self.test) if part is not None for file in part.files]
        check_images(files if len(files) <= 2 * _LOOKED_AT else [*files[:_LOOKED_AT], *files[-_LOOKED_AT:]])
        return self

    def with_validation(self, share: float, seed: int = 0) -> Data:
        """The same with a validation part, held out of the training part if there is none."""
        if self.val is not None:
            return self
        train, val = hold_out(self.train, share, seed, self.classes)
        return replace(self, train=train, val=val)


def open_data(name: str, root: str | os.PathLike[str] = "data") -> Data:
    """A data set by name or folder.

    Parameters
    ----------
    name:
        ``"digits"``: 1,797 handwritten digits, 8x8 and grey, that come with scikit-learn, a fifth of them for the
        test; ``"cifar10"`` or ``"cifar100"``, which are looked for under `root`; or a folder: ``DIR/CLASS/*.jpg``, or
        ``DIR/train/CLASS/*.jpg`` with ``val`` or ``test`` beside it.

    Raises
    ------
    InputError
        If there is no such data, or its parts have other classes.
    """
    place = Path(root)
    if name == DIGITS and not Path(name).is_dir():
        return _digits()
    if name in CIFAR and not (place / name).is_dir():
        classes, parts = read(name, place)
        return Data(name, classes, **{part: Split(labels, pixels) for part, (pixels, labels) in parts.items()})
    return _from_folder(name, place / name if name in CIFAR else Path(name))


def _digits() -> Data:
    """Always with the same test part, whatever a run's seed is."""
    pixels, labels = read_digits()
    train, test = hold_out(Split(labels, pixels), _TESTED)
    return Data(DIGITS, tuple(str(digit) for digit in range(10)), train, test=test)


def hold_out(split: Split, share: float, seed: int = 0, classes: Sequence[str] = ()) -> tuple[Split, Split]:
    """Two parts of a split, the second with this share of every class, at least one image of each.

    `classes` are the names of the labels, for errors.

    Raises
    ------
    InputError
        If the share is not between 0 and 1, or a class has one image only.
    """
    if not 0 < share < 1:
        raise InputError(f"a share of {share} can't be held out for validation: give one between 0 and 1, such as 0.1")
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for label in torch.unique(split.labels).tolist():
        own = (split.labels == label).nonzero().flatten()
        if len(own) < 2:
            name = repr(classes[label]) if classes else label
            raise InputError(f"class {name} has one training image: none can be held out for validation; add images")
        order = own[torch.randperm(len(own), generator=generator)]
        count = min(max(1, round(share * len(own))), len(own) - 1)
        kept.append(order[count:])
        held.append(order[:count])
    return split.take(torch.cat(kept).sort().values), split.take(torch.cat(held).sort().values)


def _in_turn(labels: Tensor, seed: int) -> Tensor:
    """All indices, shuffled within each class, the classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.empty_like(labels)
    for label in torch.unique(labels).tolist():
        own = (labels == label).nonzero().flatten()
        rank[own] = torch.randperm(len(own), generator=generator)
    return torch.argsort(rank * (int(labels.max()) + 1) + labels, stable=True)


# ---------------------------------------------------------------- folders


def _from_folder(name: str, path: Path) -> Data:
    found = {part: place for part, names in _PARTS.items() if (place := _part(path, names)) is not None}
    if "train" not in found:
        files = scan(path)
        return Data(name, tuple(files), _split(path, files, tuple(files)))
    files = scan(found["train"])
    classes = tuple(files)
    parts = {part: _split(place, scan(place), classes) for part, place in found.items()}
    return Data(name, classes, **parts)


def training_folder(path: Path) -> Path:
    """The folder that holds a folder for each class of training images: ``DIR/train``, or `path` itself."""
    return _part(path, _PARTS["train"]) or path


def _part(path: Path, names: Sequence[str]) -> Path | None:
    """A part has folders of its own, one for each class; a class that is called so has none."""
    return next((path / name for name in names if _has_folders(path / name)), None)


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())


def _split(place: Path, files: Mapping[str, Sequence[Path]], classes: tuple[str, ...]) -> Split:
    if "" in files:
        raise InputError(f"{place}: images without labels; expected one folder per class: {place}/CLASS/*.jpg")
    if unknown := [name for name in files if name not in classes]:
        raise InputError(
            f"{place}: class {unknown[0]!r} is not among those of the training images: {list(classes)}; name its "
            "folder as there, or add training images"
        )
    pairs = [(classes.index(name), path) for name, paths in files.items() for path in paths]
    return Split(torch.tensor([label for label, _ in pairs]), files=tuple(path for _, path in pairs))
