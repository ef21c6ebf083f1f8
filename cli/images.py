"""Images to rank filters on: a user's folder, or crops of two photographs; and targets for them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from surgeon.errors import InputError, ModelError

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SMALLEST_CROP = 0.35  # of the photograph's short side

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model's input: short side to `resize`, centre crop of `size` pixels, normalised.

    The defaults are ImageNet's.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    channels: int = 3

    @classmethod
    def of_torchvision(cls, entry: Any) -> Preprocess:
        """What a torchvision weights entry says; ImageNet's where it says nothing."""
        preset: Any = None if entry is None else entry.transforms()
        mean, std = tuple(getattr(preset, "mean", _MEAN)), tuple(getattr(preset, "std", _STD))
        if not hasattr(preset, "crop_size"):
            return cls(mean=mean, std=std)
        size = int(preset.crop_size[0])
        return cls(size, max(size, int(preset.resize_size[0])), mean, std)

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> Preprocess:
        """What timm's data configuration says."""
        channels, size = int(config["input_size"][0]), int(config["input_size"][-1])
        resize = round(size / float(config.get("crop_pct", 0.875)))
        return cls(size, resize, tuple(config["mean"]), tuple(config["std"]), channels)

    def sized(self, size: int) -> Preprocess:
        """The same for images of another size; the whole short side is used."""
        return replace(self, size=size, resize=size)

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and crop: uint8 of shape (C, H, W)."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        scale = self.resize / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        array = torch.from_numpy(np.array(image))
        return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """From uint8 (N, C, H, W) to what the model takes."""
        mean = torch.tensor(self.mean[: self.channels], device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std[: self.channels], device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std


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
    """A data loader: batches of (images, targets) on the device; can be read any number of times."""

    pixels: Tensor
    labels: Tensor | None
    preprocess: Preprocess
    batch_size: int
    device: torch.device
    notes: tuple[str, ...] = field(default=())

    @property
    def loss(self) -> Loss:
        """Cross entropy of each example against its label, or against what the model itself predicts for it."""
        return own_loss if self.labels is None else loss

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.pixels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch after the other, in a fixed order."""
        for start in range(0, len(self.pixels), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = self.pixels[part].to(self.device)
            targets = torch.zeros(len(pixels), dtype=torch.long) if self.labels is None else self.labels[part]
            yield self.preprocess.normalise(pixels), targets.to(self.device)


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


def folder(
    files: Mapping[str, Sequence[Path]],
    samples: int,
    preprocess: Preprocess,
    seed: int,
    *,
    strict: bool = False,
    name: str | None = None,
) -> Images:
    """Read images that :func:`scan` found, drawn evenly over the classes; `name` is what the user calls the folder.

    Raises
    ------
    InputError
        If none can be read; with `strict` also if one of those drawn can't.
    """
    path = name or _root(files)
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


def scan(path: Path) -> dict[str, list[Path]]:
    """Image files of ``DIR/CLASS/*.jpg`` by class, sorted; those of ``DIR/*.jpg`` under the class "".

    Raises
    ------
    InputError
        If the folder is missing or empty, or has one class.
    """
    if not path.exists():
        raise InputError(f"--data {path}: no such folder")
    if not path.is_dir():
        raise InputError(f"--data {path}: not a folder; expected DIR/CLASS/*.jpg or DIR/*.jpg")
    found = {entry.name: _images(entry) for entry in sorted(path.iterdir()) if entry.is_dir()}
    found = {name: files for name, files in found.items() if files}
    if len(found) > 1:
        return found
    own = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() in _SUFFIXES)
    if own and not found:
        return {"": own}
    if not found:
        raise InputError(f"--data {path}: holds no images; expected DIR/CLASS/*.jpg or DIR/*.jpg")
    only = next(iter(found))
    raise InputError(
        f"--data {path}: has one class folder only ({only!r}), expected at least two, as DIR/CLASS/*.jpg; for images "
        f"without labels give the folder that holds them: --data {path / only}"
    )


def _root(files: Mapping[str, Sequence[Path]]) -> Path:
    first = next(path for paths in files.values() for path in paths)
    return first.parent if "" in files else Path(os.path.commonpath([paths[0] for paths in files.values()]))


def _images(path: Path) -> list[Path]:
    walk = os.walk(path, followlinks=True)
    return sorted(
        Path(where) / name for where, _, names in walk for name in names if Path(name).suffix.lower() in _SUFFIXES
    )


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
                broken.append(f"{path}: {_why(problem)}")
    return chosen, broken


def _why(problem: Exception) -> str:
    """What is wrong with an image, without its path: Pillow would give the absolute one."""
    if isinstance(problem, UnidentifiedImageError):
        return "no image, or of a kind that Pillow doesn't know"
    return getattr(problem, "strerror", None) or str(problem)


# ---------------------------------------------------------------- targets and loss


def scores_of(outputs: Any) -> Tensor:
    """The class scores in whatever a forward returned: float of shape (N, classes, ...).

    Raises
    ------
    ModelError
        If there are none.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs.get("out", outputs.get("logits", next(iter(outputs.values()), None)))
    elif isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if isinstance(outputs, Tensor) and outputs.ndim >= 2 and outputs.is_floating_point() and outputs.shape[1] > 1:
        return outputs
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


def batches(images: Images, outputs: Any, preprocess: Preprocess, batch_size: int, device: torch.device) -> Batches:
    """Pair images with targets: their labels where the classes are the model's, else the model's own predictions.

    `outputs` is what the model's forward returned for any image.

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
        labels, note = None, f"targets: the model's own predictions{why}"
    return Batches(images.pixels, labels, preprocess, batch_size, device, (*images.notes, note))
