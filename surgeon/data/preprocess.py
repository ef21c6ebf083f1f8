"""How an image becomes what a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from PIL import Image
from torch import Tensor

from surgeon.data.folders import told
from surgeon.data.pixels import in_bytes
from surgeon.errors import InputError

__all__ = ["Preprocess", "read_pixels", "reduce"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 4096  # pixels a side that a file may ask for


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a model's input: short side to `resize`, centre crop of `size` pixels, normalised.

    The defaults are ImageNet's. Files may have 8 or 16 bits a channel; alpha is dropped, as torchvision does.
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
        reduce(image, 2 * self.resize)
        image = in_bytes(image, self.channels)
        scale = self.resize / min(image.size)
        width, height = (max(self.size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        array = torch.from_numpy(np.array(image))
        return array[None] if array.ndim == 2 else array.permute(2, 0, 1).contiguous()

    def check_channels(self, count: int) -> None:
        """Refuse images in memory that the model can't take.

        Raises
        ------
        InputError
            If they have neither as many channels as the model takes, nor one, of which it can be given several.
        """
        if count not in (1, self.channels):
            raise InputError(f"the model takes images of {self.channels} channel(s), these have {count}")

    def fitted(self, pixels: Tensor) -> Tensor:
        """Square images (N, C, H, W), uint8, of the size and with as many channels as the model takes.

        Raises
        ------
        InputError
            As :meth:`check_channels`.
        """
        self.check_channels(pixels.shape[1])
        pixels = pixels.expand(-1, self.channels, -1, -1)
        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        scaled = F.interpolate(pixels.float(), size=(self.size, self.size), mode="bilinear", align_corners=False)
        return scaled.round().to(torch.uint8)

    def normalise(self, pixels: Tensor) -> Tensor:
        """From uint8 (N, C, H, W) to what the model takes."""
        mean = torch.tensor(self.mean[: self.channels], device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std[: self.channels], device=pixels.device).view(1, -1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for a file's header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> Preprocess | None:
        """From what :meth:`to_dict` gave; None for anything that can't be one: files are data of unknown origin."""
        try:
            size, resize, channels = (int(fields[name]) for name in ("size", "resize", "channels"))
            mean, std = (tuple(float(number) for number in fields[name]) for name in ("mean", "std"))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        fits = 0 < size <= resize <= _LARGEST and channels in (1, 3) and len(mean) == len(std) >= channels
        fits = fits and all(abs(number) < _LARGEST for number in mean) and all(0 < s < _LARGEST for s in std)
        return cls(size, resize, mean, std, channels) if fits else None


def reduce(image: Image.Image, side: int) -> None:
    """Have a large JPEG that isn't read yet decoded at a half, a quarter or an eighth, but no side below `side` pixels.

    A photograph of 12 megapixels takes a fraction of the time then. Other images stay as they are.
    """
    image.draft(None, (side, side))


def read_pixels(path: Path, make: Callable[[Image.Image], Tensor]) -> Tensor:
    """What `make` makes of an image file.

    Raises
    ------
    InputError
        If it can't be read.
    """
    try:
        with Image.open(path) as image:
            return make(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise InputError(f"{path}: can't be read ({told(problem)}); remove the file") from problem
