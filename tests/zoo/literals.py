"""Numbers of channels written into the forward: exact, or kept with the line as the reason."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import CONSTANT, Classifier, ZooNetwork, conv, zoo


class Literal(Classifier):
    """The stem must stay, and the line is the reason."""

    cuts, keeps, pins = ("last",), ("stem", "fc"), CONSTANT


@zoo
class FlattenLiteral(ZooNetwork):
    """``x.view(-1, 12 * 4 * 4)`` in front of a Linear layer."""

    cuts, keeps, pins = ("first", "hidden"), ("second", "fc"), {"second": "constant"}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 12)
        self.hidden, self.fc = nn.Linear(12 * 4 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(F.relu(self.second(F.relu(self.first(x)))), 2)
        return self.fc(F.relu(self.hidden(x.view(-1, 12 * 4 * 4))))


@zoo
class FlattenModule(ZooNetwork):
    """nn.Flatten, and view(x.size(0), -1): nothing is written down."""

    cuts, keeps = ("first", "second", "hidden"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.flatten = conv(3, 8), conv(8, 12), nn.Flatten()
        self.hidden, self.fc = nn.Linear(12 * 64 + 8 * 64, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.first(x))
        y = F.relu(self.second(x))
        return self.fc(F.relu(self.hidden(torch.cat((self.flatten(y), x.view(x.size(0), -1)), 1))))


@zoo
class FirstChannels(Literal):
    """``x[:, :8]``: raises nothing and takes other channels."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        return x[:, :8]


@zoo
class LiteralHalves(Classifier):
    """Two literal slices, concatenated again the other way round: eight channels go, or none."""

    cuts = ("last",)

    def middle(self, x: Tensor) -> Any:
        return torch.cat([x[:, 8:], x[:, :8]], 1)


@zoo
class LiteralNarrow(Literal):
    """narrow and a negative slice."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        return x.narrow(1, 0, 8) + x[:, -8:]


@zoo
class OneChannel(Classifier):
    """``x[:, 3]``: one channel by its number, as a gate; it stays, and so do those in front of it."""

    cuts = ("last",)

    def middle(self, x: Tensor) -> Any:
        return x * torch.sigmoid(x[:, 3:4]) + x[:, 5].unsqueeze(1)


@zoo
class ViewLiteralHeads(Literal):
    """``view(n, 4, 4, h, w)``."""

    def middle(self, x: Tensor) -> Any:
        y = x.view(x.shape[0], 4, 4, *x.shape[2:])
        return (y * torch.sigmoid(y.mean(2, keepdim=True))).flatten(1, 2)


@zoo
class AddedZeros(Literal):
    """zeros of 16 channels are added."""

    def middle(self, x: Tensor) -> Any:
        return x + torch.zeros(x.shape[0], 16, 1, 1, dtype=x.dtype)


@zoo
class ConcatenatedZeros(Classifier):
    """zeros of 4 channels behind those that are there: they hold nothing in place."""

    arrives = 20

    def middle(self, x: Tensor) -> Any:
        return torch.cat((x, torch.zeros(x.shape[0], 4, *x.shape[2:], dtype=x.dtype)), 1)


@zoo
class PaddedToWidth(Classifier):
    """Zeros fill up to self.planes, as ResNet's option A with an attribute."""

    cuts, arrives = ("wide", "last"), 24

    def __init__(self) -> None:
        super().__init__()
        self.planes, self.wide = 24, conv(16, 24)

    def middle(self, x: Tensor) -> Any:
        pad = torch.zeros(x.size(0), self.planes - x.size(1), x.size(2), x.size(3), dtype=x.dtype)
        return F.relu(self.wide(x) + torch.cat((x, pad), dim=1))


@zoo
class WidthInAttribute(Classifier):
    """``view(b, self.dim, -1)`` and back."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 16

    def middle(self, x: Tensor) -> Any:
        b, _, h, w = x.shape
        y = x.view(b, self.dim, -1)
        return (y * y.mean(-1, keepdim=True)).view(b, self.dim, h, w)


@zoo
class WidthInConfig(Classifier):
    """The width stands in a dict that is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": 16, "name": "small"}

    def middle(self, x: Tensor) -> Any:
        return x.reshape(x.shape[0], self.config["dim"], -1).view_as(x) * 0.5


@zoo
class WidthOfALayer(Classifier):
    """``self.stem.out_channels`` is asked in the forward."""

    def middle(self, x: Tensor) -> Any:
        x = x.reshape(-1, self.stem.out_channels, *x.shape[2:])
        assert x.shape[1] == self.last.in_channels == self.last.weight.shape[1]
        return x * 0.5


@zoo
class CheckedWidth(Classifier):
    """``assert c == self.dim``: the attribute follows."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 16

    def middle(self, x: Tensor) -> Any:
        if x.shape[1] != self.dim:
            raise ValueError(f"expected {self.dim} channels, got {x.shape[1]}")
        return F.gelu(x)


@zoo
class DividedByWidth(Classifier):
    """A number of the shape divides what is summed over it: it stays that of the dense model, or the channels stay."""

    cuts = ("last",)

    def middle(self, x: Tensor) -> Any:
        return x * 3.0 / x.shape[1] ** 0.5


@zoo
class DividedByAttribute(Classifier):
    """The same number from an attribute: it stays that of the dense model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 16

    def middle(self, x: Tensor) -> Any:
        return x * self.embed_dim**-0.5


@zoo
class LoopOverChannels(Literal):
    """A Python loop over range(16)."""

    def middle(self, x: Tensor) -> Any:
        return torch.stack([x[:, i] * (i + 1) for i in range(16)], 1)


@zoo
class NumberThatChooses(Classifier):
    """``self.kind`` says how the halves meet and isn't their number, which stands in the same line."""

    cuts, width, arrives = ("stem", "last"), 24, 12

    def __init__(self) -> None:
        super().__init__()
        self.kind = 2

    def middle(self, x: Tensor) -> Any:
        if self.kind == 0:
            first, second = x.chunk(2, dim=1)
            return torch.maximum(first, second)
        n, c, *size = x.shape
        return x.view(n, c // 2, 2, *size).max(dim=2).values


@zoo
class GroupsThenLiteralSplit(Classifier):
    """What holds in place is the split, not the weight of the grouped convolution that lost filters before it."""

    cuts, arrives = ("grouped", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.c = 6
        self.grouped, self.both, self.inner = conv(16, 32, groups=2), conv(32, 12, 1), conv(6, 6)

    def middle(self, x: Tensor) -> Any:
        y = list(F.relu(self.both(F.relu(self.grouped(x)))).split((self.c, self.c), 1))  # type: ignore[no-untyped-call]
        return torch.cat((y[0], F.relu(self.inner(y[1]))), 1)
