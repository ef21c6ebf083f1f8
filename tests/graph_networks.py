"""Networks whose forward spells out widths; made by name in tests of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it


class Written(nn.Module):
    """Stem, a line with numbers in it, a last convolution, and a head."""

    width: ClassVar[int] = 16
    arrives: ClassVar[int | None] = None

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int = 16, arrives: int | None = None) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(arrives or width, 8, 3, padding=1)
        self.fc, self.middle = nn.Linear(8, 5), middle

    def forward(self, x: Tensor) -> Any:
        x = self.middle(torch.relu(self.stem(x)))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def heads(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    y = x.view(b, 4, 4, h, w)
    return (y * torch.sigmoid(y.sum(2, keepdim=True))).reshape(b, 16, h, w)


def star(x: Tensor) -> Tensor:
    y = x.view(x.shape[0], 4, 4, *x.shape[2:])
    return (y * torch.sigmoid(y.sum(2, keepdim=True))).flatten(1, 2)


def halves(x: Tensor) -> Tensor:
    a, b = torch.split(x, [16, 16], 1)
    return a * torch.sigmoid(b)


def by_size(x: Tensor) -> Tensor:
    a, b = torch.split(x, 16, 1)
    return a * torch.sigmoid(b)


def thirds(x: Tensor) -> Tensor:
    a, b, c = torch.split(x, [12, 8, 4], 1)
    return torch.cat((c, torch.tanh(a), torch.relu(b)), 1)


def checked(x: Tensor) -> Tensor:
    assert x.shape[1] == 16
    return torch.tanh(x)


def refused(x: Tensor) -> Tensor:
    if x.shape[1] != 16:
        raise ValueError("16 channels, please")
    return torch.tanh(x)


def added(x: Tensor) -> Tensor:
    return x + torch.zeros(x.shape[0], 16, 1, 1, dtype=x.dtype)


#: What stands in the line, how wide the stem is, and what arrives behind it.
LINES: dict[str, tuple[Callable[[Tensor], Tensor], int, int]] = {
    "heads": (heads, 16, 16),
    "star": (star, 16, 16),
    "view": (lambda x: x.view(x.shape[0], 16, -1).view_as(x) * 2, 16, 16),
    "split": (halves, 32, 16),
    "split by size": (by_size, 32, 16),
    "uneven split": (thirds, 24, 24),
    "first channels": (lambda x: x[:, :16] + 1, 24, 16),
    "slices": (lambda x: torch.cat([x[:, 8:], x[:, :8]], 1), 16, 16),
    "narrow and a negative slice": (lambda x: x.narrow(1, 0, 8) + x[:, -8:], 16, 8),
    "zeros": (added, 16, 16),
    "checked": (checked, 16, 16),
    "refused": (refused, 16, 16),
}


class Normed(nn.Module):
    """Functional norms, and a depthwise convolution, with their sizes as literals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.weight, self.bias = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))
        self.depth = nn.Parameter(torch.randn(16, 1, 3, 3) * 0.3)

    def forward(self, x: Tensor) -> Any:
        x = F.conv2d(torch.relu(self.stem(x)), self.depth, None, 1, 1, 1, 16)
        x = F.layer_norm(x.movedim(1, -1), (16,), self.weight, self.bias)
        return self.fc(torch.relu(x).mean((1, 2)))


class Flattened(nn.Module):
    """``x.view(-1, 12 * 4 * 4)`` in front of a Linear layer; other image sizes don't fit the dense one either."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.hidden, self.fc = nn.Linear(12 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(torch.relu(self.second(torch.relu(self.first(x)))), 2)
        x = F.dropout(x.view(-1, 12 * 4 * 4), 0.3, self.training)
        return self.fc(torch.relu(self.hidden(x)))


class Attention(nn.Module):
    """``reshape(b, n, 3, 4, 8)`` and back."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, 32))


class Tokens(nn.Module):
    """Patches, attention blocks and a head."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 5)
        self.blocks = nn.ModuleList(Attention() for _ in range(blocks))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean(1))


class ByTheData(nn.Module):
    """Its way depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).mean((2, 3))
        if x.sum() > 0:
            x = x * 2
        return self.fc(x)


def flattened() -> nn.Module:
    return Flattened()
