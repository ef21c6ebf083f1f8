"""Small networks, one per difficulty, that say themselves what must be cut and what must stay.

`cuts` names layers that must lose filters at ratio 0.5, `keeps` layers that must not lose any; a layer in neither
may go either way. Each takes one input of `shape` unless it overrides `example`.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn


class ZooNetwork(nn.Module):
    """What every network of the zoo declares."""

    shape: ClassVar[tuple[int, ...]] = (2, 3, 8, 8)
    cuts: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def example(cls) -> tuple[Tensor, ...]:
        """The example inputs, float64."""
        generator = torch.Generator().manual_seed(7)
        return (torch.randn(cls.shape, generator=generator, dtype=torch.float64),)


ZOO: dict[str, type[ZooNetwork]] = {}
T = TypeVar("T", bound=type[ZooNetwork])


def zoo(cls: T) -> T:
    """Enter a network into the zoo under its class name."""
    if cls.__name__ in ZOO:
        raise ValueError(f"two networks are called {cls.__name__}")
    ZOO[cls.__name__] = cls
    return cls


def conv(channels: int, width: int, kernel: int = 3, **kwargs: Any) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, **kwargs)
