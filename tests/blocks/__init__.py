"""Building blocks of random networks; importing this package fills the table ``BLOCKS``."""

from tests.blocks import convolutions, extended, gates, modern, movement, norms
from tests.blocks.base import BLOCKS, OPTIONS, Entry, Place

__all__ = ["BLOCKS", "OPTIONS", "Entry", "Place", "convolutions", "extended", "gates", "modern", "movement", "norms"]
