"""Folders of small images whose class is their colour, which any network learns in a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 40), "red": (200, 40, 30)}


def draw(folder: Path, count: int, *, side: int = 16, seed: int = 0, classes: int = 2) -> Path:
    """``folder/COLOUR/N.png``: noisy squares, `count` of each colour."""
    chance = np.random.default_rng(seed)
    for name, colour in list(COLOURS.items())[:classes]:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = chance.integers(-25, 25, (side, side + 2, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder
