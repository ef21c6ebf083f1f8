"""Positions: tables of relative ones, windows, rotations, class tokens, tied embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.attention import SEPARATE, SeparateHeads
from tests.zoo.base import Tokens, ZooNetwork, zoo
from tests.zoo.fused import FUSED, FusedHeads


def relative_index(side: int) -> Tensor:
    """For each pair of places of a window: the row of the table of relative positions."""
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    distance = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + side - 1
    return distance[..., 0] * (2 * side - 1) + distance[..., 1]


class WindowAttention(FusedHeads):
    """Swin's: the head size is computed from the width that arrives."""

    relative_position_index: Tensor

    def __init__(self, side: int = 2) -> None:
        super().__init__()
        self.window_size = (side, side)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, self.num_heads))
        self.register_buffer("relative_position_index", relative_index(side))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] * self.scale) @ qkv[1].transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        weights = weights + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            weights = weights.view(b // windows, windows, self.num_heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            weights = weights.view(-1, self.num_heads, n, n)
        return self.proj((weights.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(b, n, c))


class SwinBlock(nn.Module):
    """Norm, shift, windows, attention, back, MLP: channels last."""

    mask: Tensor | None

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift, self.side = shift, 2
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(16), WindowAttention(2), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        windows = torch.arange(4)[:, None, None].expand(4, 4, 4).float()
        self.register_buffer("mask", windows.contiguous() if shift else None)

    def partition(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // self.side, self.side, w // self.side, self.side, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.side * self.side, c)

    def reverse(self, x: Tensor, h: int, w: int) -> Tensor:
        b = int(x.shape[0] / (h * w / self.side / self.side))
        x = x.view(b, h // self.side, w // self.side, self.side, self.side, -1)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)

    def forward(self, x: Tensor) -> Any:
        shortcut, (_, h, w, _) = x, x.shape
        x = self.norm1(x)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.reverse(self.attn(self.partition(x), self.mask), h, w)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


@zoo
class Swin(ZooNetwork):
    """Patches, a plain and a shifted block, patch merging, another block's MLP."""

    cuts, keeps = ("patch", "blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.0", "reduction"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, 16, 2, stride=2), nn.ModuleList([SwinBlock(0), SwinBlock(1)])
        self.norm, self.reduction, self.fc = nn.LayerNorm(64), nn.Linear(64, 12, bias=False), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        parts = [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]]
        x = self.reduction(self.norm(torch.cat(parts, -1)))
        return self.fc(x.mean((1, 2)))


@zoo
class TableByHeads(Tokens):
    """``table[index].view(n, n, heads)``: the head count stands in an attribute."""

    cuts = FUSED

    class Mixer(FusedHeads):
        index: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(11, self.num_heads))
            self.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6)[None] + 5)

        def forward(self, x: Tensor) -> Any:
            (q, k, v), n = self.heads(x), x.shape[1]
            bias = self.table[self.index.reshape(-1)].view(n, n, self.num_heads).permute(2, 0, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
            return self.proj(out.transpose(1, 2).flatten(2))


@zoo
class T5Bias(Tokens):
    """A relative bias from an embedding of buckets computed in the forward; no scale."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def __init__(self) -> None:
            super().__init__()
            self.relative_attention_bias = nn.Embedding(8, self.num_heads)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            n = q.shape[2]
            distance = torch.arange(n)[None, :] - torch.arange(n)[:, None]
            buckets = distance.abs().clamp(max=3) + 4 * (distance > 0)
            bias = self.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)
            return torch.softmax(torch.matmul(q, k.transpose(3, 2)) + bias, dim=-1) @ v


@zoo
class Alibi(Tokens):
    """One slope per head, a buffer that no weight makes."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        slopes: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("slopes", 2.0 ** -torch.arange(1.0, 5.0))

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            distance = -(torch.arange(q.shape[2])[None] - torch.arange(q.shape[2])[:, None]).abs()
            bias = self.slopes[:, None, None] * distance
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))


@zoo
class VisionTransformer(ZooNetwork):
    """Patches, a class token and position embeddings as raw parameters, two pre-norm blocks."""

    cuts = ("patch", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.mlp.0", "blocks.1.mlp.2")
    keeps = ("head",)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attn, self.norm2 = nn.LayerNorm(16), FusedHeads(), nn.LayerNorm(16)
            self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
            self.gamma = nn.Parameter(torch.ones(16))

        def forward(self, x: Tensor) -> Any:
            x = x + self.gamma * self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 5, 16))
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class RotaryHeads(SeparateHeads):
    """Llama's: cos and sin of every position, for both halves alike."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (100.0 ** (torch.arange(0, 4, 2).float() / 4)), persistent=False)

    def rotate_half(self, x: Tensor) -> Tensor:
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-second, first), dim=-1)

    def turn(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.inv_freq[None]
        angles = torch.cat((angles, angles), dim=-1)
        return x * angles.cos() + self.rotate_half(x) * angles.sin()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)


@zoo
class RotaryHalves(Tokens):
    """rotate_half by slices."""

    cuts, Mixer = SEPARATE, RotaryHeads


@zoo
class RotaryChunked(Tokens):
    """rotate_half by chunk."""

    cuts = SEPARATE

    class Mixer(RotaryHeads):
        def rotate_half(self, x: Tensor) -> Tensor:
            first, second = x.chunk(2, dim=-1)
            return torch.cat((-second, first), dim=-1)


@zoo
class RotaryWithNothingPassed(Tokens):
    """As in Phi-3: a part of each head may pass as it is, and here the part is empty."""

    cuts = SEPARATE

    class Mixer(RotaryHeads):
        def turn(self, x: Tensor) -> Tensor:
            turned = self.inv_freq.shape[0] * 2
            return torch.cat((super().turn(x[..., :turned]), x[..., turned:]), dim=-1)


@zoo
class RotaryComplex(Tokens):
    """Neighbours as one complex number, turned by polar coordinates."""

    cuts = ("embed", "mixer.v", "mixer.proj")

    class Mixer(RotaryHeads):
        def turn(self, x: Tensor) -> Tensor:
            angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.inv_freq[None]
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(3)


@zoo
class RotaryPairs(Tokens):
    """Neighbours by strided slices, stacked again."""

    cuts = SEPARATE

    class Mixer(RotaryHeads):
        def turn(self, x: Tensor) -> Tensor:
            angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.inv_freq[None]
            even, odd = x[..., ::2], x[..., 1::2]
            turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
            return torch.stack(turned, dim=-1).flatten(-2)


@zoo
class TiedDecoder(ZooNetwork):
    """A causal decoder whose output layer is its embedding."""

    cuts, shapes = ("position", "attn.qkv", "attn.proj", "up"), {"embed.weight": (11, 8), "attn.qkv.weight": (24, 8)}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 16), nn.Embedding(8, 16)
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(16), FusedHeads(), nn.LayerNorm(16)
        self.up, self.down, self.norm = nn.Linear(16, 32), nn.Linear(32, 16), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 11, bias=False)
        self.lm_head.weight = self.embed.weight

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (torch.arange(12).view(2, 6) % 11,)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))
        x = x + self.attn(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.lm_head(self.norm(x))
