"""Heads of which a part turns with the position, at angles that several layers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.base import ZooNetwork, zoo


class PartlyTurned(nn.Module):
    """Two heads of eight, of which three pairs turn; the number of tokens is worked out from the size of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 8
        self.q, self.k, self.v = (nn.Linear(12, 16, bias=False) for _ in range(3))
        self.proj = nn.Linear(16, 12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)

    def turn(self, x: Tensor, angles: Tensor) -> Tensor:
        width = 2 * angles.shape[-1]
        even, odd, rest = x[..., 0:width:2], x[..., 1:width:2], x[..., width:]
        turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
        return torch.cat((torch.stack(turned, dim=-1).flatten(-2), rest), dim=-1)

    def forward(self, x: Tensor, angles: Tensor) -> Any:
        q, k, v = (
            self.turn(self.split(self.q(x)), angles),
            self.turn(self.split(self.k(x)), angles),
            self.split(self.v(x)),
        )
        mixed = torch.softmax(q @ k.mT / 3, dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


@zoo
class PartlyTurnedHeads(ZooNetwork):
    """Two layers turn by the same angles, so pairs go from both; in each, the values' heads stay as wide as the keys'.

    A step takes a pair of each key and two channels of each value, or one of both that don't turn.
    """

    shape = (2, 6, 10)
    cuts = ("embed", *(f"blocks.{block}.{name}" for block in range(2) for name in "qkv"))
    keeps = ("fc",)
    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.fc = (
            nn.Linear(10, 12),
            nn.ModuleList([PartlyTurned(), PartlyTurned()]),
            nn.Linear(12, 5),
        )
        self.register_buffer("angles", 1.0 / 10.0 ** torch.arange(3))

    def forward(self, x: Tensor) -> Any:
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * self.angles
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x, angles)
        return self.fc(x.mean(1))
