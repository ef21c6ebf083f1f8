"""Building blocks of random networks; importing this package fills the table ``BLOCKS``."""

from tests.blocks import (
    attending,
    branches,
    computed,
    constants,
    convolutions,
    extended,
    gates,
    modern,
    movement,
    norms,
    outlets,
    positions,
    sequences,
    transforms,
    wraps,
)
from tests.blocks.base import BLOCKS, OPTIONS, Entry, Place

__all__ = [
    "BLOCKS",
    "OPTIONS",
    "Entry",
    "Place",
    "attending",
    "branches",
    "computed",
    "constants",
    "convolutions",
    "extended",
    "gates",
    "modern",
    "movement",
    "norms",
    "outlets",
    "positions",
    "sequences",
    "transforms",
    "wraps",
]
