"""Branches of the extended grammar: parts of channels that go their own ways and meet again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import Place, block, conv, conv_bn_act, digits, even


@block(extended=True)
class Res2(nn.Module):
    """Res2Net: parts by split or chunk, each added to the next one's input, concatenated."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        parts, self.kind, self.residual = digits(option, 3, 4, 2)
        self.parts, self.each = parts + 2, max(2, width // (parts + 2))
        self.enter = conv_bn_act(place, place.channels, self.parts * self.each, 1)
        layers = [conv(place, self.each, self.each, 3, padding=1) for _ in range(self.parts - 1)]
        self.convs = nn.ModuleList(layers)
        self.leave = conv(place, self.parts * self.each, place.channels, 1)

    def split(self, y: Tensor) -> Any:
        if self.kind == 0:
            return y.chunk(self.parts, 1)
        if self.kind == 1:
            return torch.split(y, self.each, 1)
        if self.kind == 2:
            return y.unflatten(1, (self.parts, -1)).unbind(1)  # type: ignore[no-untyped-call]
        each = y.shape[1] // self.parts
        return [y[:, i * each : (i + 1) * each] for i in range(self.parts)]

    def forward(self, x: Tensor) -> Any:
        parts = self.split(self.enter(x))
        out, last = [parts[0]], parts[0]
        for part, layer in zip(parts[1:], self.convs, strict=True):
            last = F.relu(layer(last + part))
            out.append(last)
        y = self.leave(torch.cat(out, 1))
        return x + y if self.residual else y


@block(extended=True)
class Yolo(nn.Module):
    """C2f, CSP and ELAN: two halves or two layers, a list that grows, one concatenation."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, count = digits(option, 3, 3)
        self.c = max(2, width // 2)
        self.cv1, self.cv3 = conv_bn_act(place, place.channels, 2 * self.c, 1), conv(place, place.channels, self.c, 1)
        self.m = nn.ModuleList(conv_bn_act(place, self.c, self.c) for _ in range(count + 1))
        arrives = (3 if self.kind == 2 else 2) * self.c + (count + 1) * self.c
        self.cv2 = conv_bn_act(place, arrives, width, 1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == 0:
            y = list(self.cv1(x).chunk(2, 1))
        elif self.kind == 1:
            y = list(self.cv1(x).split((self.c, self.c), 1))
        else:
            y = [self.cv1(x), self.cv3(x)]
        last = y[-1]
        for i, layer in enumerate(self.m):
            last = last + layer(last) if i % 2 else layer(last)
            y.append(last)
        return self.cv2(torch.cat(y, 1))


@block(extended=True)
class Ghost(nn.Module):
    """Cheap features: a primary convolution and a depth-wise one of it (with a multiplier), concatenated or cut."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        ratio, self.kind = digits(option, 2, 2)
        self.ratio, self.out = ratio + 1, width * (ratio + 2) - (1 if self.kind else 0)
        self.primary = conv_bn_act(place, place.channels, width, 1)
        self.cheap = conv(place, width, width * self.ratio, 3, padding=1, groups=width)
        self.leave = conv(place, self.out, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        first = self.primary(x)
        y = torch.cat((first, F.relu(self.cheap(first))), 1)
        return x + self.leave(y[:, : self.out] if self.kind else y)


@block(extended=True)
class SelectiveKernel(nn.Module):
    """SKNet and split attention: branches stacked, weighted by a softmax over the branches."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, squeeze = digits(option, 3, 2)
        self.width = width
        self.convs = nn.ModuleList(conv_bn_act(place, place.channels, width, k) for k in (1, 3))
        squeezed = max(3, width // (1 + squeeze))
        self.fc, self.fcs = nn.Linear(width, squeezed), nn.ModuleList(nn.Linear(squeezed, width) for _ in range(2))
        self.both = nn.Linear(squeezed, 2 * width)

    def forward(self, x: Tensor) -> Any:
        y = torch.stack([layer(x) for layer in self.convs], 1)
        n, ones = x.shape[0], (1,) * (x.ndim - 2)
        z = F.relu(self.fc(y.sum(1).flatten(2).mean(2)))
        if self.kind == 0:
            scores = torch.stack([fc(z) for fc in self.fcs], 1)
        elif self.kind == 1:
            scores = self.both(z).view(n, 2, -1)
        else:
            scores = self.both(z).reshape(n, 2, self.width)
        weights = scores.softmax(1)
        return (y * weights.view(*weights.shape, *ones)).sum(1)


@block(extended=True)
class Interleaved(nn.Module):
    """Two branches interleaved channel by channel, shuffled over several groups, then grouped or depth-wise."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        groups, self.kind, behind = digits(option, 3, 2, 3)
        self.groups = (2, 3, 4)[groups]
        width = even(width, self.groups)
        self.left, self.right = conv(place, place.channels, width, 1), conv(place, place.channels, width, 3, padding=1)
        total = 2 * width
        self.conv = conv(place, total, total, 3, padding=1, groups=(1, self.groups, total)[behind])
        self.leave = conv(place, total, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        if self.kind == 0:
            y = torch.stack((self.left(x), self.right(x)), 2).flatten(1, 2)
        else:
            y = torch.cat((self.left(x), self.right(x)), 1)
            n, c, *size = y.shape
            y = y.view(n, self.groups, c // self.groups, *size).transpose(1, 2).reshape(n, c, *size)
        return self.leave(F.relu(self.conv(F.relu(y))))


@block(extended=True)
class Pyramid(nn.Module):
    """ASPP with a pooled branch, FPN's top-down sum, SPP's pools side by side, HRNet's exchange."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 4)
        channels = place.channels
        stride = 2 if min(place.size) >= 4 else 1
        self.one, self.three = conv_bn_act(place, channels, width, 1), conv_bn_act(place, channels, width)
        self.pooled, self.down = conv(place, channels, width, 1), conv_bn_act(place, width, width, stride=stride)
        self.lateral, self.up = conv(place, width, width, 1), conv(place, width, width, 1)
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[place.dims - 1](3, 1, 1)
        copies = (3, 1, 4, 2)[self.kind]
        self.leave = conv_bn_act(place, copies * width, width, 1)

    def forward(self, x: Tensor) -> Any:
        size = x.shape[2:]
        fine = self.one(x)
        if self.kind == 0:
            whole = F.interpolate(self.pooled(x.flatten(2).mean(2).view(*x.shape[:2], *(1,) * len(size))), size=size)
            return self.leave(torch.cat([fine, self.three(x), whole], 1))
        if self.kind == 2:
            pools = [fine]
            for _ in range(3):
                pools.append(self.pool(pools[-1]))
            return self.leave(torch.cat(pools, 1))
        coarse = self.down(fine)
        if self.kind == 1:
            return self.leave(self.lateral(fine) + F.interpolate(self.up(coarse), size=size, mode="nearest"))
        exchanged = F.relu(fine + F.interpolate(self.up(coarse), size=size))
        coarse = F.relu(coarse + self.down(self.lateral(exchanged)))
        return self.leave(torch.cat((exchanged, F.interpolate(coarse, size=size)), 1))


@block(extended=True)
class MaxoutMore(nn.Module):
    """Maxout over pieces: by view and amax, reshape and mean, or max_pool over neighbouring channels."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        pieces, self.kind = digits(option, 2, 4)
        self.pieces, self.width = pieces + 2, width
        self.conv = conv(place, place.channels, self.pieces * width, 1)
        self.leave = conv(place, width, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        n, c, *size = y.shape
        if self.kind == 0:
            z = y.view(n, c // self.pieces, self.pieces, *size).amax(2)
        elif self.kind == 1:
            z = y.view(n, self.pieces, self.width, *size).max(1).values
        elif self.kind == 2:
            z = F.max_pool1d(y.flatten(2).transpose(1, 2), self.pieces).transpose(1, 2).view(n, -1, *size)
        else:
            z = torch.stack(y.chunk(self.pieces, 1)).logsumexp(0)
        return x + self.leave(z)
