"""What the extended grammar holds along the channels: buffers, frozen norms, numbers of channels, orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, conv, conv_bn_act, digits, even, parameter, per_channel


class Frozen(nn.Module):
    """A batch norm of four buffers, as detectors have it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Any:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)


@block(extended=True)
class FrozenNorms(nn.Module):
    """Convolutions behind frozen norms around an identity; a mean and a deviation of the data are buffers, too."""

    mean: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, self.act = digits(option, 2, 2)
        channels = place.channels
        self.register_buffer("mean", torch.ones(1, channels, *(1,) * place.dims))
        self.conv1, self.bn1 = conv(place, channels, width, 3, padding=1, bias=False), Frozen(width)
        self.conv2, self.bn2 = conv(place, width, channels, 1, bias=False), Frozen(channels)

    def forward(self, x: Tensor) -> Any:
        y = x - self.mean if self.kind else x
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        return x + (F.silu(y) if self.act else y)


@block(extended=True)
class Buffers(nn.Module):
    """Per-channel buffers and parameters used functionally: thresholds, masks, powers, batch norm by hand."""

    mask: Tensor
    level: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 6)
        self.enter = conv(place, place.channels, width, 3, padding=1)
        self.register_buffer("mask", torch.arange(width) % 3 > 0)
        self.register_buffer("level", torch.ones(width))
        self.slope, self.gain = parameter(width), parameter(1, width, *(1,) * place.dims)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kind == 0:
            return torch.where(per_channel(self.mask, y), y, torch.tanh(y) * self.gain)
        if self.kind == 1:
            return F.prelu(y, self.slope) + per_channel(self.level, y)
        if self.kind == 2:
            return F.batch_norm(y, self.level, self.level.exp(), self.slope, self.level)
        if self.kind == 3:
            return torch.minimum(y, per_channel(self.level, y)) * self.gain
        if self.kind == 4:
            return torch.addcmul(y, y.tanh(), self.gain, value=0.5)
        return y * per_channel(self.mask, y) + y.sin() ** 2 / per_channel(self.slope.exp(), y)


@block(extended=True)
class Ordered(nn.Module):
    """Channels taken in a constant order: a buffer, a list, index_select, gather, rolls of shares, flips, repeats."""

    order: Tensor

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, self.add = digits(option, 7, 2)
        width = even(width)
        self.enter = conv_bn_act(place, place.channels, width)
        order = torch.randperm(width, generator=torch.Generator().manual_seed(width))
        self.register_buffer("order", order)
        self.listed = order[: width // 2].tolist()
        shape = self.moved(torch.zeros(1, width, *place.size)).shape
        self.add = self.add and shape[1] == width
        self.leave = conv(place, shape[1], place.channels, 3, padding=1)

    def moved(self, y: Tensor) -> Tensor:
        if self.kind == 0:
            return y[:, self.order]
        if self.kind == 1:
            return y[:, self.listed]
        if self.kind == 2:
            return torch.index_select(y, 1, self.order)
        if self.kind == 3:
            return torch.roll(y, y.shape[1] // 2, 1)
        if self.kind == 4:
            return y.repeat(1, 2, *(1,) * (y.ndim - 2))
        if self.kind == 5:
            return y.repeat_interleave(2, dim=1)
        return torch.cat((y.flip(1), y), 1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        z = self.moved(y)
        return self.leave(y + z if self.add else z)


@block(extended=True)
class Widened(nn.Module):
    """Zeros, coordinates or a shortcut padded to another width (ResNet's option A)."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 5)
        self.extra = even(width) // 2
        self.planes = place.channels + self.extra
        behind = place.channels + (2 if self.kind in (3, 4) else self.extra)
        self.wide = conv(place, place.channels, self.planes, 3, padding=1)
        self.leave = conv(place, behind, width, 1)

    def zeros(self, x: Tensor, count: int) -> Tensor:
        return torch.zeros(x.shape[0], count, *x.shape[2:], dtype=x.dtype, device=x.device)

    def forward(self, x: Tensor) -> Any:
        space = (0, 0) * (x.ndim - 2)
        if self.kind == 0:
            return self.leave(torch.cat((x, self.zeros(x, self.extra)), 1))
        if self.kind == 1:
            return self.leave(F.relu(self.wide(x) + torch.cat((x, self.zeros(x, self.planes - x.shape[1])), 1)))
        if self.kind == 2:
            return self.leave(F.relu(self.wide(x) + F.pad(x, (*space, 0, self.extra))))
        if self.kind == 3:
            return self.leave(F.pad(x, (*space, 1, 1)))
        ramp = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).expand(x.shape[0], 2, *x.shape[2:])
        return self.leave(torch.cat((ramp, x), 1))


@block(extended=True)
class Numbered(nn.Module):
    """The width stands in an attribute, a dict, a layer's own attribute, or divides a sum."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 6)
        self.dim = width
        self.config: dict[str, Any] = {"dim": width, "name": "small"}
        self.enter = conv_bn_act(place, place.channels, width)
        self.leave = conv(place, width, place.channels, 1)

    def middle(self, y: Tensor) -> Any:
        n, _, *size = y.shape
        if self.kind == 0:
            z = y.view(n, self.dim, -1)
            return (z * torch.sigmoid(z.mean(-1, keepdim=True))).view(n, self.dim, *size)
        if self.kind == 1:
            return y.reshape(n, self.config["dim"], -1).view_as(y) * 0.5
        if self.kind == 2:
            layer: Any = self.enter[0]
            return y.reshape(-1, layer.out_channels, *size)
        if self.kind == 3:
            if y.shape[1] != self.dim:
                raise ValueError(f"expected {self.dim} channels, got {y.shape[1]}")
            return F.gelu(y)
        if self.kind == 4:
            return y * self.dim**-0.5
        return y * torch.ones(self.dim, dtype=y.dtype).view(-1, *(1,) * len(size))

    def forward(self, x: Tensor) -> Any:
        return x + self.leave(self.middle(self.enter(x)))
