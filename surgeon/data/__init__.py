"""Data: images with labels, from folders or from a local copy of CIFAR; batches of them for training and for judging.

Nothing is downloaded, nothing is unpickled.
"""

from surgeon.data.batches import Augment, Examples, batches
from surgeon.data.folders import SUFFIXES, scan, told
from surgeon.data.preprocess import Preprocess
from surgeon.data.sources import CIFAR, Data, Split, hold_out, open_data

__all__ = [
    "CIFAR", "SUFFIXES", "Augment", "Data", "Examples", "Preprocess", "Split", "batches", "hold_out", "open_data",
    "scan", "told",
]  # fmt: skip
