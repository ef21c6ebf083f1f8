"""Images to rank filters on: a user's folder, or crops of two photographs; and targets for them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from PIL import Image
from torch import Tensor

from surgeon.data import CIFAR, DIGITS, Data, Preprocess, open_data, scan, told, training_folder
from surgeon.errors import InputError, ModelError, TuningError
from surgeon.tuning import objectives

__all__ = [
    "Batches", "Images", "Preprocess", "Source", "batches", "drawn", "find", "loss", "own_loss", "photographs",
    "scores_of",
]  # fmt: skip

_SMALLEST_CROP = 0.35  # of the photograph's short side

Loss = Callable[[Any, Tensor], Tensor]
#: Image files by class, or a data set that is in memory.
Source = Mapping[str, Sequence[Path]] | Data


@dataclass(frozen=True)
class Images:
    """Images ready for a model.

    Attributes
    ----------
    pixels:
        uint8 of shape (N, C, H, W).
    labels:
        Class of each image, or None.
    classes:
        Names of the classes.
    notes, warnings:
        What the user must be told.
    """

    pixels: Tensor
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batches:
    """A data loader: batches of (images, targets) on the device; can be read any number of times.

    With `bare`, of images alone: whoever reads them draws labels from what the model says.
    """

    pixels: Tensor
    labels: Tensor | None
    preprocess: Preprocess
    batch_size: int
    device: torch.device
    notes: tuple[str, ...] = field(default=())
    bare: bool = False

    @property
    def loss(self) -> Loss | None:
        """Cross entropy of each example against its label, or against what the model itself predicts for it."""
        if self.bare:
            return None
        return own_loss if self.labels is None else loss

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.pixels) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """One batch after the other, in a fixed order."""
        for start in range(0, len(self.pixels), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = self.pixels[part].to(self.device)
            targets = torch.zeros(len(pixels), dtype=torch.long) if self.labels is None else self.labels[part]
            images = self.preprocess.normalise(pixels)
            yield images if self.bare else (images, targets.to(self.device))


# ---------------------------------------------------------------- reading


def photographs(samples: int, preprocess: Preprocess, seed: int) -> Images:
    """Random crops, half of them mirrored, of the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    chance = random.Random(seed)  # noqa: S311  # no secrets here
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    crops = [preprocess.pixels(_crop(photos[number % len(photos)], chance)) for number in range(samples)]
    note = (
        f"ranked on {samples} random crops of two photographs that come with scikit-learn; for a ranking that knows "
        "your task give --data DIR"
    )
    return Images(torch.stack(crops), None, (), (note,))


def _crop(photo: Image.Image, chance: random.Random) -> Image.Image:
    side = round(min(photo.size) * chance.uniform(_SMALLEST_CROP, 1))
    left, top = (chance.randint(0, whole - side) for whole in photo.size)
    piece = photo.crop((left, top, left + side, top + side))
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.random() < 0.5 else piece


def find(name: str, root: str = "data") -> Source:
    """What ``--data`` names: a folder (of one with parts the training part), or digits, cifar10, cifar100 under `root`.

    Raises
    ------
    InputError
        If there is no such thing.
    """
    if name in (DIGITS, *CIFAR) and not Path(name).is_dir():
        return open_data(name, root)
    return scan(training_folder(Path(name)))


def drawn(
    source: Source, samples: int, preprocess: Preprocess, seed: int, *, strict: bool = False, name: str | None = None
) -> Images:
    """Images of a source, drawn evenly over the classes (of a data set: from what is there to train on).

    `name` is what the user calls a folder.

    Raises
    ------
    InputError
        If none can be read; with `strict` also if one of those drawn can't.
    """
    if not isinstance(source, Data):
        return _of_files(source, samples, preprocess, seed, strict=strict, name=name)
    chosen = source.train.drawn(samples, seed).loaded(preprocess)
    assert chosen.pixels is not None
    note = f"ranked on {len(chosen)} training images of {source.name} ({len(source.classes)} classes)"
    return Images(chosen.pixels, tuple(chosen.labels.tolist()), source.classes, (note,))


def _of_files(
    files: Mapping[str, Sequence[Path]],
    samples: int,
    preprocess: Preprocess,
    seed: int,
    *,
    strict: bool,
    name: str | None,
) -> Images:
    """Read images that :func:`scan` found.

    Raises
    ------
    InputError
        If none can be read; with `strict` also if one of those drawn can't.
    """
    path = _root(files) if name is None else _called(name)
    chosen, broken = _read(files, samples, preprocess, seed)
    if broken and strict:
        raise InputError(f"{broken[0]}; {len(broken)} broken in {path}. Remove them, or go on without --strict")
    if not chosen:
        raise InputError(f"{path}: none of its {len(broken)} images can be read; the first: {broken[0]}")
    classes = tuple(name for name in files if name)
    labels = tuple(list(files).index(name) for name, _ in chosen) if classes else None
    kinds = f"{len(classes)} classes" if classes else "no class folders"
    warnings = (f"{len(broken)} broken image(s) skipped in {path}; the first: {broken[0]}",) if broken else ()
    notes = (f"ranked on {len(chosen)} images of {path} ({kinds})",)
    return Images(torch.stack([pixels for _, pixels in chosen]), labels, classes, notes, warnings)


def _called(name: str) -> str | Path:
    """A folder as the user calls it; of one with parts, the part that is meant."""
    meant = training_folder(Path(name))
    return name if meant == Path(name) else meant


def _root(files: Mapping[str, Sequence[Path]]) -> Path:
    first = next(path for paths in files.values() for path in paths)
    return first.parent if "" in files else Path(os.path.commonpath([paths[0] for paths in files.values()]))


def _read(
    files: Mapping[str, Sequence[Path]], samples: int, preprocess: Preprocess, seed: int
) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """Draw from the classes in turn until there are enough that can be read."""
    chance = random.Random(seed)  # noqa: S311  # no secrets here
    piles = {name: chance.sample(list(paths), len(paths)) for name, paths in files.items()}
    chosen: list[tuple[str, Tensor]] = []
    broken: list[str] = []
    while any(piles.values()) and len(chosen) < samples:
        for name, pile in piles.items():
            if not pile or len(chosen) >= samples:
                continue
            path = pile.pop()
            try:
                with Image.open(path) as image:
                    chosen.append((name, preprocess.pixels(image)))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
                broken.append(f"{path}: {told(problem)}")
    return chosen, broken


# ---------------------------------------------------------------- targets and loss


def scores_of(outputs: Any) -> Tensor:
    """The class scores in whatever a forward returned: float of shape (N, classes, ...).

    Raises
    ------
    ModelError
        If there are none.
    """
    try:
        scores = objectives.scores_of(outputs)
        if scores.is_floating_point() and scores.shape[1] > 1:
            return scores
    except TuningError:  # its advice is for Python
        pass
    raise ModelError(
        "the model's output holds no class scores of shape (N, classes, ...), so there is no loss to rank with; use "
        "--criterion magnitude, or surgeon.prune(..., forward_loss=...) in Python"
    )


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross entropy of each example: shape (N,)."""
    losses = F.cross_entropy(scores_of(outputs), targets, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses  # over the places of a segmentation


def own_loss(outputs: Any, _targets: Tensor) -> Tensor:
    """Cross entropy of each example against the class that these outputs put first: shape (N,)."""
    return loss(outputs, scores_of(outputs).detach().argmax(1))


def batches(
    images: Images, outputs: Any, preprocess: Preprocess, batch_size: int, device: torch.device, *, draws: bool = False
) -> Batches:
    """Pair images with targets: their labels where the classes are the model's, else the model's own predictions.

    Parameters
    ----------
    outputs:
        What the model's forward returned for any image.
    draws:
        Whoever reads them draws labels where there are none: images alone are given then.

    Raises
    ------
    ModelError
        If there are no class scores in it.
    """
    scores = scores_of(outputs)
    count = scores.shape[1]
    if images.labels is not None and scores.ndim == 2 and count == len(images.classes):
        labels, note = torch.tensor(images.labels), f"targets: the folder's {count} classes"
    else:
        why = f"; the folder's {len(images.classes)} classes are not the model's {count}" if images.classes else ""
        own = "drawn from the model's own predictions" if draws else "the model's own predictions"
        labels, note = None, f"targets: {own}{why}"
    notes, bare = (*images.notes, note), draws and labels is None
    return Batches(images.pixels, labels, preprocess, batch_size, device, notes, bare)
