"""A layer as a matrix product: rows of inputs, rows of outputs, and the weight as ``(groups, inputs, outputs)``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """``x (rows, inputs) @ weight (inputs, outputs)``."""

    def count(self, output: Tensor) -> int:
        """How many rows there are."""
        return output.shape[0]

    def inputs(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The chosen rows of inputs, ``(groups, rows, inputs)``."""
        return x[chosen][None]

    def outputs(self, y: Tensor, chosen: Tensor) -> Tensor:
        """The chosen rows of outputs, ``(groups, rows, outputs)``."""
        return y[chosen][None]

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, inputs, outputs)``."""
        return weight[None]

    @property
    def weight_axis(self) -> int:
        """The axis of the parameter (as ``nn.Linear`` has it) along which the inputs lie."""
        return 1


@dataclass(frozen=True)
class Convolution:
    """A convolution of any dimension, also grouped, dilated or transposed: a row for each place of the output."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, weight: Sequence[int], args: Sequence[Any]) -> Convolution:
        """Read the arguments of ``aten.convolution`` from the stride on."""
        kernel = tuple(weight[2:])
        stride, padding, dilation, extra = (_each(args[i], len(kernel)) for i in (0, 1, 2, 4))
        return cls(kernel, stride, padding, dilation, bool(args[3]), extra, int(args[5]))

    def count(self, output: Tensor) -> int:
        """How many rows there are."""
        return output.shape[0] * math.prod(output.shape[2:])

    def inputs(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The windows of the chosen places, ``(groups, rows, inputs)``."""
        return self._grouped(_picked(self._windows(x), chosen, len(self.kernel)))

    def outputs(self, y: Tensor, chosen: Tensor) -> Tensor:
        """The chosen places of outputs, ``(groups, rows, outputs)``."""
        return self._grouped(_picked(y, chosen, len(self.kernel)))

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, inputs, outputs)``."""
        if self.transposed:  # (in, out of the group, *kernel), applied back to front
            weight = weight.flip(list(range(2, weight.ndim)))
            split = weight.reshape(self.groups, -1, *weight.shape[1:]).movedim(2, -1)
            return split.reshape(self.groups, -1, weight.shape[1])
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    @property
    def weight_axis(self) -> int:
        """The axis of the parameter along which the inputs lie."""
        return 0 if self.transposed else 1

    def _grouped(self, rows: Tensor) -> Tensor:
        """``(rows, channels, *kernel)`` as ``(groups, rows, ...)``; there may be no rows."""
        return rows.reshape(len(rows), self.groups, math.prod(rows.shape[1:]) // self.groups).transpose(0, 1)

    def _windows(self, x: Tensor) -> Tensor:
        """What each place of the output sees: a view ``(N, C, *output, *kernel)``."""
        padding, stride = [(p, p) for p in self.padding], self.stride
        if self.transposed:
            x = _spread(x, self.stride)
            spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            padding = [(s - p, s - p + e) for s, p, e in zip(spans, self.padding, self.output_padding, strict=True)]
            stride = (1,) * len(self.kernel)
        x = F.pad(x, [side for pair in reversed(padding) for side in pair])
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        sizes = [(size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, stride, strict=True)]
        outer, inner = ([a * b for a, b in zip(x.stride()[2:], by, strict=True)] for by in (stride, self.dilation))
        return x.as_strided((*x.shape[:2], *sizes, *self.kernel), (*x.stride()[:2], *outer, *inner))


def _picked(value: Tensor, chosen: Tensor, ndim: int) -> Tensor:
    """Of a value ``(N, C, *places, ...)`` with `ndim` axes of places what stands at the chosen ones, these in front."""
    example, *place = torch.unravel_index(chosen, (len(value), *value.shape[2 : 2 + ndim]))
    index: Any = (example, slice(None), *place)
    return value[index]


def _each(value: Any, count: int) -> tuple[int, ...]:
    numbers: tuple[int, ...] = tuple(value)
    return numbers * count if len(numbers) == 1 else numbers


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Zeros between the places, as a transposed convolution with a stride sees its input."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], stride, strict=True)]
    out = x.new_zeros((*x.shape[:2], *sizes))
    places: Any = (slice(None), slice(None), *(slice(None, None, s) for s in stride))
    out[places] = x
    return out


Form = Linear | Convolution
