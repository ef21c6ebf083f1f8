"""Blocks in which channels gate channels: squeeze-excite, spatial attention, GLU, highway, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, bn, conv, conv_bn_act, digits, even, parameter, per_channel


@block()
class SqueezeExcite(nn.Module):
    """Squeeze-excite with 1x1 convolutions or with Linear layers and a view, behind a convolution."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        linear, hard = digits(option, 2, 2)
        squeezed = max(2, width // 3)
        self.conv = conv_bn_act(place, place.channels, width)
        self.linear = bool(linear)
        self.gate: nn.Module = nn.Hardsigmoid() if hard else nn.Sigmoid()
        if linear:
            self.fc1: nn.Module = nn.Linear(width, squeezed)
            self.fc2: nn.Module = nn.Linear(squeezed, width)
        else:
            self.fc1 = conv(place, width, squeezed, 1)
            self.fc2 = conv(place, squeezed, width, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        space = tuple(range(2, x.ndim))
        if self.linear:
            n, c = x.shape[:2]
            scale = self.gate(self.fc2(F.relu(self.fc1(x.mean(space)))))
            return x * scale.view(n, c, *(1,) * len(space))
        return self.gate(self.fc2(F.relu(self.fc1(x.mean(space, keepdim=True))))) * x


@block()
class SpatialAttention(nn.Module):
    """x times the sigmoid of a one-channel map: the map must not tie x's channels together."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.expanded, self.add = digits(option, 2, 2)
        self.conv = conv_bn_act(place, place.channels, width)
        self.map = conv(place, width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        mask = torch.sigmoid(self.map(x))
        if self.expanded:
            mask = mask.expand_as(x)
        return x + mask * x if self.add else x * mask


@block()
class Glu(nn.Module):
    """Gated linear units: F.glu, a chunk with an own gate, three ways, or two layers."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 4)
        copies = (2, 2, 3, 1)[self.kind]
        self.conv = conv(place, place.channels, copies * width, 3, padding=1)
        self.gate = conv(place, place.channels, width, 1) if self.kind == 3 else None
        self.leave = conv(place, width, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.kind == 0:
            y = F.glu(y, dim=1)
        elif self.kind == 1:
            value, gate = y.chunk(2, dim=1)
            y = value * F.silu(gate)
        elif self.kind == 2:
            a, b, c = y.chunk(3, dim=1)
            y = a * torch.sigmoid(b) + torch.tanh(c)
        else:
            assert self.gate is not None
            y = y * torch.sigmoid(self.gate(x))
        return self.leave(y)


@block()
class Highway(nn.Module):
    """gate * new + (1 - gate) * old."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 2)
        self.conv = conv(place, place.channels, place.channels, 3, padding=1)
        self.gate = conv(place, place.channels, place.channels, 1)
        self.norm = bn(place, place.channels)

    def forward(self, x: Tensor) -> Any:
        gate = torch.sigmoid(self.gate(x))
        new = F.elu(self.norm(self.conv(x)))
        if self.kind:
            return torch.lerp(x, new, gate)
        return gate * new + (1 - gate) * x


@block()
class Attention(nn.Module):
    """Multi-head attention over flattened pixels, channels last.

    The options choose between SDPA and q @ k, separate layers and a fused one (chunk, or reshape to
    (N, T, 3, heads, d)), the softmax scale, and whether a LayerNorm stands first.
    """

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.core, self.fused, heads, norm, self.scaling = digits(option, 2, 3, 3, 2, 2)
        self.heads = (1, 2, 4)[heads]
        inner = max(2, width // self.heads) * self.heads
        self.scale = (inner // self.heads) ** -0.5
        self.norm: nn.Module = nn.LayerNorm(place.channels) if norm else nn.Identity()
        if self.fused:
            self.qkv = nn.Linear(place.channels, 3 * inner)
        else:
            self.q = nn.Linear(place.channels, inner)
            self.k = nn.Linear(place.channels, inner, bias=False)
            self.v = nn.Linear(place.channels, inner)
        self.proj = nn.Linear(inner, place.channels)

    def project(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, tokens, _ = t.shape
        if self.fused == 2:
            qkv = self.qkv(t).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        parts = self.qkv(t).chunk(3, dim=-1) if self.fused else (self.q(t), self.k(t), self.v(t))
        q, k, v = (part.view(n, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.core == 0:
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.scaling else None)
        scale = self.scale if self.scaling else q.shape[-1] ** -0.5
        return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v

    def forward(self, x: Tensor) -> Any:
        t = self.norm(x.flatten(2).transpose(1, 2))
        out = self.attend(*self.project(t)).transpose(1, 2).flatten(2)
        return x + self.proj(out).transpose(1, 2).reshape(x.shape)


@block()
class ConvAttention(nn.Module):
    """Attention between pixels, channels first, q, k and v from 1x1 convolutions (as in SAGAN)."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.scaled,) = digits(option, 2)
        inner = max(2, width // 2)
        self.query = conv(place, place.channels, inner, 1)
        self.key = conv(place, place.channels, inner, 1)
        self.value = conv(place, place.channels, width, 1)
        self.leave = conv(place, width, place.channels, 1)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)
        weights = torch.bmm(q.transpose(1, 2), k)
        if self.scaled:
            weights = weights / 4.0
        out = torch.bmm(v, torch.softmax(weights, dim=-1).transpose(1, 2))
        return x + self.gamma * self.leave(out.view(x.shape[0], -1, *x.shape[2:]))


class ChannelPool(nn.Module):
    """The mean, the largest and the smallest of the scaled channels, over those that are kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels)

    def forward(self, x: Tensor) -> Any:
        x = x * per_channel(self.weight, x)
        return torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0], x.amin(1, keepdim=True)], dim=1)

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        x = (x * per_channel(self.weight, x))[:, mask]
        return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True), x.amin(1, keepdim=True)], dim=1)


@block()
class Cbam(nn.Module):
    """Mean and extremes over the channels make a spatial gate."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.enter = conv_bn_act(place, place.channels, even(width))
        self.pool, self.map = ChannelPool(even(width)), conv(place, 3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        return x * torch.sigmoid(self.map(self.pool(x)))
