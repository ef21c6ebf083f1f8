"""Blocks that move channels about: splits, chunks, slices, shuffles, flips, padding, pooling, upsampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, bn, conv, conv_bn_act, digits, even, parameter


@block()
class Split(nn.Module):
    """torch.split into equal parts (size from the shape), or into unequal ones that an attribute names."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        width = even(width)
        self.enter = conv_bn_act(place, place.channels, width, 1)
        first = width // 2 if self.kind < 2 else max(1, width // 3)
        self.sizes = [first, width - first]
        self.left = conv(place, first, first + 1, 3, padding=1)
        self.right = conv(place, width - first, first + 1, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kind == 0:
            left, right = torch.split(y, y.shape[1] // 2, dim=1)
        else:
            left, right = torch.split(y, self.sizes, dim=1)
        return F.relu(self.left(left) + self.right(right))


@block()
class Chunk(nn.Module):
    """x.chunk(2, 1): one half is worked on, the other passes; concatenated, perhaps shuffled."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.shuffled, self.swapped = digits(option, 2, 2)
        half = max(2, width // 2)
        self.enter = conv_bn_act(place, place.channels, 2 * half)
        self.branch = nn.Sequential(conv_bn_act(place, half, half, 1), conv_bn_act(place, half, half))

    def forward(self, x: Tensor) -> Any:
        left, right = self.enter(x).chunk(2, dim=1)
        right = self.branch(right)
        out = torch.cat((right, left) if self.swapped else (left, right), dim=1)
        if self.shuffled:
            n, c = out.shape[:2]
            out = out.view(n, 2, c // 2, *out.shape[2:]).transpose(1, 2).flatten(1, 2)
        return out


@block()
class Slice(nn.Module):
    """x[:, :k] and x[:, k:], overlapping slices, every second channel; k from the shape or a number."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 5)
        width = even(width, 4)
        self.enter = conv_bn_act(place, place.channels, width)
        self.first = width // 4
        left, right = self.cut(torch.zeros(1, width, *place.size))
        self.left = conv(place, left.shape[1], width, 1)
        self.right = conv(place, right.shape[1], width, 3, padding=1)

    def cut(self, y: Tensor) -> tuple[Tensor, Tensor]:
        half, third = y.shape[1] // 2, y.shape[1] // 3
        if self.kind == 0:
            return y[:, :half], y[:, half:]
        if self.kind == 1:
            return y[:, :third], y[:, third:]
        if self.kind == 2:
            return y[:, ::2], y[:, 1::2]
        if self.kind == 3:
            return y[:, : half + 1], y[:, half - 1 :]
        return y[:, : self.first], y.narrow(1, self.first, y.shape[1] - self.first)

    def forward(self, x: Tensor) -> Any:
        left, right = self.cut(self.enter(x))
        return F.relu(self.left(left)) + torch.tanh(self.right(right))


@block()
class Shuffle(nn.Module):
    """Channel shuffle (view, transpose, flatten) before a plain, a grouped or a depth-wise convolution."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        groups, kind, self.transposed = digits(option, 2, 3, 2)
        self.groups = (2, 4)[groups]
        width = even(width, self.groups * (1 if self.groups == 4 else 2))
        self.enter = conv_bn_act(place, place.channels, width, 1)
        groups = (1, self.groups, width)[kind]
        self.conv = conv(place, width, width, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        n, c, *size = x.size()
        if self.transposed:
            x = x.reshape(n, c // self.groups, self.groups, *size).transpose(1, 2)
        else:
            x = x.view(n, self.groups, c // self.groups, *size).transpose(1, 2).contiguous()
        return F.relu(self.conv(x.view(n, -1, *size) if not self.transposed else x.flatten(1, 2)))


@block()
class Flip(nn.Module):
    """torch.flip over channels, over space, or over both, with an add so that order shows."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, self.add = digits(option, 3, 2)
        self.enter = conv_bn_act(place, place.channels, width)
        self.leave = conv(place, width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.enter(x)
        y = torch.flip(x, ((1,), (-1,), (1, 2))[self.kind])
        return self.leave(x + y if self.add else y)


@block()
class Pool(nn.Module):
    """Max or average pooling, of several kinds, before a convolution."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (kind,) = digits(option, 5)
        d = place.dims - 1
        kernel, stride = (3, 2) if min(place.size) >= 4 else (1, 1)
        maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[d]
        average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[d]
        adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[d]
        adaptive_max = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[d]
        self.pool: nn.Module = (
            maximum(kernel, stride, kernel // 2),
            average(kernel, stride, kernel // 2),
            average(stride, stride, count_include_pad=False),
            adaptive(max(1, min(place.size) // 2)),
            adaptive_max(max(1, min(place.size) // 2)),
        )[kind]
        self.conv = conv_bn_act(place, place.channels, width, 1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(self.pool(x))


@block()
class Upsample(nn.Module):
    """nn.Upsample or F.interpolate, nearest or linear, concatenated with a skip of its own size."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        linear, self.functional = digits(option, 2, 2)
        self.mode = ("linear", "bilinear", "trilinear")[place.dims - 1] if linear else "nearest"
        stride = 2 if min(place.size) >= 4 else 1
        self.down = conv_bn_act(place, place.channels, width, stride=stride)
        self.up = nn.Upsample(size=place.size, mode=self.mode)
        self.leave = conv(place, place.channels + width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.down(x)
        y = F.interpolate(y, size=x.shape[2:], mode=self.mode) if self.functional else self.up(y)
        return F.relu(self.leave(torch.cat([y, x], dim=1)))


@block()
class Pad(nn.Module):
    """Spatial padding of each mode, before a valid convolution."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (mode,) = digits(option, 4)
        modes = ("constant", "reflect", "replicate", "circular") if min(place.size) > 1 else ("constant",)
        self.mode = modes[mode % len(modes)]
        self.enter = conv(place, place.channels, width, 1)
        self.leave = conv(place, width, width, 3)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.enter(x))
        return F.relu(self.leave(F.pad(y, (1, 1) * (x.ndim - 2), mode=self.mode)))


@block(dims=(2,))
class PixelShuffle(nn.Module):
    """pixel_shuffle after a convolution that makes four times the channels, or pixel_unshuffle before one."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        un, act = digits(option, 2, 2)
        inner = max(2, width // 2)
        self.enter = conv(place, place.channels, inner if un else 4 * inner, 3, padding=1)
        even_size = all(extent % 2 == 0 for extent in place.size)
        self.shuffle: nn.Module = nn.PixelUnshuffle(2 if even_size else 1) if un else nn.PixelShuffle(2)
        self.act: nn.Module = nn.GELU() if act else nn.ReLU()
        after = (inner * 4 if even_size else inner) if un else inner
        self.leave = conv(place, after, width, 3, stride=1 if un else 2, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.leave(self.shuffle(self.act(self.enter(x)))))


@block()
class Maxout(nn.Module):
    """The larger of two halves: by chunk and torch.maximum, or by view and amax, halves or pairs."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        self.conv = conv(place, place.channels, 2 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.kind == 0:
            left, right = torch.chunk(y, 2, dim=1)
            return torch.maximum(left, right)
        n, c, *size = y.shape
        if self.kind == 1:
            return y.view(n, 2, c // 2, *size).amax(dim=1)
        return y.view(n, c // 2, 2, *size).max(dim=2).values


@block()
class LayerScale(nn.Module):
    """Per-channel parameters used functionally: a scale, a shift, a scaled residual."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, shift = digits(option, 3, 2)
        self.gamma = parameter(place.channels, *(1,) * (place.dims if self.kind == 1 else 0))
        self.beta = parameter(1, place.channels, *(1,) * place.dims) if shift else None
        self.conv = conv(place, place.channels, place.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = F.gelu(self.conv(x))
        if self.kind == 0:
            y = y * self.gamma.view(1, -1, *(1,) * (x.ndim - 2))
        elif self.kind == 1:
            y = self.gamma * y
        else:
            y = (y.movedim(1, -1) * self.gamma).movedim(-1, 1)
        return x + (y if self.beta is None else y + self.beta)


@block()
class Stack(nn.Module):
    """Branches stacked along a new axis and summed, averaged or unbound again."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        self.branches = nn.ModuleList(conv(place, place.channels, width, k, padding=k // 2) for k in (1, 3))
        self.norm = bn(place, width)

    def forward(self, x: Tensor) -> Any:
        y = torch.stack([branch(x) for branch in self.branches], dim=1 if self.kind else 2)
        if self.kind == 0:
            return F.relu(self.norm(y.mean(2)))
        if self.kind == 1:
            return F.relu(self.norm(y.sum(1)))
        first, second = y.unbind(1)
        return torch.tanh(first) * self.norm(second)
