"""Filters that are the same for every channel: blurs, gradients, means, written in the ways that people write them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import Classifier, zoo


class OneFilter(Classifier):
    """A convolution of each channel by itself with what `filters` makes of one kernel."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", torch.outer(row, row)[None, None] / 16)

    def filters(self, channels: int) -> Tensor:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Any:
        return F.conv2d(x, self.filters(x.shape[1]), padding=1, groups=x.shape[1])


@zoo
class FilterRepeated(OneFilter):
    """``kernel.repeat(C, 1, 1, 1)``."""

    def filters(self, channels: int) -> Tensor:
        return self.kernel.repeat(channels, 1, 1, 1)


@zoo
class FilterInterleaved(OneFilter):
    """``kernel.repeat_interleave(C, 0)``: a view merges the repeated axis with another."""

    def filters(self, channels: int) -> Tensor:
        return self.kernel.repeat_interleave(channels, 0)


@zoo
class FilterMoved(OneFilter):
    """Repeated along one axis, which then moves, as kornia does it."""

    def filters(self, channels: int) -> Tensor:
        return self.kernel.expand(-1, channels, -1, -1).permute(1, 0, 2, 3).reshape(-1, 1, 3, 3)


@zoo
class FilterListed(OneFilter):
    """``torch.cat([kernel] * C)``."""

    def filters(self, channels: int) -> Tensor:
        return torch.cat([self.kernel] * channels)


@zoo
class FilterOfOnes(OneFilter):
    """``torch.ones(C, 1, 3, 3) / 9``: the mean of each window."""

    def filters(self, channels: int) -> Tensor:
        return torch.ones(channels, 1, 3, 3, dtype=self.kernel.dtype) / 9


@zoo
class FilterBackwards(OneFilter):
    """A transposed convolution with one filter for all channels."""

    def middle(self, x: Tensor) -> Any:
        return F.conv_transpose2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


@zoo
class FactorRepeated(OneFilter):
    """One factor, written out for every channel."""

    def middle(self, x: Tensor) -> Any:
        return x * self.kernel.mean((2, 3), keepdim=True).repeat(1, x.shape[1], 1, 1)


@zoo
class FiltersInTurn(OneFilter):
    """Two filters for each channel, one after the other: not every place of that axis is alike."""

    cuts, arrives = ("last",), 32

    def filters(self, channels: int) -> Tensor:
        return torch.cat([self.kernel, self.kernel.mT.square()]).repeat(channels, 1, 1, 1)
