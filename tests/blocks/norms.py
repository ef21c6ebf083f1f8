"""Blocks around norms: layer norm (channels last and first), group norm, instance norm, RMS by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, conv, conv_bn_act, digits, even, parameter, per_channel


class ChannelsFirstNorm(nn.Module):
    """Layer norm over axis 1 by hand, as ConvNeXt's authors wrote it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def forward(self, x: Tensor) -> Any:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return per_channel(self.weight, x) * x + per_channel(self.bias, x)

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        share = per_channel(mask.to(x.dtype) / mask.sum(), x)
        mean = (x * share).sum(1, keepdim=True)
        variance = ((x - mean).pow(2) * share).sum(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return per_channel(self.weight, x) * x + per_channel(self.bias, x)


class ChannelMean(nn.Module):
    """The mean over weighted channels, (N, C, ...) to (N, 1, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels)

    def forward(self, x: Tensor) -> Any:
        return (x * per_channel(self.weight, x)).mean(dim=1, keepdim=True)

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        share = per_channel(mask.to(x.dtype) / mask.sum(), x)
        return (x * per_channel(self.weight, x) * share).sum(1, keepdim=True)


class LayerNorm2d(nn.LayerNorm):
    """nn.LayerNorm over axis 1 by way of movedim, as torchvision writes it (here for any dimension)."""

    def forward(self, x: Tensor) -> Any:
        x = x.movedim(1, -1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


@block()
class ConvNext(nn.Module):
    """Depth-wise convolution, LayerNorm channels last, MLP, layer scale, residual."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        scale, plain = digits(option, 2, 2)
        channels = place.channels
        groups = 1 if plain else channels
        self.depthwise = conv(place, channels, channels, 3, padding=1, groups=groups)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels))
        self.gamma = parameter(channels) if scale else None

    def forward(self, x: Tensor) -> Any:
        y = self.depthwise(x).movedim(1, -1)
        y = self.mlp(self.norm(y))
        if self.gamma is not None:
            y = self.gamma * y
        return x + y.movedim(-1, 1)


@block()
class NormFirst(nn.Module):
    """Layer norm channels first (by hand, or a subclass of nn.LayerNorm) after a convolution."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (kind,) = digits(option, 2)
        self.conv = conv(place, place.channels, width, 3, padding=1)
        self.norm: nn.Module = LayerNorm2d(width) if kind == 0 else ChannelsFirstNorm(width)

    def forward(self, x: Tensor) -> Any:
        return F.gelu(self.norm(self.conv(x)))


@block()
class GroupNorm(nn.Module):
    """GroupNorm of one group, of several, or of one channel each."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        groups, act = digits(option, 4, 2)
        width = even(width, 4)
        # one channel per group on one pixel would normalise a single number to zero
        groups = (1, 2, 4, width if place.pixels > 1 else 1)[groups]
        self.conv = conv(place, place.channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(groups, width)
        self.act: nn.Module = nn.SiLU() if act else nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x)))


@block()
class InstanceNorm(nn.Module):
    """InstanceNorm, with or without parameters and running statistics."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        affine, track = digits(option, 2, 2)
        layer = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[place.dims - 1]
        self.conv = conv(place, place.channels, width, 3, padding=1)
        # torch refuses to normalise one pixel by its own statistics
        track = track or place.pixels == 1
        self.norm = layer(width, affine=not affine, track_running_stats=bool(track))

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.conv(x)))


@block()
class MeanGate(nn.Module):
    """A spatial gate made of the (weighted) mean or sum over the channels."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (summed,) = digits(option, 2)
        self.conv = conv_bn_act(place, place.channels, width)
        self.mean = None if summed else ChannelMean(width)
        self.weight = parameter(width) if summed else None

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        if self.mean is not None:
            return x * torch.sigmoid(self.mean(x))
        assert self.weight is not None
        return x * torch.sigmoid((x * per_channel(self.weight, x)).sum(1, keepdim=True))
