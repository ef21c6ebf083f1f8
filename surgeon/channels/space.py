"""The numbering of labels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.rules import Plane


@dataclass
class Space:
    """The numbering of labels: every position of every labelled axis of every floating-point parameter or buffer.

    Attributes
    ----------
    starts, sizes:
        First label and number of labels of each place; a place is a ``(tensor name, axis)``.
    index:
        Number of each place.
    """

    places: list[tuple[str, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    planes: dict[str, tuple[Plane, ...]] = field(default_factory=dict)
    total: int = 1
    index: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, name: str, axis: int, size: int) -> Tensor:
        """Number `size` new labels for axis `axis` of tensor `name`."""
        self.index[name, axis] = len(self.places)
        self.places.append((name, axis))
        self.starts.append(self.total)
        self.sizes.append(size)
        self.total += size
        return torch.arange(self.total - size, self.total)

    def shrink(self, count: int) -> None:
        """Keep the first `count` places: the labels of the others are nobody's."""
        if count < len(self.places):
            self.total = self.starts[count]
            self.index = dict(list(self.index.items())[:count])
            del self.places[count:], self.starts[count:], self.sizes[count:]

    def place_of(self, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Index into :attr:`places` of each label; -1 of :data:`FIXED`."""
        found: np.ndarray[Any, Any] = self._place[labels]
        return found

    @functools.cached_property
    def _place(self) -> np.ndarray[Any, Any]:
        """The place of every label, once all are numbered."""
        return np.concatenate([[-1], np.repeat(np.arange(len(self.sizes)), self.sizes)])
