"""Attention of the extended grammar that knows positions: rotations, tables, slopes, shifted windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.attending import HEADS, Projections, image_of, tokens_of
from tests.blocks.base import Place, block, digits


@block(extended=True)
class Rotary(nn.Module):
    """Queries and keys turned pair by pair: halves by slice or chunk, neighbours, a part of the head only."""

    inv_freq: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.kind, source, split = digits(option, 6, 4, 6, 4)
        self.num_heads = HEADS[heads]
        self.head_dim = 4 * max(1, width // self.num_heads // 4)
        self.projections = Projections(place.channels, self.num_heads, self.head_dim, source, split)
        self.rotary_dim = self.head_dim // 2 if self.kind == 3 else self.head_dim
        self.register_buffer("inv_freq", torch.ones(self.rotary_dim // 2))
        self.proj = nn.Linear(self.num_heads * self.head_dim, place.channels)

    def halves(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            half = x.shape[-1] // 2
            return torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((-second, first), dim=-1)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.inv_freq[None]
        if self.kind == 2:
            even, odd = x[..., ::2], x[..., 1::2]
            turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
            return torch.stack(turned, dim=-1).flatten(-2)
        angles = torch.cat((angles, angles), dim=-1)
        if self.kind == 3:
            first, rest = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
            return torch.cat((first * angles.cos() + self.halves(first) * angles.sin(), rest), dim=-1)
        return x * angles.cos() + self.halves(x) * angles.sin()

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.projections(tokens_of(x))
        out = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return x + image_of(self.proj(out.transpose(1, 2).flatten(2)), x)


@block(extended=True)
class Biased(nn.Module):
    """A bias for each head: a table by relative position, an embedding of buckets, slopes, one whole parameter."""

    index: Tensor
    slopes: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.kind, source, split, self.core = digits(option, 6, 5, 6, 4, 2)
        self.num_heads, n = HEADS[heads], place.pixels
        self.head_dim = max(2, width // self.num_heads)
        self.scale = self.head_dim**-0.5
        self.projections = Projections(place.channels, self.num_heads, self.head_dim, source, split)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        self.register_buffer("index", distance + n - 1)
        if self.kind in (0, 1):
            self.table = nn.Parameter(torch.randn(2 * n - 1, self.num_heads))
        elif self.kind == 2:
            self.buckets = nn.Embedding(8, self.num_heads)
        elif self.kind == 3:
            self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, self.num_heads + 1.0))
        else:
            self.whole = nn.Parameter(torch.randn(1, self.num_heads, n, n))
        self.proj = nn.Linear(self.num_heads * self.head_dim, place.channels)

    def bias(self, n: int) -> Tensor:
        if self.kind == 0:
            return self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.kind == 1:
            return self.table[self.index].permute(2, 0, 1)[None]
        if self.kind == 2:
            distance = self.index - n + 1
            found: Tensor = self.buckets(distance.abs().clamp(max=3) + 4 * (distance > 0))
            return found.permute(2, 0, 1).unsqueeze(0)
        if self.kind == 3:
            return (self.slopes[:, None, None] * (self.index - n + 1).abs().neg())[None]
        return self.whole

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.projections(tokens_of(x))
        bias = self.bias(q.shape[2])
        if self.core:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        else:
            out = (q * self.scale @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
        return x + image_of(self.proj(out.transpose(1, 2).flatten(2)), x)


@block(dims=(2,), divisor=12, extended=True)
class SwinLike(nn.Module):
    """A whole Swin block with the head size from the shape, then patch merging or an MLP."""

    index: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.shift, self.cosine, merge = digits(option, 4, 2, 2, 2)
        channels, even = place.channels, all(extent % 2 == 0 for extent in place.size)
        self.num_heads, self.side = (2, 3, 4, 6)[heads], 2 if even else 1
        self.scale = (channels // self.num_heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.table = nn.Parameter(torch.randn((2 * self.side - 1) ** 2, self.num_heads))
        inside = torch.cartesian_prod(torch.arange(self.side), torch.arange(self.side))
        distance = inside[:, None] - inside[None] + self.side - 1
        self.register_buffer("index", distance[..., 0] * (2 * self.side - 1) + distance[..., 1])
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels))
        self.reduction = nn.Linear(4 * channels, width, bias=False) if merge and even else None

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.cosine:
            weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        else:
            weights = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        weights = torch.softmax(weights + bias.unsqueeze(0), dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))
        return out

    def windows(self, x: Tensor) -> Tensor:
        (b, h, w, c), s = x.shape, self.side
        y = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, s * s, c)
        y = self.attend(y).view(b, h // s, w // s, s, s, -1)
        return y.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)

    def forward(self, x: Tensor) -> Any:
        y = x.permute(0, 2, 3, 1)
        z = self.norm1(y)
        if self.shift:
            z = torch.roll(z, shifts=(-1, -1), dims=(1, 2))
        z = self.windows(z.contiguous())
        if self.shift:
            z = torch.roll(z, shifts=(1, 1), dims=(1, 2))
        y = y + z
        y = y + self.mlp(self.norm2(y))
        if self.reduction is not None:
            parts = [y[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            y = self.reduction(torch.cat(parts, -1))
        return y.permute(0, 3, 1, 2)
