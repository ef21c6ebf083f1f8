"""Weights of the extended grammar that are computed, tied, or raw: parametrizations, standardised, modulated, mixed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.nn.utils import parametrizations, parametrize

from tests.blocks.base import Place, block, bn, conv, digits, even, parameter
from tests.blocks.modern import StandardisedConv


class Doubled(nn.Module):
    """A user's own parametrisation, pointwise."""

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(x) * 2


class Scaled(nn.Module):
    """One with a parameter of its own for each filter (equalised, gained)."""

    def __init__(self, width: int, ndim: int) -> None:
        super().__init__()
        self.gain = parameter(width, *(1,) * (ndim - 1))

    def forward(self, x: Tensor) -> Any:
        return x * self.gain


def hooked(make: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    """One of torch's old functions, which warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return make(layer)


def own(layer: nn.Module, parametrisation: nn.Module) -> nn.Module:
    """Register a parametrisation of the weight."""
    parametrize.register_parametrization(layer, "weight", parametrisation)
    return layer


@block(extended=True)
class Parametrized(nn.Module):
    """A convolution or a linear layer under one of torch's parametrizations, new or old, or the user's own."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        kind, self.linear, groups = digits(option, 6, 2, 2)
        width = even(width) + 2 * (kind == 4)
        self.enter = conv(place, place.channels, width, 1)
        inner: nn.Module = conv(place, width, width, 3, padding=1, groups=1 + groups)
        if self.linear:
            inner = nn.Linear(width, width + 1)
        ndim = 2 if self.linear else place.dims + 2
        self.layer: nn.Module
        if kind == 0:
            self.layer = own(inner, Doubled())
        elif kind == 1:
            self.layer = own(inner, Scaled(width + self.linear, ndim))
        elif kind == 2:
            self.layer = hooked(nn.utils.weight_norm, inner)
        elif kind == 3:
            self.layer = parametrizations.weight_norm(inner)
        elif kind == 4:
            self.layer = parametrizations.weight_norm(inner, dim=1)
        else:
            self.layer = own(own(inner, Doubled()), Scaled(width + self.linear, ndim))

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.enter(x))
        if self.linear:
            return F.gelu(self.layer(y.movedim(1, -1)).movedim(-1, 1))
        return F.gelu(self.layer(y))


@block(extended=True)
class Bound(nn.Module):
    """Spectral or orthogonal weights mix all rows: the layer stays, those around it may go."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (kind,) = digits(option, 3)
        inner = nn.Linear(place.channels, width)
        if kind == 0:
            self.layer: nn.Module = parametrizations.spectral_norm(inner)
        elif kind == 1:
            self.layer = hooked(nn.utils.spectral_norm, inner)
        else:
            square = nn.Linear(place.channels, place.channels)
            self.layer = parametrizations.orthogonal(square, orthogonal_map="cayley")
        self.leave = conv(place, place.channels if kind == 2 else width, width, 1)

    def forward(self, x: Tensor) -> Any:
        return self.leave(F.relu(self.layer(x.movedim(1, -1))).movedim(-1, 1))


class StandardisedByNorm(StandardisedConv):
    """The filters standardised by F.batch_norm of the flattened weight, as timm has it."""

    def forward(self, x: Tensor) -> Any:
        flat = self.weight.reshape(1, self.weight.shape[0], -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-5)
        return self.convolve(x, weight.reshape_as(self.weight))


@block(extended=True)
class StandardisedPair(nn.Module):
    """Two weight-standardised convolutions in a row, each by hand or through a norm, with a group norm between."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        first, second, groups = digits(option, 2, 2, 3)
        groups = (1, 2, 3)[groups]
        width = even(width, groups)
        self.enter = conv(place, place.channels, width, 1)
        kinds = (StandardisedConv, StandardisedByNorm)
        self.first, self.second = (kinds[kind](Place(width, place.size), width) for kind in (first, second))
        self.norm = nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Any:
        return self.second(F.relu(self.norm(self.first(F.relu(self.enter(x))))))


@block(extended=True)
class Raw(nn.Module):
    """Functional convolutions on raw parameters: lists, dicts, transposed, grouped, depth-wise with multipliers."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, multiplier = digits(option, 4, 3)
        self.multiplier, cube = multiplier + 1, (3,) * place.dims
        width = even(width)
        self.width = width
        self.enter = conv(place, place.channels, width, 1)
        shapes = ((width + 1, width), (width, width + 1), (width + 2, width // 2), (width * self.multiplier, 1))
        out, arrives = shapes[self.kind]
        self.weights = nn.ParameterList([parameter(out, arrives, *cube)])
        out = width + 1 if self.kind == 1 else out
        self.named = nn.ParameterDict({"bias": parameter(out), "shift": parameter(1, out, *(1,) * place.dims)})

    def forward(self, x: Tensor) -> Any:
        y, dims = F.relu(self.enter(x)), x.ndim - 3
        weight, bias = self.weights[0], self.named["bias"]
        if self.kind == 1:
            out = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims](y, weight, bias, padding=1)
        else:
            groups = (1, 1, 2, y.shape[1])[self.kind]
            out = (F.conv1d, F.conv2d, F.conv3d)[dims](y, weight, bias, padding=1, groups=groups)
        return F.relu(out) + self.named["shift"]


@block(extended=True)
class Mixed(nn.Module):
    """Kernels mixed by a softmax (CondConv), or two branches' kernels added before they are used (RepVGG)."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        channels = place.channels
        self.kernels = parameter(3, width, channels, *(3,) * place.dims)
        self.point, self.route = parameter(width, channels, *(1,) * place.dims), nn.Linear(channels, 3)
        self.norm = bn(place, width)

    def forward(self, x: Tensor) -> Any:
        if self.kind == 0:
            share = torch.softmax(self.route(x.flatten(2).mean(2)).mean(0), 0)
            kernel = (share.view(3, *(1,) * (self.kernels.ndim - 1)) * self.kernels).sum(0)
        elif self.kind == 1:
            kernel = self.kernels[0] + self.kernels[1] * self.kernels[2]
        else:
            kernel = self.kernels.mean(0) + F.pad(self.point, (1, 1) * (x.ndim - 2))
        return F.relu(self.norm((F.conv1d, F.conv2d, F.conv3d)[x.ndim - 3](x, kernel, padding=1)))


@block(extended=True)
class LowRank(nn.Module):
    """LoRA beside a layer or inside its weight, and a factorised layer."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, rank = digits(option, 3, 3)
        channels, rank = place.channels, rank + 2
        self.base = nn.Linear(channels, width)
        self.lora_a, self.lora_b = parameter(rank, channels), parameter(width, rank)

    def forward(self, x: Tensor) -> Any:
        t = x.movedim(1, -1)
        if self.kind == 0:
            y = self.base(t) + 2.0 * F.linear(F.linear(t, self.lora_a), self.lora_b)
        elif self.kind == 1:
            y = F.linear(t, self.base.weight + self.lora_b @ self.lora_a * 0.5, self.base.bias)
        else:
            y = self.base(t) + (t @ self.lora_a.t()) @ self.lora_b.t()
        return F.relu(y).movedim(-1, 1)


@block(extended=True)
class TiedMore(nn.Module):
    """A weight used three times: encoder, decoder by its transpose, and a gate; norms share their parameters."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        self.encode, self.bias = nn.Linear(place.channels, width), parameter(place.channels)
        self.first, self.second = nn.LayerNorm(place.channels), nn.LayerNorm(place.channels)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        t = self.first(x.movedim(1, -1))
        code = F.relu(self.encode(t))
        back = F.linear(code, self.encode.weight.t(), self.bias)
        if self.kind == 1:
            back = self.second(back)
        elif self.kind == 2:
            back = back * torch.sigmoid(code @ self.encode.weight)
        return x + back.movedim(-1, 1)
