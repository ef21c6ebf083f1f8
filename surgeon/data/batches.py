"""Batches of images, as they are or changed at random for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import RandomResizedCrop

from surgeon.data.pixels import in_bytes
from surgeon.data.preprocess import Preprocess, read_pixels, reduce
from surgeon.data.sources import Split
from surgeon.errors import InputError

__all__ = ["Augment", "Examples", "batches"]

#: The least share of a photograph that a random crop keeps.
_LEAST_AREA = 0.35
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Augment:
    """How training images are changed at random, with torch's random numbers.

    Attributes
    ----------
    crop:
        Images in memory are moved by up to so many pixels, zeros moving in (He et al. 2016, section 4.2); of those in
        files a random part is cut out and scaled to the model's size. 0: neither.
    flip:
        Mirror half of them.
    cutout:
        Side in pixels of the square that is greyed out (DeVries & Taylor 2017); 0: none.
    """

    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(f"{name}={value!r}: expected a number of pixels, 0 or more")

    def __call__(self, images: Tensor, *, moved: bool) -> Tensor:
        """Change normalised images of shape (N, C, H, W), 0 being grey; `moved`: they are crops already."""
        if self.crop and not moved:
            images = _moved(images, self.crop)
        if self.flip:
            mirrored = torch.rand(len(images)) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        return _cut_out(images, self.cutout) if self.cutout else images


def _moved(images: Tensor, pixels: int) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, count))
    rows = (torch.arange(height) + down[:, None])[:, :, None]
    columns = (torch.arange(width) + right[:, None])[:, None, :]
    picked = padded[torch.arange(count)[:, None, None], :, rows, columns]
    return picked.permute(0, 3, 1, 2).contiguous()


def _cut_out(images: Tensor, side: int) -> Tensor:
    """The square's centre is anywhere in the image, so part of it may lie outside."""
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        first = torch.randint(0, length, (count, 1)) - side // 2
        places = torch.arange(length)
        inside.append((places >= first) & (places < first + side))
    hidden = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hidden, 0.0)


class Examples(Dataset[Batch]):
    """Images of a split as a model takes them; read a batch at a time, which is how a ``DataLoader`` asks.

    Parameters
    ----------
    split, preprocess:
        The images, and how they are made.
    augment:
        Random changes, for training; None: none.
    """

    def __init__(self, split: Split, preprocess: Preprocess, augment: Augment | None = None) -> None:
        if split.pixels is not None:
            preprocess.check_channels(split.pixels.shape[1])
        self.split, self.preprocess, self.augment = split, preprocess, augment

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images (N, C, H, W), normalised, and labels (N,)."""
        chosen = torch.tensor(indices)
        cropped = self.augment is not None and self.augment.crop > 0 and self.split.pixels is None
        if self.split.pixels is not None:
            pixels = self.preprocess.fitted(self.split.pixels[chosen])
        else:
            make = self._random_part if cropped else self.preprocess.pixels
            pixels = torch.stack([read_pixels(self.split.files[index], make) for index in indices])
        images = self.preprocess.normalise(pixels)
        if self.augment is not None:
            images = self.augment(images, moved=cropped)
        return images, self.split.labels[chosen]

    def _random_part(self, image: Image.Image) -> Tensor:
        reduce(image, 4 * self.preprocess.size)  # the least part is about half as wide
        image = in_bytes(image, self.preprocess.channels)
        crop = RandomResizedCrop(self.preprocess.size, scale=(_LEAST_AREA, 1.0))
        array = torch.from_numpy(np.array(crop(image)))
        return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def _whole(batch: Any) -> Any:
    """What a ``DataLoader`` makes of a batch that is one already."""
    return batch


def batches(
    split: Split, preprocess: Preprocess, batch_size: int, augment: Augment | None = None, *, workers: int = 0
) -> DataLoader[Batch]:
    """A loader of (images, labels): shuffled and changed where there is an `augment`, else in order.

    A last batch of one image is left out of shuffled ones: batch norm can't train on it.

    Parameters
    ----------
    workers:
        Processes that read ahead.
    """
    training = augment is not None
    return DataLoader(
        Examples(split, preprocess, augment), batch_size, shuffle=training, collate_fn=_whole, num_workers=workers,
        drop_last=training and len(split) > batch_size and len(split) % batch_size == 1,
    )  # fmt: skip
