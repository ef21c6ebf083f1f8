"""Blocks around convolutions: chains, residuals, concats, groups, shared and tied weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.nn.utils import parametrizations

from tests.blocks.base import Place, activation, block, bn, conv, conv_bn_act, digits, even, parameter


@block()
class Chain(nn.Module):
    """Convolution, perhaps batch norm, activation; strided, dilated, with or without a bias."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        act, norm, kernel, stride, dilation, mode = digits(option, 17, 2, 2, 2, 2, 3)
        kernel, stride = 3 - 2 * kernel, 2 if stride and min(place.size) >= 4 else 1
        dilation = 2 if dilation and kernel == 3 and min(place.size) >= 4 else 1
        padding = dilation * (kernel // 2)
        modes = ("zeros", "circular", "reflect") if min(place.size) > padding else ("zeros",)
        kwargs = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": modes[mode % len(modes)]}
        self.conv = conv(place, place.channels, width, kernel, bias=bool(norm), **kwargs)
        self.norm = nn.Identity() if norm else bn(place, width)
        self.act = activation(act, width)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x)))


@block()
class Transposed(nn.Module):
    """A transposed convolution, plain, grouped or depth-wise, upsampling where there is room."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        kind, bias = digits(option, 3, 2)
        width = even(width)
        grow = max(place.size) <= 8 and place.dims < 3
        layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[place.dims - 1]
        groups = (1, 2, width)[kind]
        self.enter = conv(place, place.channels, width, 1)
        stride, padding = (2, 0) if grow else (1, 1)
        out = width if kind else even(width // 2)
        self.up = layer(width, out, 2 if grow else 3, stride=stride, padding=padding, groups=groups, bias=bool(bias))
        self.norm = bn(place, out)

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.up(self.enter(x))))


@block()
class Residual(nn.Module):
    """A basic block: identity or projected shortcut, ReLU or GELU, added in place or not."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        project, self.inplace, act, stride = digits(option, 2, 2, 3, 2)
        stride = 2 if project and stride and min(place.size) >= 4 else 1
        out = width if project else place.channels
        self.conv1 = conv(place, place.channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = bn(place, width)
        self.conv2 = conv(place, width, out, 3, padding=1, bias=False)
        self.bn2 = bn(place, out)
        self.act = activation(act, width)
        self.shortcut: nn.Module | None = None
        if project:
            self.shortcut = nn.Sequential(conv(place, place.channels, out, 1, stride=stride), bn(place, out))

    def forward(self, x: Tensor) -> Any:
        identity = x
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            identity = self.shortcut(x)
        if self.inplace:
            out += identity
        else:
            out = out + identity
        return F.relu(out)


@block()
class Bottleneck(nn.Module):
    """1x1, 3x3 (perhaps grouped), 1x1 around an identity; pre-activation as an option."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.pre, groups = digits(option, 2, 3)
        groups = (1, 2, 4)[groups]
        width = even(width, groups)
        self.norm = bn(place, place.channels if self.pre else width)
        self.reduce = conv(place, place.channels, width, 1, bias=False)
        self.conv = conv(place, width, width, 3, padding=1, groups=groups)
        self.expand = conv(place, width, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.reduce(F.relu(self.norm(x))) if self.pre else F.relu(self.norm(self.reduce(x)))
        return x + self.expand(F.relu(self.conv(y)))


@block()
class Dense(nn.Module):
    """A dense block: each layer sees the list of all that came before."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        count, self.keep = digits(option, 3, 2)
        growth = max(2, width // 2)
        self.layers = nn.ModuleList()
        for i in range(count + 1):
            channels = place.channels + i * growth
            layer = nn.Sequential(bn(place, channels), nn.ReLU(), conv(place, channels, growth, 3, padding=1))
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Any:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features if self.keep == 0 else features[1:], dim=1)


@block()
class Inception(nn.Module):
    """Branches of unequal widths, concatenated; one of them pools first."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.order,) = digits(option, 2)
        third = max(2, width // 3)
        self.one = conv_bn_act(place, place.channels, third, 1)
        self.three = nn.Sequential(
            conv_bn_act(place, place.channels, third + 1, 1), conv_bn_act(place, third + 1, third + 2)
        )
        self.project = conv_bn_act(place, place.channels, third + 1, 1)
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[place.dims - 1](3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Any:
        branches = [self.one(x), self.three(x), self.project(self.pool(x))]
        return torch.cat(branches[::-1] if self.order else branches, 1)


@block()
class Grouped(nn.Module):
    """A grouped convolution between two plain ones (so that the groups' channels are not pinned)."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        groups, double = digits(option, 2, 2)
        groups = (2, 4)[groups]
        width = even(width, groups)
        self.enter = conv_bn_act(place, place.channels, width, 1)
        self.conv = conv(place, width, width * (1 + double), 3, padding=1, groups=groups)
        self.norm = bn(place, width * (1 + double))

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.conv(self.enter(x))))


@block()
class Depthwise(nn.Module):
    """An inverted residual: expand, depth-wise with multiplier 1 or 2, project, perhaps an identity."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        multiplier, self.identity = digits(option, 2, 2)
        inner = width * (multiplier + 1)
        self.expand = conv_bn_act(place, place.channels, width, 1)
        self.depthwise = conv(place, width, inner, 3, padding=1, groups=width, bias=False)
        self.norm = bn(place, inner)
        self.project = conv(place, inner, place.channels if self.identity else width, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.project(F.hardswish(self.norm(self.depthwise(self.expand(x)))))
        return x + y if self.identity else y


@block()
class Shared(nn.Module):
    """One module called twice, or one module in two branches."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.parallel,) = digits(option, 2)
        self.conv = conv(place, place.channels, place.channels, 3, padding=1)
        self.norm = bn(place, place.channels)

    def forward(self, x: Tensor) -> Any:
        if self.parallel:
            return F.relu(self.conv(x)) * torch.sigmoid(self.conv(F.relu(self.norm(x))))
        return F.relu(self.norm(self.conv(F.relu(self.norm(self.conv(x))))))


@block()
class Tied(nn.Module):
    """Two modules with one weight: the same way round, or an encoder and its transposed decoder."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        transposed, self.act = digits(option, 2, 2)
        out = width if transposed else place.channels
        self.first = conv(place, place.channels, out, 3, padding=1)
        self.second: nn.Module
        if transposed:
            layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[place.dims - 1]
            self.second = layer(out, place.channels, 3, padding=1)
        else:
            self.second = conv(place, out, out, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        y = F.gelu(self.first(x)) if self.act else F.relu(self.first(x))
        return self.second(y)


@block()
class Functional(nn.Module):
    """A functional convolution (or a 1x1 written as einsum or matmul) on the module's own parameters."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, bias = digits(option, 3, 2)
        kernel = (3,) * place.dims if self.kind == 0 else ()
        self.weight = parameter(width, place.channels, *kernel)
        self.bias = parameter(width) if bias else None

    def forward(self, x: Tensor) -> Any:
        if self.kind == 0:
            convolve = (F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3]
            return F.relu(convolve(x, self.weight, self.bias, padding=1))
        if self.kind == 1:
            y = torch.einsum("oc,nc...->no...", self.weight, x)
        else:
            y = (self.weight @ x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
        return F.relu(y if self.bias is None else y + self.bias.view(-1, *(1,) * (x.ndim - 2)))


@block()
class WeightNorm(nn.Module):
    """A convolution under the weight_norm parametrization, after a plain one."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (linear,) = digits(option, 2)
        self.enter = conv(place, place.channels, width, 3, padding=1)
        self.linear = bool(linear)
        inner = nn.Linear(width, width + 1) if linear else conv(place, width, width + 1, 3, padding=1)
        self.normed = parametrizations.weight_norm(inner)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.enter(x))
        if self.linear:
            return F.relu(self.normed(y.movedim(1, -1)).movedim(-1, 1))
        return F.relu(self.normed(y))
