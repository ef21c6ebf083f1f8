"""The table of building blocks that random networks are made of, and what the blocks share.

A block is an ``nn.Module`` built as ``Block(place, width, option)``. `place` is what arrives, `width` a
channel count, `option` one number that selects among the block's variants (0 is always the plainest, so
that hypothesis shrinks towards it). It maps ``(N, C, *size)`` to ``(N, C', *size')``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

OPTIONS = 1000  # options run from 0 to here


@dataclass(frozen=True)
class Place:
    """What arrives at a block: `channels`, and the extent of each spatial axis."""

    channels: int
    size: tuple[int, ...]

    @property
    def dims(self) -> int:
        return len(self.size)

    @property
    def pixels(self) -> int:
        return math.prod(self.size)


class Mixer(Protocol):
    """A module whose statistics run over channels and which has no ATen norm that an oracle could mask.

    It carries its own truth: `silenced` is the same computation over the channels where `mask` is true;
    `mask` has the shape of the module's ``weight``.
    """

    weight: nn.Parameter

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Entry:
    """One block of the table: what builds it, where it may stand, and what must divide its channels."""

    build: Callable[[Place, int, int], nn.Module]
    dims: tuple[int, ...]
    divisor: int
    extended: bool


BLOCKS: dict[str, Entry] = {}
T = TypeVar("T", bound=type[nn.Module])


def block(*, dims: tuple[int, ...] = (1, 2, 3), divisor: int = 1, extended: bool = False) -> Callable[[T], T]:
    """Enter a module class into the table under its own name.

    Raises
    ------
    ValueError
        If the name is taken.
    """

    def enter(cls: T) -> T:
        if cls.__name__ in BLOCKS:
            raise ValueError(f"two blocks are called {cls.__name__}")
        BLOCKS[cls.__name__] = Entry(cls, dims, divisor, extended)
        return cls

    return enter


def digits(option: int, *bases: int) -> list[int]:
    """`option` in mixed radix, least significant first: one small choice per base."""
    out = []
    for base in bases:
        option, digit = divmod(option, base)
        out.append(digit)
    return out


def even(width: int, by: int = 2) -> int:
    """The nearest multiple of `by` that is at least one `by`."""
    return max(by, width // by * by)


def conv(place: Place, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution of as many dimensions as `place` has."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[place.dims - 1](*args, **kwargs)


def bn(place: Place, width: int) -> nn.Module:
    """A batch norm of as many dimensions as `place` has."""
    return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[place.dims - 1](width)


def conv_bn_act(place: Place, channels: int, width: int, kernel: int = 3, **kwargs: Any) -> nn.Sequential:
    """The usual three."""
    first = conv(place, channels, width, kernel, padding=kernel // 2, bias=False, **kwargs)
    return nn.Sequential(first, bn(place, width), nn.ReLU(inplace=True))


ACTIVATIONS: tuple[Callable[[int], nn.Module], ...] = (
    lambda width: nn.ReLU(),
    lambda width: nn.ReLU(inplace=True),
    lambda width: nn.GELU(),
    lambda width: nn.SiLU(),
    lambda width: nn.Tanh(),
    lambda width: nn.LeakyReLU(0.1, inplace=True),
    lambda width: nn.Hardswish(),
    lambda width: nn.ELU(),
    lambda width: nn.PReLU(width),
    lambda width: nn.PReLU(),
    lambda width: nn.Softplus(),
    lambda width: nn.Mish(),
    lambda width: nn.ReLU6(),
    lambda width: nn.Sigmoid(),
    lambda width: nn.CELU(),
    lambda width: nn.Softsign(),
    lambda width: nn.Identity(),
)


def activation(index: int, width: int) -> nn.Module:
    """One of the activations people use, for `width` channels."""
    return ACTIVATIONS[index % len(ACTIVATIONS)](width)


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """`vector` (C,) shaped to stand over `like` (N, C, ...)."""
    return vector.view(1, -1, *(1,) * (like.ndim - 2))


def parameter(*shape: int) -> nn.Parameter:
    """A parameter whose values the network's own redraw will set."""
    return nn.Parameter(torch.empty(shape).uniform_(0.5, 1.5))
