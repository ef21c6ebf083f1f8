"""What is kept arrives in another order: shuffles, flips, rolls, indices, views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import CONSTANT, Classifier, conv, zoo


@zoo
class ShuffleOfTwo(Classifier):
    """view(n, groups, c // groups, h, w), transpose, view back: groups is an attribute."""

    groups = 2

    def middle(self, x: Tensor) -> Any:
        n, c, h, w = x.data.size()
        x = x.view(n, self.groups, c // self.groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


@zoo
class ShuffleOfThree(ShuffleOfTwo):
    """The same in three groups."""

    width, groups = 18, 3


@zoo
class ShuffleModule(Classifier):
    """nn.ChannelShuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(4)

    def middle(self, x: Tensor) -> Any:
        return self.shuffle(x)


@zoo
class ShuffledGroups(Classifier):
    """ShuffleNet V1: grouped 1x1, shuffle, depth-wise, grouped 1x1, residual."""

    cuts = ("stem", "squeeze", "depthwise", "expand", "last")

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.depthwise = conv(16, 8, 1, groups=2), conv(8, 8, groups=8)
        self.expand = conv(8, 16, 1, groups=2)

    def middle(self, x: Tensor) -> Any:
        y = F.channel_shuffle(F.relu(self.squeeze(x)), 2)
        return F.relu(x + self.expand(self.depthwise(y)))


@zoo
class PixelModules(Classifier):
    """nn.PixelUnshuffle in front, nn.PixelShuffle behind."""

    cuts = ("stem", "wide", "last")

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.wide = conv(64, 64, 1)

    def middle(self, x: Tensor) -> Any:
        return self.shuffle(F.relu(self.wide(self.unshuffle(x))))


@zoo
class SpaceToDepth(Classifier):
    """YOLO's focus: four strided slices concatenated."""

    arrives = 64

    def middle(self, x: Tensor) -> Any:
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@zoo
class FlippedAlone(Classifier):
    """torch.flip over channels."""

    def middle(self, x: Tensor) -> Any:
        return x.flip(1)


@zoo
class RolledOverChannels(Classifier):
    """torch.roll over channels, read by one layer only."""

    def middle(self, x: Tensor) -> Any:
        return torch.roll(x, 3, dims=1)


@zoo
class TemporalShift(Classifier):
    """TSM: an eighth of the channels moves a step on, an eighth a step back (by the shape)."""

    def middle(self, x: Tensor) -> Any:
        fold = x.shape[1] // 4
        out = torch.zeros_like(x)
        out[:, :fold, :-1] = x[:, :fold, 1:]
        out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return out


@zoo
class IndexedByList(Classifier):
    """A literal list of channels: those that go leave the list wrong, so they stay."""

    cuts, keeps, pins, arrives = ("last",), ("stem", "fc"), CONSTANT, 4

    def middle(self, x: Tensor) -> Any:
        return x[:, [0, 5, 2, 9]]


@zoo
class IndexSelected(Classifier):
    """index_select by a buffer that takes half of the channels."""

    cuts, arrives = ("last",), 8
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([1, 0, 5, 4, 9, 8, 13, 12]))

    def middle(self, x: Tensor) -> Any:
        return x.index_select(1, self.order)


@zoo
class EverySecond(Classifier):
    """x[:, ::2] + x[:, 1::2]."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        return x[:, ::2] + x[:, 1::2]


@zoo
class Unflattened(Classifier):
    """nn.Unflatten by a literal (2, 8): the channels can't follow it."""

    cuts, arrives = ("last",), 8

    def __init__(self) -> None:
        super().__init__()
        self.unflatten = nn.Unflatten(1, (2, 8))

    def middle(self, x: Tensor) -> Any:
        return self.unflatten(x).sum(1)


@zoo
class UnflattenedInferred(Classifier):
    """unflatten(1, (4, -1)), a product with each part's gate, flatten."""

    def middle(self, x: Tensor) -> Any:
        parts = x.unflatten(1, (4, -1))  # type: ignore[no-untyped-call]
        return (parts * torch.sigmoid(parts.mean((1, 3, 4), keepdim=True))).flatten(1, 2)


@zoo
class MaxoutNeighbours(Classifier):
    """view(n, c // 2, 2, h, w).max(2)."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        n, c, h, w = x.size()
        return x.view(n, c // 2, 2, h, w).max(2)[0]


@zoo
class MaxFeatureMap(Classifier):
    """LightCNN: torch.split by an attribute, then the larger half."""

    arrives = 8

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 8

    def middle(self, x: Tensor) -> Any:
        first, second = torch.split(x, self.out_channels, 1)
        return torch.max(first, second)


@zoo
class RepeatInterleaved(Classifier):
    """Each channel twice in a row."""

    arrives = 32

    def middle(self, x: Tensor) -> Any:
        return x.repeat_interleave(2, dim=1)


@zoo
class Tiled(Classifier):
    """All channels twice, by tile."""

    arrives = 32

    def middle(self, x: Tensor) -> Any:
        return x.tile(1, 2, 1, 1)


@zoo
class RepeatedChannels(Classifier):
    """x.repeat over channels and space."""

    arrives = 48

    def middle(self, x: Tensor) -> Any:
        return x.repeat(1, 3, 1, 2)


@zoo
class Im2Col(Classifier):
    """F.unfold and a product with a raw matrix, as a convolution by hand; F.fold puts it back."""

    cuts, arrives = ("stem", "mix", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16 * 9, 12)

    def middle(self, x: Tensor) -> Any:
        n, _, h, w = x.shape
        columns = F.unfold(x, 3, padding=1)
        return F.fold(self.mix(columns.transpose(1, 2)).transpose(1, 2), (h, w), 1).view(n, -1, h, w)


@zoo
class TensorUnfold(Classifier):
    """x.unfold over space: patches, averaged."""

    def middle(self, x: Tensor) -> Any:
        return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))


@zoo
class ChannelsLastMlp(Classifier):
    """permute to channels last, Linear, GELU, Linear, and back."""

    cuts = ("stem", "up", "down", "last")

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def middle(self, x: Tensor) -> Any:
        return self.down(F.gelu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


@zoo
class EinopsLike(Classifier):
    """(b, (g c), h, w) to (b, (h w), g, c), each group through one Linear layer, and back."""

    cuts = ("stem", "last")

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.shared = 4, nn.Linear(4, 4)

    def middle(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        y = x.reshape(b, self.groups, c // self.groups, h * w).permute(0, 3, 1, 2)
        return F.relu(self.shared(y)).permute(0, 2, 3, 1).reshape(b, c, h, w)
