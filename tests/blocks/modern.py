"""More of the extended grammar: windows, RMS norm, SwiGLU, normed queries, standardised weights, GRN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, bn, conv, digits, parameter


class GlobalResponse(nn.Module):
    """ConvNeXt V2's response norm, channels last: divides by a mean over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def respond(self, x: Tensor, share: Tensor | float) -> Tensor:
        energy = x.flatten(1, -2).norm(dim=1).view(x.shape[0], *(1,) * (x.ndim - 2), -1)
        out: Tensor = self.weight * (x * energy / ((energy * share).sum(-1, keepdim=True) + 1e-6)) + self.bias + x
        return out

    def forward(self, x: Tensor) -> Any:
        energy = x.flatten(1, -2).norm(dim=1).view(x.shape[0], *(1,) * (x.ndim - 2), -1)
        energy = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (x * energy) + self.bias + x

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.respond(x, mask.to(x.dtype) / mask.sum())


class StandardisedConv(nn.Module):
    """A 3x3 convolution whose filters are standardised over their inputs on each call."""

    def __init__(self, place: Place, width: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(width, place.channels, *(3,) * place.dims), parameter(width)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        return (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3](x, weight, self.bias, padding=1)

    def forward(self, x: Tensor) -> Any:
        axes = tuple(range(1, self.weight.ndim))
        weight = self.weight - self.weight.mean(axes, keepdim=True)
        weight = weight / (weight.square().mean(axes, keepdim=True) + 1e-5).sqrt()
        return self.convolve(x, weight)

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        axes = tuple(range(1, self.weight.ndim))
        # a filter that is gone has nothing to be standardised over
        share = mask.to(x.dtype) / mask.sum(axes, keepdim=True).clamp(min=1)
        weight = self.weight - (self.weight * share).sum(axes, keepdim=True)
        weight = weight / ((weight.square() * share).sum(axes, keepdim=True) + 1e-5).sqrt()
        return self.convolve(x, weight * mask)


@block(extended=True)
class Standardised(nn.Module):
    """A weight-standardised convolution behind a plain one, with group norm or batch norm after it."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (group,) = digits(option, 2)
        self.enter = conv(place, place.channels, width, 1)
        self.conv = StandardisedConv(Place(width, place.size), width)
        self.norm: nn.Module = nn.GroupNorm(1, width) if group else bn(place, width)

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.conv(F.relu(self.enter(x)))))


@block(extended=True)
class ConvNextV2(nn.Module):
    """Depth-wise convolution, norm, MLP with a global response norm."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        channels = place.channels
        self.depthwise = conv(place, channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.grn, self.down = nn.Linear(channels, width), GlobalResponse(width), nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        return x + self.down(self.grn(F.gelu(self.up(y)))).movedim(-1, 1)


@block(extended=True)
class SwiGlu(nn.Module):
    """A decoder's MLP: RMS norm (by module or by hand), gate and value, down."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.fused, bias = digits(option, 2, 2)
        channels = place.channels
        self.norm = nn.RMSNorm(channels)
        self.gate = nn.Linear(channels, 2 * width if self.fused else width, bias=bool(bias))
        self.up = None if self.fused else nn.Linear(channels, width, bias=bool(bias))
        self.down = nn.Linear(width, channels, bias=False)

    def forward(self, x: Tensor) -> Any:
        t = self.norm(x.flatten(2).transpose(1, 2))
        gate, value = self.gate(t).chunk(2, -1) if self.up is None else (self.gate(t), self.up(t))
        return x + self.down(F.silu(gate) * value).transpose(1, 2).reshape(x.shape)


@block(extended=True)
class NormedQueries(nn.Module):
    """Attention with a LayerNorm on each head's queries and keys, shared by the heads."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.core = digits(option, 2, 2)
        self.heads = heads + 1
        d = max(2, width // 2)
        self.q, self.k, self.v = (nn.Linear(place.channels, d * self.heads) for _ in range(3))
        self.q_norm, self.k_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.proj = nn.Linear(d * self.heads, place.channels)

    def forward(self, x: Tensor) -> Any:
        t = x.flatten(2).transpose(1, 2)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(t), self.k(t), self.v(t)))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.core:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = torch.einsum("nhqk,nhkd->nhqd", torch.einsum("nhqd,nhkd->nhqk", q, k).softmax(-1), v)
        return x + self.proj(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


@block(dims=(2,), extended=True)
class Windows(nn.Module):
    """Attention inside windows, perhaps shifted, with a table of relative positions (as in Swin)."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        heads, self.shift = digits(option, 2, 2)
        self.heads, channels = heads + 1, place.channels
        self.side = 2 if all(extent % 2 == 0 for extent in place.size) else 1
        inner = max(2, width // self.heads) * self.heads
        self.norm, self.qkv, self.proj = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 3 * inner),
            nn.Linear(inner, channels),
        )
        self.table = nn.Parameter(torch.randn((2 * self.side - 1) ** 2, self.heads))
        place_in_window = torch.cartesian_prod(torch.arange(self.side), torch.arange(self.side))
        distance = place_in_window[:, None] - place_in_window[None] + self.side - 1
        self.index: Tensor
        self.register_buffer("index", distance[..., 0] * (2 * self.side - 1) + distance[..., 1])

    def attend(self, t: Tensor) -> Tensor:
        n, tokens, _ = t.shape
        q, k, v = self.qkv(t).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias[None], -1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, -1))
        return out

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x.permute(0, 2, 3, 1))
        if self.shift:
            y = torch.roll(y, (-1, -1), (1, 2))
        n, h, w, c = y.shape
        s = self.side
        y = y.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
        y = self.attend(y).view(n, h // s, w // s, s, s, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
        if self.shift:
            y = torch.roll(y, (1, 1), (1, 2))
        return x + y.permute(0, 3, 1, 2)
