"""Where random networks begin and end: stems, the meeting of a second input, heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, bn, conv, conv_bn_act

CLASSES = 5
TOKENS = 11  # size of the vocabulary
FEATURES = 6  # length of a vector that comes as second input

STEMS = ("conv", "strided", "patch", "embedding")
SECONDS = ("", "add", "cat", "film", "cross")
HEADS = ("mean", "flatten", "hidden", "pooled", "map", "upsampled", "amax", "norm", "tuple", "dict", "token")


class Stem(nn.Module):
    """From images, signals, volumes or tokens to the first channels."""

    def __init__(self, kind: str, place: Place, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "embedding":
            self.embed = nn.Embedding(TOKENS, width)
            self.position = nn.Parameter(torch.randn(place.pixels, width))
            self.linear = nn.Linear(width, width)
        elif kind == "patch":
            self.conv = conv(place, place.channels, width, 2, stride=2)
        else:
            stride = 2 if kind == "strided" else 1
            self.conv = conv(place, place.channels, width, 3, stride=stride, padding=1)
            self.norm = bn(place, width)

    def forward(self, x: Tensor) -> Any:
        if self.kind == "embedding":
            y: Tensor = self.linear(self.embed(x) + self.position)
            return F.gelu(y).transpose(1, 2)
        y = self.conv(x)
        return y if self.kind == "patch" else F.relu(self.norm(y))


class Meet(nn.Module):
    """A second input joins: another image is added, concatenated or attended to, a vector modulates (FiLM)."""

    def __init__(self, kind: str, place: Place, channels: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "film":
            self.scale = nn.Linear(FEATURES, place.channels)
            self.shift = nn.Linear(FEATURES, place.channels)
        else:
            self.enter = conv(place, channels, place.channels, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        if self.kind == "film":
            ones = (1,) * (x.ndim - 2)
            scale, shift = self.scale(y), self.shift(y)
            return x * torch.sigmoid(scale).view(*scale.shape, *ones) + shift.view(*shift.shape, *ones)
        y = self.enter(y)
        if y.shape[2:] != x.shape[2:]:
            y = F.interpolate(y, size=x.shape[2:])
        if self.kind == "add":
            return x + F.relu(y)
        if self.kind == "cat":
            return torch.cat((x, y), 1)
        q, k = x.flatten(2), F.relu(y).flatten(2)
        return x + (k @ torch.softmax(k.transpose(1, 2) @ q, 1)).view(x.shape)


class Head(nn.Module):
    """From the last channels to the outputs: a tensor, a tuple or a dict."""

    def __init__(self, kind: str, place: Place, width: int) -> None:
        super().__init__()
        self.kind = kind
        channels, flat = place.channels, place.channels * place.pixels
        self.width = width
        if kind == "hidden":
            self.classifier: nn.Module = nn.Sequential(
                nn.Flatten(), nn.Linear(flat, width), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(width, CLASSES)
            )
        elif kind == "pooled":
            pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[place.dims - 1](2)
            self.features = nn.Sequential(conv_bn_act(place, channels, width), pool)
            self.classifier = nn.Linear(width * 2**place.dims, CLASSES)
        elif kind in ("map", "upsampled"):
            self.classifier = nn.Sequential(conv_bn_act(place, channels, width), conv(place, width, CLASSES, 1))
        elif kind == "norm":
            self.norm = nn.LayerNorm(channels)
            self.classifier = nn.Linear(channels, CLASSES)
        elif kind == "token":
            self.token = nn.Parameter(torch.randn(1, 1, channels))
            self.mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels))
            self.classifier = nn.Linear(channels, CLASSES)
        else:
            self.classifier = nn.Linear(flat if kind == "flatten" else channels, CLASSES)
        if kind in ("tuple", "dict"):
            self.extra = conv(place, channels, width, 1)
            self.regressor = nn.Linear(width, 2)

    def several(self, x: Tensor) -> Any:
        logits = self.classifier(x.flatten(2).mean(-1))
        features = F.relu(self.extra(x))
        box = self.regressor(features.flatten(2).mean(2))
        if self.kind == "tuple":
            return logits, box
        return {"logits": logits, "boxes": {"values": box}}

    def forward(self, x: Tensor) -> Any:
        space = tuple(range(2, x.ndim))
        if self.kind in ("tuple", "dict"):
            return self.several(x)
        if self.kind in ("hidden", "map"):
            return self.classifier(x)
        if self.kind == "flatten":
            return self.classifier(torch.flatten(x, 1))
        if self.kind == "pooled":
            y = self.features(x)
            return self.classifier(y.contiguous().view(y.size(0), -1))
        if self.kind == "upsampled":
            return F.interpolate(self.classifier(x), scale_factor=2, mode="nearest")
        if self.kind == "amax":
            return self.classifier(torch.amax(x, dim=space))
        if self.kind == "norm":
            return self.classifier(self.norm(x.mean(space)))
        if self.kind == "token":
            t = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
            t = t + self.mlp(t)
            return self.classifier(t[:, 0] + t[:, 1:].mean(1))
        return self.classifier(x.mean(space))
