"""Data: images with labels, from folders, a local copy of CIFAR or scikit-learn's digits; batches of them.

Nothing is downloaded, nothing is unpickled.
"""

from surgeon.data.batches import Augment, Examples, batches
from surgeon.data.folders import SUFFIXES, scan, told
from surgeon.data.preprocess import Preprocess
from surgeon.data.sources import CIFAR, DIGITS, Data, Split, hold_out, open_data, training_folder

__all__ = [
    "CIFAR", "DIGITS", "SUFFIXES", "Augment", "Data", "Examples", "Preprocess", "Split", "batches", "hold_out",
    "open_data", "scan", "told", "training_folder",
]  # fmt: skip
