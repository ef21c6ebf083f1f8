"""The handwritten digits that come with scikit-learn: small enough to train on within seconds, and always there."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["read_digits"]

_BRIGHTEST = 16


def read_digits() -> tuple[Tensor, Tensor]:
    """Pixels, uint8 (1797, 1, 8, 8), and labels, int64 (1797,) (Alpaydin & Kaynak 1998, the UCI test part)."""
    from sklearn.datasets import load_digits  # late: half a second of import that nothing else here needs

    found = load_digits()
    pixels = torch.from_numpy(found.images) * (255 / _BRIGHTEST)
    return pixels.round().to(torch.uint8)[:, None], torch.from_numpy(found.target).long()
