"""Gates, attention and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.norms import ChannelsFirstNorm
from tests.zoo.base import ZooNetwork, conv, zoo


@zoo
class SqueezeExcite(ZooNetwork):
    """Linear layers and a view back to (N, C, 1, 1)."""

    cuts, keeps = ("conv", "squeeze", "excite"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = conv(3, 16), nn.Linear(16, 4), nn.Linear(4, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        n, c = x.size(0), x.size(1)
        scale = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).view(n, c))))
        return self.fc((x * torch.sigmoid(scale).view(n, c, 1, 1)).mean((2, 3)))


@zoo
class SpatialGate(ZooNetwork):
    """A map of one channel gates all: it ties none of them together."""

    cuts, keeps = ("conv",), ("gate", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.fc = conv(3, 16), conv(16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        return self.fc((x * torch.sigmoid(self.gate(x))).mean((2, 3)))


@zoo
class GatedLinear(ZooNetwork):
    """F.glu: a channel is a value and its gate."""

    cuts, keeps = ("conv",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 24), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.glu(self.conv(x), dim=1).mean((2, 3)))


@zoo
class FusedAttention(ZooNetwork):
    """One Linear layer makes q, k and v of four heads."""

    shape, cuts, keeps = (2, 10, 12), ("embed",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.qkv = nn.Linear(12, 16), nn.Linear(16, 48)
        self.proj, self.fc = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.gelu(self.embed(x))
        n, tokens, _ = x.shape
        q, k, v = (part.view(n, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.fc(x.mean(1))


@zoo
class ExplicitAttention(ZooNetwork):
    """Separate q, k and v, softmax written out, its scale from the shape."""

    shape, cuts, keeps = (2, 10, 12), ("v",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 10)
        self.proj, self.fc = nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.q(x), self.k(x), self.v(x)
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        return self.fc((x + self.proj(weights @ v)).mean(1))


@zoo
class LayerNormLast(ZooNetwork):
    """A transformer's MLP behind a LayerNorm."""

    shape, cuts, keeps = (2, 10, 12), ("embed", "up"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 16), nn.LayerNorm(16)
        self.up, self.down, self.fc = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.fc(x.mean(1))


@zoo
class LayerNormFirst(ZooNetwork):
    """Layer norm over axis 1, by hand."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.fc = conv(3, 16), ChannelsFirstNorm(16), conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(self.norm(self.conv(x)))).mean((2, 3)))


@zoo
class GroupNormed(ZooNetwork):
    """Four groups of four: they lose evenly, or as a whole."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.fc = conv(3, 16), nn.GroupNorm(4, 16), conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.silu(self.norm(self.conv(x))))).mean((2, 3)))


@zoo
class InstanceNormed(ZooNetwork):
    """Instance norm without parameters."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last, self.fc = conv(3, 16), nn.InstanceNorm2d(16), conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.relu(self.norm(self.conv(x))))).mean((2, 3)))
