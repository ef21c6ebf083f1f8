"""Small networks, one per difficulty, that say themselves what must be cut and what must stay.

`cuts` names layers that must lose filters at ratio 0.5, `keeps` layers that must not lose any; a layer in neither
may go either way. `shapes` says what some parameters must be then, `pins` names layers that must stay for a reason
that holds the given words. Each takes one input of `shape` unless it overrides `example` (and `keywords`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

NOTHING: Mapping[str, Any] = MappingProxyType({})
CONSTANT: Mapping[str, str] = MappingProxyType({"stem": "constant"})  # the stem stays, for this reason


class ZooNetwork(nn.Module):
    """What every network of the zoo declares."""

    shape: ClassVar[tuple[int, ...]] = (2, 3, 8, 8)
    cuts: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = NOTHING
    pins: ClassVar[Mapping[str, str]] = NOTHING

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        """The example inputs, float64."""
        return (draw(*cls.shape),)

    @classmethod
    def keywords(cls) -> dict[str, Any]:
        """The example's keyword arguments."""
        return {}

    def prepare(self) -> None:
        """Make redrawn weights healthy, where that takes more than their size; in place."""


ZOO: dict[str, type[ZooNetwork]] = {}
T = TypeVar("T", bound=type[ZooNetwork])


def zoo(cls: T) -> T:
    """Enter a network into the zoo under its class name."""
    if cls.__name__ in ZOO:
        raise ValueError(f"two networks are called {cls.__name__}")
    ZOO[cls.__name__] = cls
    return cls


def draw(*shape: int, seed: int = 7) -> Tensor:
    """Normal numbers, float64, the same on every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(channels: int, width: int, kernel: int = 3, **kwargs: Any) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, **kwargs)


class Classifier(ZooNetwork):
    """Stem, what `middle` makes of its channels, a last convolution, and a head."""

    cuts: ClassVar[tuple[str, ...]] = ("stem", "last")
    keeps: ClassVar[tuple[str, ...]] = ("fc",)
    width: ClassVar[int] = 16  # what the stem makes
    arrives: ClassVar[int | None] = None  # what the last convolution reads, where it is another number

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, self.width)
        self.last, self.fc = conv(self.arrives or self.width, 8), nn.Linear(8, 5)

    def middle(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        x = self.middle(torch.relu(self.stem(x)))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


class Tokens(ZooNetwork):
    """An embedding of 16, `mixer` around a residual connection, and a head."""

    shape: ClassVar[tuple[int, ...]] = (2, 6, 10)
    cuts: ClassVar[tuple[str, ...]] = ("embed",)
    keeps: ClassVar[tuple[str, ...]] = ("fc",)
    Mixer: ClassVar[Any] = None  # what builds the mixer of 16 features

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(10, 16)
        self.mixer: nn.Module = type(self).Mixer()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.fc((x + self.mixer(x)).mean(1))
