"""What Pillow opens, with 8 bits a channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["check_range", "in_bytes"]

#: Formats whose grey images of more than 8 bits Pillow spreads over 16, also where it keeps them in 32.
_SPREAD = ("PNG", "PPM")
_BITS_PER_SAMPLE = 258  # TIFF's tag


def in_bytes(image: Image.Image, channels: int) -> Image.Image:
    """The image as ``L`` (1 channel) or ``RGB``; 16 bits of grey are scaled, which Pillow would clip to white.

    Alpha is dropped, as torchvision's loader does: what lies under transparent places counts.

    Raises
    ------
    ValueError
        As :func:`check_range`.
    """
    check_range(image)
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def check_range(image: Image.Image) -> None:
    """Refuse an image of which nobody knows what its white is.

    Raises
    ------
    ValueError
        If its numbers are floating, or have 32 bits, or 12 of 16.
    """
    tags: Any = getattr(image, "tag_v2", {})
    deep = image.mode == "F" or (image.mode == "I" and image.format not in _SPREAD)
    if deep or (image.mode.startswith("I;16") and tags.get(_BITS_PER_SAMPLE, (16,)) != (16,)):
        raise ValueError(f"its mode {image.mode} doesn't say which number is white; save it with 8 or 16 bits")
