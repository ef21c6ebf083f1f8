"""Spectra, patches, offsets, unit vectors, products of features: the extended grammar's rarer operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torchvision.ops import deform_conv2d

from tests.blocks.base import Place, block, conv, digits, even, parameter


@block(dims=(2,), extended=True)
class Spectral(nn.Module):
    """An FFT over space, a filter per channel or a matrix over channels, and back; or the real part alone."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, self.ortho = digits(option, 3, 2)
        h, w = place.size
        self.modes = (min(2, h), min(2, w // 2 + 1))
        self.enter = conv(place, place.channels, width, 1)
        shape = (width, width + 1, *self.modes) if self.kind == 1 else (width, h, w // 2 + 1)
        self.real, self.imaginary = parameter(*shape), parameter(*shape)
        self.leave = conv(place, width + (self.kind == 1), place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        norm = "ortho" if self.ortho else "backward"
        y = self.enter(x)
        if self.kind == 2:
            return x + self.leave(torch.fft.fft2(y, norm=norm).real)
        z = torch.fft.rfft2(y, dim=(2, 3), norm=norm)
        weight = torch.complex(self.real, self.imaginary)
        if self.kind == 0:
            z = z * weight
        else:
            out = torch.zeros(z.shape[0], weight.shape[1], *z.shape[2:], dtype=z.dtype)
            rows, columns = self.modes
            out[:, :, :rows, :columns] = torch.einsum("bixy,ioxy->boxy", z[:, :, :rows, :columns], weight)
            z = out
        return x + self.leave(torch.fft.irfft2(z, s=y.shape[2:], dim=(2, 3), norm=norm))


@block(dims=(2,), extended=True)
class Patches(nn.Module):
    """im2col: a convolution by unfold and a product, patches folded back, local attention over neighbours."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 4)
        self.groups, width = 2, even(width)
        self.enter = conv(place, place.channels, width, 1)
        self.weight = parameter(width + 1, width * 9)
        self.linear, self.span = nn.Linear(width * 9, width + 1), conv(place, width, 9 * self.groups, 1)
        behind = width if self.kind > 1 else width + 1
        self.leave = conv(place, behind, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.enter(x))
        n, c, h, w = y.shape
        columns = F.unfold(y, 3, padding=1)
        if self.kind == 0:
            out = (self.weight @ columns).view(n, -1, h, w)
        elif self.kind == 1:
            out = self.linear(columns.transpose(1, 2)).transpose(1, 2).reshape(n, -1, h, w)
        elif self.kind == 2:
            out = F.fold(columns * 0.5, (h, w), 3, padding=1)
        else:
            kernel = self.span(y).view(n, self.groups, 9, h, w).unsqueeze(2)
            out = (kernel * columns.view(n, self.groups, c // self.groups, 9, h, w)).sum(3).view(n, c, h, w)
        return x + self.leave(out)


@block(dims=(2,), extended=True)
class Deformed(nn.Module):
    """A deformable convolution, with or without modulation; or features sampled along a learnt grid."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        channels = place.channels
        self.offset, self.modulate = conv(place, channels, 18, 3, padding=1), conv(place, channels, 9, 1)
        self.weight, self.bias = parameter(width, channels, 3, 3), parameter(width)
        self.theta = nn.Linear(channels, 6)

    def forward(self, x: Tensor) -> Any:
        if self.kind == 2:
            theta = torch.tanh(self.theta(x.mean((2, 3)))).view(-1, 2, 3)
            grid = F.affine_grid(theta, list(x.shape), align_corners=False)
            return F.conv2d(F.grid_sample(x, grid, align_corners=False), self.weight, self.bias, padding=1)
        mask = torch.sigmoid(self.modulate(x)) if self.kind else None
        return F.relu(deform_conv2d(x, self.offset(x).tanh(), self.weight, self.bias, padding=1, mask=mask))


@block(extended=True)
class Unit(nn.Module):
    """Unit vectors: features, weights, cosines and distances to prototypes, made by a layer of their own."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 5)
        self.enter = conv(place, place.channels, width, 3, padding=1)
        self.prototypes, self.scale = parameter(7, width), nn.Parameter(torch.tensor(3.0))
        self.leave = conv(place, width if self.kind == 0 else 7, place.channels, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.enter(x)
        if self.kind == 0:
            return x + self.leave(F.normalize(y, dim=1))
        t = y.movedim(1, -1)
        if self.kind == 1:
            out = self.scale * F.linear(F.normalize(t, dim=-1), F.normalize(self.prototypes, dim=1))
        elif self.kind == 2:
            out = self.scale * F.cosine_similarity(t.unsqueeze(-2), self.prototypes, dim=-1)
        elif self.kind == 3:
            out = -(t.unsqueeze(-2) - self.prototypes).pow(2).sum(-1)
        else:
            flat = t.flatten(1, -2)
            out = torch.cdist(flat, self.prototypes.expand(x.shape[0], -1, -1)).view(*t.shape[:-1], -1)
        return x + self.leave(out.movedim(-1, 1))


@block(extended=True)
class Products(nn.Module):
    """Features times features: bilinear layers, Gram matrices, correlations, tensordot, baddbmm."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 5)
        width = max(3, width // 2)
        channels = place.channels
        self.left, self.right = conv(place, channels, width, 1), conv(place, channels, width + 1, 1)
        if self.kind == 0:
            self.form: nn.Module = nn.Bilinear(width, width + 1, channels)
        else:
            self.form = nn.Linear(width * (width + 1) if self.kind < 3 else width, channels)
        self.matrix, self.bias = parameter(width + 1, width), parameter(1, 1, width)

    def forward(self, x: Tensor) -> Any:
        a, b = self.left(x).flatten(2).transpose(1, 2), self.right(x).flatten(2).transpose(1, 2)
        if self.kind == 0:
            out = self.form(F.relu(a), F.relu(b))
        elif self.kind == 1:
            out = self.form((a.transpose(1, 2) @ b / a.shape[1]).flatten(1)).unsqueeze(1)
        elif self.kind == 2:
            out = self.form(torch.einsum("btc,btd->btcd", a, b).flatten(2))
        elif self.kind == 3:
            out = self.form(a * torch.tensordot(b, self.matrix, dims=([2], [0])))
        else:
            out = self.form(torch.baddbmm(self.bias, b, self.matrix.expand(x.shape[0], -1, -1)).relu())
        out = out.transpose(1, 2)
        return x + (out.unsqueeze(-1) if out.shape[2] == 1 else out).reshape(*out.shape[:2], *self.space(x, out))

    def space(self, x: Tensor, out: Tensor) -> tuple[int, ...]:
        return (1,) * (x.ndim - 2) if out.shape[2] == 1 else tuple(x.shape[2:])


@block(extended=True)
class Gated(nn.Module):
    """Halves that gate: F.glu, nn.GLU, products of chunks, split sizes in an attribute, along tokens' last axis."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, act = digits(option, 6, 2)
        self.hidden, self.glu = width, nn.GLU(dim=1)
        self.act: nn.Module = nn.GELU() if act else nn.SiLU()
        self.enter = conv(place, place.channels, 2 * width, 1)
        self.leave = conv(place, width, place.channels, 3, padding=1)

    def halves(self, y: Tensor) -> Tensor:
        if self.kind == 0:
            return F.glu(y, 1)
        if self.kind == 1:
            out: Tensor = self.glu(y)
            return out
        if self.kind == 2:
            first, second = y.chunk(2, dim=1)
        elif self.kind == 3:
            first, second = torch.split(y, self.hidden, dim=1)
        elif self.kind == 4:
            first, second = y[:, : self.hidden], y[:, self.hidden :]
        else:
            first, second = y.unflatten(1, (2, -1)).unbind(1)  # type: ignore[no-untyped-call]
        return first * self.act(second)  # type: ignore[no-any-return]  # a module's call is untyped

    def forward(self, x: Tensor) -> Any:
        return x + self.leave(self.halves(self.enter(x)))
