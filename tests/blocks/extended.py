"""Blocks of the extended grammar: what people write beyond convolutional networks (issue 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.utils.checkpoint import checkpoint

from tests.blocks.base import Place, block, conv, conv_bn_act, digits, even, parameter


@block(extended=True)
class Roll(nn.Module):
    """torch.roll over channels or space."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.shift, self.axis = (digit + 1 for digit in digits(option, 3, 2))
        self.enter = conv_bn_act(place, place.channels, width)
        self.leave = conv(place, width, width, 1)

    def forward(self, x: Tensor) -> Any:
        return self.leave(torch.roll(self.enter(x), self.shift, dims=self.axis))


@block(extended=True)
class Index(nn.Module):
    """Channels permuted, or some of them taken, by an index buffer."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, some = digits(option, 2, 2)
        self.enter = conv_bn_act(place, place.channels, width)
        order = torch.arange(width).roll(width // 2).flip(0)[: width // 2 if some else None]
        self.order: Tensor
        self.register_buffer("order", order)
        self.leave = conv(place, len(order), width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        y = y.index_select(1, self.order) if self.kind else y[:, self.order]
        return self.leave(y)


@block(extended=True)
class Unflatten(nn.Module):
    """unflatten into groups, a batched product per group (einsum or matmul), flatten."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.einsum,) = digits(option, 2)
        self.enter = conv_bn_act(place, place.channels, even(width))
        self.weight = parameter(2, 5, even(width) // 2)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x).unflatten(1, (2, -1))
        if self.einsum:
            out = torch.einsum("goc,ngc...->ngo...", self.weight, y)
        else:
            out = torch.matmul(self.weight, y.flatten(3))
            out = out.unflatten(3, x.shape[2:])  # type: ignore[no-untyped-call]
        return F.relu(out.flatten(1, 2))


@block(extended=True)
class MlpMixer(nn.Module):
    """Tokens are mixed by one MLP, channels by another."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (norm,) = digits(option, 2)
        channels, tokens = place.channels, place.pixels
        self.norm: nn.Module = nn.LayerNorm(channels) if norm else nn.Identity()
        self.tokens = nn.Sequential(nn.Linear(tokens, width), nn.GELU(), nn.Linear(width, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels))

    def forward(self, x: Tensor) -> Any:
        t = x.flatten(2).transpose(1, 2)
        t = t + self.tokens(self.norm(t).transpose(1, 2)).transpose(1, 2)
        t = t + self.channels(t)
        return t.transpose(1, 2).reshape(x.shape)


@block(extended=True)
class Recurrent(nn.Module):
    """A GRU or an LSTM over the flattened pixels."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        lstm, both = digits(option, 2, 2)
        layer = nn.LSTM if lstm else nn.GRU
        self.rnn = layer(place.channels, width, batch_first=True, bidirectional=bool(both))
        self.leave = nn.Linear(width * (1 + both), width)

    def forward(self, x: Tensor) -> Any:
        out, _ = self.rnn(x.flatten(2).transpose(1, 2))
        return self.leave(out).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


@block(divisor=4, extended=True)
class Encoder(nn.Module):
    """nn.MultiheadAttention, or a whole nn.TransformerEncoderLayer."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.whole, heads, first = digits(option, 2, 2, 2)
        heads = (2, 4)[heads]
        if self.whole:
            self.layer: nn.Module = nn.TransformerEncoderLayer(
                place.channels, heads, width, batch_first=True, norm_first=bool(first)
            )
        else:
            self.layer = nn.MultiheadAttention(place.channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        t = x.flatten(2).transpose(1, 2)
        t = self.layer(t) if self.whole else t + self.layer(t, t, t, need_weights=False)[0]
        return t.transpose(1, 2).reshape(x.shape)


@block(extended=True)
class GroupedQuery(nn.Module):
    """Attention in which two query heads share one key and value head."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.core,) = digits(option, 2)
        self.heads, self.shared = 4, 2
        d = max(2, width // 4)
        self.q = nn.Linear(place.channels, self.heads * d)
        self.k = nn.Linear(place.channels, self.shared * d)
        self.v = nn.Linear(place.channels, self.shared * d)
        self.proj = nn.Linear(self.heads * d, place.channels)

    def forward(self, x: Tensor) -> Any:
        t = x.flatten(2).transpose(1, 2)
        n, tokens, _ = t.shape
        q = self.q(t).view(n, tokens, self.heads, -1).transpose(1, 2)
        k = self.k(t).view(n, tokens, self.shared, -1).transpose(1, 2)
        v = self.v(t).view(n, tokens, self.shared, -1).transpose(1, 2)
        if self.core == 0:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (y.repeat_interleave(self.heads // self.shared, dim=1) for y in (k, v))
            out = torch.softmax(q @ k.mT / 2.0, dim=-1) @ v
        return x + self.proj(out.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


@block(extended=True)
class Checkpointed(nn.Module):
    """Two convolutions under activation checkpointing."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_act(place, place.channels, width), conv_bn_act(place, width, width))

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.body, x, use_reentrant=False)


@block(extended=True)
class SoftmaxChannels(nn.Module):
    """A softmax over channels: it mixes them, so they stay; what follows may go."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        self.enter = conv(place, place.channels, width, 1)
        self.leave = conv_bn_act(place, width, width)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        mixed = (torch.softmax(y, 1), torch.cumsum(torch.tanh(y), 1), torch.sort(y, 1).values)[self.kind]
        return self.leave(mixed)


@block(extended=True)
class Literal(nn.Module):
    """A constant in the forward that is right for the dense width only."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 4)
        self.enter = conv_bn_act(place, place.channels, 12)
        self.left, self.right = conv(place, 6, width, 1), conv(place, 6, width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kind == 0:
            left, right = torch.split(y, 6, dim=1)
        elif self.kind == 1:
            left, right = y[:, :6], y[:, -6:]
        elif self.kind == 2:
            left, right = y.view(x.shape[0], 2, 6, *x.shape[2:]).unbind(1)
        else:
            left, right = y.split((6, 6), 1)
        return F.relu(self.left(left)) + self.right(right)
