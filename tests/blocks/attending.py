"""Attention of the extended grammar: how people make, split, norm, scale, share and merge its heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, digits, parameter

HEADS = (2, 3, 1, 4, 5, 6)


def tokens_of(x: Tensor) -> Tensor:
    """(N, C, *size) as (N, T, C)."""
    return x.flatten(2).transpose(1, 2)


def image_of(t: Tensor, like: Tensor) -> Tensor:
    """(N, T, C) as (N, C, *size of `like`)."""
    return t.transpose(1, 2).reshape(like.shape[0], -1, *like.shape[2:])


class Projections(nn.Module):
    """Queries, keys and values (N, heads, T, d): from three layers, one or two, cut up in many ways."""

    def __init__(self, channels: int, heads: int, head_dim: int, source: int, split: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.source, self.split = heads, head_dim, source, split
        self.inner = heads * head_dim
        if source == 0:
            self.q, self.k, self.v = (nn.Linear(channels, self.inner, bias=i != 1) for i in range(3))
        elif source == 1:
            self.to_q, self.to_kv = nn.Linear(channels, self.inner), nn.Linear(channels, 2 * self.inner, bias=False)
        else:
            self.qkv = nn.Linear(channels, 3 * self.inner, bias=source != 4)

    def heads(self, t: Tensor) -> Tensor:
        b, n, _ = t.shape
        if self.split == 0:
            return t.view(b, n, self.num_heads, -1).transpose(1, 2)
        if self.split == 1:
            return t.reshape(b, n, self.num_heads, self.head_dim).permute(0, 2, 1, 3)
        if self.split == 2:
            return t.view(b, n, -1, self.head_dim).transpose(1, 2)
        parts: Tensor = t.unflatten(-1, (self.num_heads, -1))  # type: ignore[no-untyped-call]
        return parts.transpose(-3, -2)

    def forward(self, t: Tensor) -> Any:
        b, n, _ = t.shape
        if self.source == 0:
            parts: Any = (self.q(t), self.k(t), self.v(t))
        elif self.source == 1:
            parts = (self.to_q(t), *self.to_kv(t).chunk(2, dim=-1))
        elif self.source == 2:
            return self.qkv(t).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.source == 3:
            return self.qkv(t).view(b, n, self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        elif self.source == 4:
            parts = self.qkv(t).split(self.inner, dim=-1)
        else:
            qkv = self.qkv(t).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        return [self.heads(part) for part in parts]


def attend(kind: int, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The product with its softmax; the scale is an attribute, the shape's, the operator's own, or absent."""
    if kind == 0:
        return F.scaled_dot_product_attention(q, k, v)
    if kind == 1:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if kind == 2:
        return torch.softmax((q * scale) @ k.transpose(-2, -1), dim=-1) @ v
    if kind == 3:
        return (q @ k.mT / math.sqrt(q.size(-1))).softmax(-1).matmul(v)
    if kind == 4:
        weights = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("bhij,bhjd->bhid", weights.softmax(dim=-1), v)
    if kind == 5:
        return F.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) * scale, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class QueryNorm(nn.Module):
    """What queries or keys pass before they meet: nothing, a norm over the head, or the unit sphere."""

    def __init__(self, kind: int, head_dim: int) -> None:
        super().__init__()
        layers: tuple[nn.Module, ...] = (nn.Identity(), nn.LayerNorm(head_dim), nn.RMSNorm(head_dim), nn.Identity())
        self.norm, self.unit = layers[kind], kind == 3

    def forward(self, x: Tensor) -> Any:
        return F.normalize(x, dim=-1) if self.unit else self.norm(x)


@block(extended=True)
class SelfAttention(nn.Module):
    """Six ways to project, four to split, four norms, seven scales, three merges, any number of heads."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, source, split, self.core, norm, self.merge, residual = digits(option, 6, 6, 4, 7, 4, 3, 2)
        self.num_heads = HEADS[heads]
        self.head_dim = max(2, width // self.num_heads)
        self.scale, self.residual = self.head_dim**-0.5, residual == 0
        self.norm = nn.LayerNorm(place.channels)
        self.projections = Projections(place.channels, self.num_heads, self.head_dim, source, split)
        self.q_norm, self.k_norm = QueryNorm(norm, self.head_dim), QueryNorm(norm, self.head_dim)
        self.proj = nn.Linear(self.num_heads * self.head_dim, place.channels)

    def merged(self, out: Tensor) -> Tensor:
        if self.merge == 0:
            return out.transpose(1, 2).flatten(2)
        if self.merge == 1:
            return out.permute(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], self.num_heads * self.head_dim)
        return out.transpose(1, 2).contiguous().view(out.shape[0], out.shape[2], -1)

    def forward(self, x: Tensor) -> Any:
        t = tokens_of(x)
        q, k, v = self.projections(self.norm(t))
        out = self.proj(self.merged(attend(self.core, self.scale, self.q_norm(q), self.k_norm(k), v)))
        return image_of(t + out if self.residual else out, x)


@block(divisor=12, extended=True)
class Classic(nn.Module):
    """timm's: the head size is ``c // self.num_heads`` of what arrives, so inner and outer width are one."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.fused, scaled = digits(option, 4, 2, 2)
        self.num_heads = (2, 3, 4, 6)[heads]
        self.scale = (place.channels // self.num_heads) ** -0.5
        self.norm, self.qkv = nn.LayerNorm(place.channels), nn.Linear(place.channels, 3 * place.channels)
        self.proj, self.gamma = nn.Linear(place.channels, place.channels), parameter(place.channels) if scaled else None

    def forward(self, x: Tensor) -> Any:
        t = self.norm(tokens_of(x))
        b, n, c = t.shape
        q, k, v = self.qkv(t).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        out = self.proj(out.transpose(1, 2).reshape(b, n, c))
        return x + image_of(out if self.gamma is None else self.gamma * out, x)


@block(extended=True)
class SharedHeads(nn.Module):
    """Grouped-query and multi-query attention: keys and values repeated in five ways."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        shared, group, self.core, self.repeat, bias = digits(option, 3, 2, 6, 4, 2)
        self.kv_heads, self.group = shared + 1, group + 2
        self.head_dim = max(2, width // (self.kv_heads * self.group))
        self.q_size, self.kv_size = self.kv_heads * self.group * self.head_dim, self.kv_heads * self.head_dim
        self.scale, channels = self.head_dim**-0.5, place.channels
        self.q = nn.Linear(channels, self.q_size, bias=bool(bias))
        self.k, self.v = (nn.Linear(channels, self.kv_size) for _ in range(2))
        self.proj = nn.Linear(self.q_size, channels, bias=False)

    def repeated(self, x: Tensor) -> Tensor:
        b, heads, n, d = x.shape
        if self.repeat == 0:
            return x.repeat_interleave(self.group, dim=1)
        if self.repeat == 1:
            return x[:, :, None].expand(b, heads, self.group, n, d).reshape(b, heads * self.group, n, d)
        return x.unsqueeze(2).repeat(1, 1, self.group, 1, 1).flatten(1, 2)

    def forward(self, x: Tensor) -> Any:
        t = tokens_of(x)
        b, n, _ = t.shape
        q = self.q(t).view(b, n, self.kv_heads * self.group, self.head_dim).transpose(1, 2)
        k, v = (y.view(b, n, self.kv_heads, self.head_dim).transpose(1, 2) for y in (self.k(t), self.v(t)))
        if self.repeat == 3:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            out = attend(self.core, self.scale, q, self.repeated(k), self.repeated(v))
        return x + image_of(self.proj(out.transpose(1, 2).reshape(b, n, -1)), x)


@block(divisor=12, extended=True)
class TorchLayers(nn.Module):
    """nn.MultiheadAttention (self, cross, batch second), nn.TransformerEncoderLayer and -DecoderLayer."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, heads, first, gelu, self.batch_first = digits(option, 5, 4, 2, 2, 2)
        heads, act, channels = (2, 3, 4, 6)[heads], "gelu" if gelu else "relu", place.channels
        self.layer: nn.Module
        if self.kind in (0, 1):
            own = {"kdim": width, "vdim": width} if self.kind == 1 else {}
            self.layer = nn.MultiheadAttention(channels, heads, batch_first=bool(self.batch_first), **own)
        else:
            layer: Any = nn.TransformerDecoderLayer if self.kind == 3 else nn.TransformerEncoderLayer
            options: dict[str, Any] = {
                "norm_first": bool(first),
                "activation": act,
                "batch_first": bool(self.batch_first),
            }
            made = layer(channels, heads, width, **options)
            self.layer = nn.TransformerEncoder(made, 2, enable_nested_tensor=False) if self.kind == 4 else made
        self.memory = nn.Linear(channels, width if self.kind == 1 else channels)

    def run(self, t: Tensor) -> Tensor:
        out: Tensor
        if self.kind < 2:
            m = self.memory(t) if self.kind == 1 else t
            out = t + self.layer(t, m, m, need_weights=False)[0]
        elif self.kind == 3:
            out = self.layer(t, self.memory(t))
        else:
            out = self.layer(t)
        return out

    def forward(self, x: Tensor) -> Any:
        t = x.flatten(2).transpose(1, 2) if self.batch_first else x.flatten(2).permute(2, 0, 1)
        out = self.run(t)
        return image_of(out if self.batch_first else out.transpose(0, 1), x)


@block(extended=True)
class LinearTime(nn.Module):
    """Attention linear in the tokens: positive features, normalised or not, or a column of ones."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.kind = digits(option, 6, 3)
        self.num_heads = HEADS[heads]
        self.head_dim = max(2, width // self.num_heads)
        self.projections = Projections(place.channels, self.num_heads, self.head_dim, 0, 1)
        self.proj = nn.Linear(self.num_heads * self.head_dim, place.channels)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.projections(tokens_of(x))
        q, k = q.relu(), k.relu()
        if self.kind == 0:
            out = q @ (k.transpose(-2, -1) @ F.pad(v, (0, 1), mode="constant", value=1.0))
            out = out[..., :-1] / (out[..., -1:] + 0.1)
        elif self.kind == 1:
            norm = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2)) + 0.1)
            out = torch.einsum("bhnd,bhde,bhn->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v), norm)
        else:
            out = torch.matmul(q, torch.matmul(k.softmax(dim=2).mT, v))
        return x + image_of(self.proj(out.transpose(1, 2).flatten(2)), x)
