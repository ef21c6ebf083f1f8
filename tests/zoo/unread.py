"""Layers whose result nobody reads in eval mode: they run all the same, so what they read must fit them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import Tokens, ZooNetwork, conv, zoo


@zoo
class UnreadHead(ZooNetwork):
    """An auxiliary head that is computed in either mode and returned in train mode: it is cut along its input."""

    cuts, keeps = ("stem", "last"), ("aux", "fc")
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"aux.weight": (4, 6, 1, 1), "norm.weight": (4,)}
    pins: ClassVar[dict[str, str]] = {"aux": "its result isn't read"}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)
        self.aux, self.norm = conv(12, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        aux = torch.relu(self.norm(self.aux(stem)))
        y = self.fc(torch.relu(self.last(stem)).mean((2, 3)))
        return {"y": y, "aux": aux} if self.training else y


@zoo
class UnreadTwice(ZooNetwork):
    """Two unread layers in a row: the first is cut, the second along it; another is called twice, and read once."""

    cuts, keeps = ("stem", "middle", "last"), ("aux", "fc")
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"aux.weight": (4, 10, 1, 1)}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.aux = conv(3, 12), conv(12, 20), conv(20, 4, 1)
        self.last, self.fc = conv(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        self.aux(torch.relu(self.middle(stem)))
        self.last(stem.flip(2))
        return self.fc(torch.relu(self.last(stem)).mean((2, 3)))


@zoo
class WaveNet(ZooNetwork):
    """The shortcut behind the last block is computed, though no block follows."""

    shape = (2, 1, 32)
    cuts = ("first", "gates.0", "gates.2", "residuals.0", "residuals.2", "skips.0", "skips.2", "last")
    keeps = ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.fc = nn.Conv1d(1, 16, 1), nn.Conv1d(24, 12, 1), nn.Conv1d(12, 5, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**k) for k in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(16, 24, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x, skip = self.first(x), torch.zeros((), dtype=x.dtype)
        for block, (gate, residual, to_skip) in enumerate(zip(self.gates, self.residuals, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**block, 0))).chunk(2, 1)
            gated = a.tanh() * b.sigmoid()
            x, skip = x + residual(gated), skip + to_skip(gated)
        return self.fc(torch.relu(self.last(torch.relu(skip))))


@zoo
class UnreadAttention(Tokens):
    """Attention over memory whose last update isn't read."""

    cuts = ("embed", "mixer.value", "mixer.up")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
            self.up, self.down = nn.Linear(16, 20), nn.Linear(20, 16)

        def forward(self, x: Tensor) -> Any:
            memory = x
            for _ in range(2):
                weights = (self.query(x) @ self.key(memory).transpose(1, 2)).softmax(-1)
                x = x + weights @ self.value(memory)
                memory = memory + self.down(torch.relu(self.up(memory)))
            return x
