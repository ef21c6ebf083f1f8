"""How a block of the extended grammar stands among the others: in a residual, a concatenation, called twice..."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.utils.checkpoint import checkpoint

from tests.blocks.base import Place, block, conv, digits

WRAPS = ("", "", "", "", "residual", "cat", "gate", "beside", "twice", "checkpoint", "excite")


def resized(y: Tensor, size: tuple[int, ...]) -> Tensor:
    """`y` at another spatial size, where it has one."""
    return y if tuple(y.shape[2:]) == size else F.interpolate(y, size=size)


class Wrapped(nn.Module):
    """`inner` in the middle of something that many networks have around their blocks.

    residual: its result, through a 1x1 convolution if need be, is added to what arrived; cat: both are concatenated;
    gate: it gates what arrived; beside: a convolution runs beside it and is added; twice: the same module again;
    checkpoint: under activation checkpointing; excite: squeeze-excite behind it.
    """

    def __init__(self, kind: str, inner: nn.Module, place: Place, out: Place) -> None:
        super().__init__()
        self.inner, self.same = inner, place == out
        self.kind = "residual" if kind == "twice" and not self.same else kind
        self.fit: nn.Module | None = None
        if self.kind in ("residual", "gate") and place.channels != out.channels:
            self.fit = conv(place, out.channels, place.channels, 1)
        if self.kind == "beside":
            self.fit = conv(place, place.channels, out.channels, 3, padding=1)
        if self.kind == "excite":
            squeezed = max(2, out.channels // 2)
            self.fit = nn.Sequential(
                nn.Linear(out.channels, squeezed), nn.ReLU(), nn.Linear(squeezed, out.channels), nn.Sigmoid()
            )

    def forward(self, x: Tensor) -> Any:
        if self.kind == "checkpoint":
            return checkpoint(self.inner, x, use_reentrant=False)
        y = self.inner(x)
        if self.kind == "twice":
            return self.inner(y)
        if self.kind == "excite":
            assert self.fit is not None
            gate = self.fit(y.flatten(2).mean(2))
            return y * gate.view(*gate.shape, *(1,) * (y.ndim - 2))
        if self.kind == "beside":
            assert self.fit is not None
            return y + resized(F.relu(self.fit(x)), tuple(y.shape[2:]))
        y = resized(y, tuple(x.shape[2:]))
        if self.kind == "cat":
            return torch.cat((x, y), 1)
        y = y if self.fit is None else self.fit(y)
        return x + y if self.kind == "residual" else x * torch.sigmoid(y)


@block(dims=(2, 3), extended=True)
class ToTokens(nn.Module):
    """The image stage ends: positions in a row, with learnt places added; all that follows sees tokens."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, norm = digits(option, 3, 2)
        self.linear, self.position = nn.Linear(place.channels, width), nn.Parameter(torch.randn(1, place.pixels, width))
        self.norm: nn.Module = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        t = self.linear(x.flatten(2).transpose(1, 2))
        if self.kind == 0:
            t = t + self.position
        elif self.kind == 1:
            t = t + self.position[:, : t.shape[1]].expand(x.shape[0], -1, -1)
        return self.norm(t).transpose(1, 2)


@block(dims=(1,), extended=True)
class ToImage(nn.Module):
    """The token stage ends: the row becomes an image, as near to a square as it can be."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 2)
        self.height = max(d for d in range(1, math.isqrt(place.pixels) + 1) if place.pixels % d == 0)
        self.leave = nn.Conv2d(place.channels, width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        n, c, t = x.shape
        if self.kind:
            return self.leave(x.unflatten(2, (self.height, -1)))  # type: ignore[no-untyped-call]
        return self.leave(x.transpose(1, 2).reshape(n, self.height, t // self.height, c).permute(0, 3, 1, 2))


#: Blocks behind which the data has another number of axes.
STAGES = {"ToTokens": 1, "ToImage": 2}
