"""States that a forward keeps in a tensor of its own making, chunk by chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.base import Tokens, zoo


class Chunks(nn.Module):
    """Two heads of linear attention in chunks: each reads the state that those before it left (xLSTM's)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.chunk = 2, 2
        self.q, self.k, self.v = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(16, 20)
        self.proj = nn.Linear(20, 16)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def states(self, k: Tensor, v: Tensor) -> Tensor:
        """The state before each chunk, all of them along one axis; the first one is zeros written over zeros."""
        b, heads, n, d = k.shape
        chunks = n // self.chunk
        states = torch.zeros(b, heads, (chunks + 1) * d, v.shape[-1], dtype=k.dtype)
        state = torch.zeros(b, heads, d, v.shape[-1], dtype=k.dtype)
        for index in range(chunks):
            states[:, :, index * d : (index + 1) * d] = state
            part = slice(index * self.chunk, (index + 1) * self.chunk)
            state = 0.9 * state + k[:, :, part].mT @ v[:, :, part]
        states[:, :, -d:] = state
        return states[:, :, :-d].view(b, heads, chunks, d, v.shape[-1])

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        b, heads, n, _ = q.shape
        q, k, v = (part.view(b, heads, n // self.chunk, self.chunk, -1) for part in (q, k, v))
        within = torch.tril(q @ k.mT) @ v
        before = q @ self.states(k.flatten(2, 3), v.flatten(2, 3))
        return self.proj((within + before).flatten(2, 3).transpose(1, 2).flatten(2))


@zoo
class StatesInARow(Tokens):
    """Queries, keys and values are cut in each head, though their states lie in one tensor that the forward makes."""

    shape, cuts, Mixer = (2, 6, 10), ("embed", "mixer.q", "mixer.k", "mixer.v", "mixer.proj"), Chunks


@zoo
class WrittenOverOtherNumbers(Tokens):
    """Half of what the forward makes holds another number: places differ, and which channel meets which is fixed."""

    cuts, keeps = ("embed",), ("mixer.up", "fc")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 12), nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.up(x))
            scale = torch.ones(x.shape[-1], dtype=x.dtype)
            scale[: x.shape[-1] // 2] = torch.full((x.shape[-1] // 2,), 3.0, dtype=x.dtype)
            return self.down(x * scale)
