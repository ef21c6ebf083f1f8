"""Attention whose queries, keys and values come from one layer, taken apart in the ways that people use."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import Tokens, zoo

FUSED = ("embed", "mixer.qkv", "mixer.proj")


class FusedHeads(nn.Module):
    """One Linear layer for q, k and v; inside four heads of four."""

    def __init__(self, dim: int = 16, heads: int = 4, head_dim: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, head_dim, head_dim**-0.5
        self.dim = heads * head_dim
        self.qkv, self.proj = nn.Linear(dim, 3 * self.dim), nn.Linear(self.dim, dim)

    def heads(self, x: Tensor) -> Any:
        b, n, _ = x.shape
        return self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.heads(x)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


@zoo
class FusedByAttributes(Tokens):
    """reshape(b, n, 3, self.num_heads, self.head_dim), then a permutation that brings the three to the front."""

    cuts, Mixer, shapes = FUSED, FusedHeads, {"mixer.qkv.weight": (24, 8)}


@zoo
class FusedDimOverHeads(Tokens):
    """As in early ViTs: ``C // self.num_heads`` from the shape, and back to the shape that arrived."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def forward(self, x: Tensor) -> Any:
            b, n, c = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
            weights = (q @ k.transpose(-2, -1)) * self.scale
            return self.proj((weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))


@zoo
class FusedUnbound(Tokens):
    """unflatten and unbind, and the fused operator."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def forward(self, x: Tensor) -> Any:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@zoo
class FusedChunked(Tokens):
    """chunk(3, -1), then the heads; the head size follows."""

    cuts, shapes = FUSED, {"mixer.qkv.weight": (24, 8)}

    class Mixer(FusedHeads):
        def heads(self, x: Tensor) -> Any:
            b, n, _ = x.shape
            parts = self.qkv(x).chunk(3, dim=-1)
            return tuple(part.reshape(b, n, self.num_heads, -1).permute(0, 2, 1, 3) for part in parts)


@zoo
class FusedSplitByAttribute(Tokens):
    """split(self.dim, -1), a causal mask from a buffer, and the width back from the shape: a small GPT."""

    cuts = FUSED

    class Mixer(FusedHeads):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tril(torch.ones(8, 8, dtype=torch.bool)).view(1, 1, 8, 8))

        def forward(self, x: Tensor) -> Any:
            b, t, c = x.size()
            q, k, v = self.qkv(x).split(self.dim, dim=2)
            k = k.view(b, t, self.num_heads, c // self.num_heads).transpose(1, 2)
            q = q.view(b, t, self.num_heads, c // self.num_heads).transpose(1, 2)
            v = v.view(b, t, self.num_heads, c // self.num_heads).transpose(1, 2)
            weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            weights = weights.masked_fill(~self.mask[:, :, :t, :t], float("-inf"))
            out = F.softmax(weights, dim=-1) @ v
            return self.proj(out.transpose(1, 2).contiguous().view(b, t, c))


@zoo
class FusedHeadsFirst(Tokens):
    """The heads stand before the three: (h, 3 * d), as in GPT-NeoX."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def heads(self, x: Tensor) -> Any:
            qkv = self.qkv(x).view(*x.shape[:2], self.num_heads, 3 * self.head_dim).transpose(1, 2)
            return qkv.chunk(3, dim=-1)


@zoo
class FusedFlattenedHeads(Tokens):
    """bmm over batch times heads, as in fairseq: tokens first."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def forward(self, x: Tensor) -> Any:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).transpose(0, 1).chunk(3, dim=-1)
            q = (q * self.scale).contiguous().view(n, b * self.num_heads, self.head_dim).transpose(0, 1)
            k = k.contiguous().view(-1, b * self.num_heads, self.head_dim).transpose(0, 1)
            v = v.contiguous().view(-1, b * self.num_heads, self.head_dim).transpose(0, 1)
            out = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
            return self.proj(out.transpose(0, 1).contiguous().view(n, b, self.dim)).transpose(0, 1)


@zoo
class EinsumAttention(Tokens):
    """Heads by einsum from head to tail."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def forward(self, x: Tensor) -> Any:
            q, k, v = (y.view(*y.shape[:2], self.num_heads, -1) for y in self.qkv(x).chunk(3, -1))
            weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(self.scale).softmax(-1)
            out = torch.einsum("bhqk,bkhd->bqhd", weights, v)
            return self.proj(out.reshape(*x.shape[:2], -1))


@zoo
class FusedJoinedBias(Tokens):
    """As in BEiT: the bias is joined from those of q and v, k's between them; a bias by head joins the scores."""

    cuts, shapes = FUSED, {"mixer.qkv.weight": (24, 8), "mixer.q_bias": (8,)}

    class Mixer(FusedHeads):
        k_bias: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48, bias=False)
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))
            self.register_buffer("k_bias", torch.zeros(16), persistent=False)
            self.table = nn.Parameter(torch.zeros(4, 6, 6))

        def forward(self, x: Tensor) -> Any:
            b, n, c = x.shape
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
            qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[None])
            return self.proj(out.transpose(1, 2).reshape(b, n, c))


@zoo
class FusedZerosForBias(Tokens):
    """As in Swin v2 and BEiT v1: k has no bias, so zeros are joined in its place."""

    cuts, shapes = FUSED, {"mixer.qkv.weight": (24, 8), "mixer.q_bias": (8,)}

    class Mixer(FusedHeads):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 48, bias=False)
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(16))

        def heads(self, x: Tensor) -> Any:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
            b, n, _ = x.shape
            qkv = F.linear(x, self.qkv.weight, bias).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
            return qkv.unbind(0)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.heads(x)
            out = F.scaled_dot_product_attention(q, k, v)
            return self.proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))
