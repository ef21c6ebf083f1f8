"""Where networks of the extended grammar begin and end beyond the basic ways: contexts, nested inputs, more heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.attending import image_of, tokens_of
from tests.blocks.base import Place, conv, conv_bn_act, parameter
from tests.blocks.ends import CLASSES, FEATURES

CONTEXT = 3  # how many vectors a context has
OUTLETS = ("cosine", "recurrent", "queried", "tied", "maps", "nested", "shared", "distances")
ENTRIES = ("context", "nested", "masked")


class Entry(nn.Module):
    """A second input joins: vectors that are attended to, a map inside nested dicts, a mask."""

    def __init__(self, kind: str, place: Place, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "context":
            self.q = nn.Linear(place.channels, 2 * width)
            self.k, self.v = nn.Linear(FEATURES, 2 * width), nn.Linear(FEATURES, 2 * width)
            self.proj = nn.Linear(2 * width, place.channels)
        elif kind == "nested":
            self.enter = conv(place, 2, width, 3, padding=1)
            self.gate = conv(place, width, place.channels, 1)
        else:
            self.token = parameter(1, place.channels, *(1,) * place.dims)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        if self.kind == "context":
            heads = [z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (self.q(tokens_of(x)), self.k(y), self.v(y))]
            out = F.scaled_dot_product_attention(*heads)
            return x + image_of(self.proj(out.transpose(1, 2).flatten(2)), x)
        y = F.interpolate(y, size=x.shape[2:])
        if self.kind == "nested":
            return x * torch.sigmoid(self.gate(F.relu(self.enter(y))))
        return torch.where(y[:, :1] > 0, x, self.token)


class Outlet(nn.Module):
    """From the last channels to the outputs."""

    def __init__(self, kind: str, place: Place, width: int) -> None:
        super().__init__()
        self.kind = kind
        channels = place.channels
        self.enter = conv(place, channels, width, 1)
        if kind in ("cosine", "distances"):
            self.prototypes, self.scale = parameter(CLASSES, width), nn.Parameter(torch.tensor(2.0))
        elif kind == "recurrent":
            self.rnn = nn.GRU(width, width + 1, batch_first=True)
            self.classifier: nn.Module = nn.Linear(width + 1, CLASSES)
        elif kind == "queried":
            self.query = nn.Parameter(torch.randn(1, 2, 2 * width))
            self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True, kdim=width, vdim=width)
            self.classifier = nn.Linear(4 * width, CLASSES)  # a query that is cut would still count in a mean
        elif kind == "tied":
            self.labels = nn.Embedding(CLASSES, width)
        elif kind == "nested":
            self.towers = nn.ModuleDict({"boxes": conv_bn_act(place, width, width), "masks": nn.Identity()})
            self.heads = nn.ModuleDict({name: conv(place, width, 2, 1) for name in self.towers})
        else:
            self.coarse = conv_bn_act(place, width, width, 1)
            self.classifier = conv(place, width, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kind == "nested":
            return {"dense": {name: [self.heads[name](self.towers[name](y))] for name in self.towers}}
        if self.kind == "maps":
            pooled = self.coarse(y)
            return [self.classifier(y), (self.classifier(pooled), {"sum": pooled.flatten(2).sum((1, 2))})]
        if self.kind == "shared":
            return self.classifier(F.relu(y)), self.classifier(self.coarse(y) + y)
        return self.pooled(y)

    def pooled(self, y: Tensor) -> Any:
        if self.kind == "recurrent":
            return self.classifier(self.rnn(tokens_of(y))[0][:, -1])
        if self.kind == "queried":
            t = tokens_of(y)
            return self.classifier(self.attention(self.query.expand(y.shape[0], -1, -1), t, t)[0].flatten(1))
        z = y.flatten(2).mean(2)
        if self.kind == "cosine":
            return self.scale * F.linear(F.normalize(z, dim=1), F.normalize(self.prototypes, dim=1))
        if self.kind == "distances":
            return torch.cdist(z, self.prototypes) * self.scale
        return z @ self.labels.weight.t()
