"""Constants in the forward, odd inputs and outputs, and operators that pin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import Classifier, ZooNetwork, conv, zoo


@zoo
class PaddedShortcut(ZooNetwork):
    """ResNet's option A: the shortcut is strided and padded with channels of zeros; the pad is a constant."""

    cuts, keeps = ("conv1",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = conv(3, 8), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv2, self.fc = conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        return self.fc(F.relu(shortcut + self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


@zoo
class SplitByAttribute(ZooNetwork):
    """Unequal parts whose sizes stand in an attribute of the module."""

    cuts, keeps = ("left", "right"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 12]
        self.conv, self.left, self.right, self.fc = conv(3, 16), conv(4, 10), conv(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        left, right = torch.split(F.relu(self.conv(x)), self.sizes, dim=1)
        return self.fc(F.relu(self.left(left) + self.right(right)).mean((2, 3)))


@zoo
class ViewLiteral(ZooNetwork):
    """``view(-1, 32 * 4 * 4)``: with fewer channels it would mix up the examples instead of failing."""

    cuts, keeps = ("conv1", "hidden"), ("conv2", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 12), conv(12, 32)
        self.hidden, self.fc = nn.Linear(32 * 4 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.fc(F.relu(self.hidden(x.view(-1, 32 * 4 * 4))))


@zoo
class SliceLiteral(ZooNetwork):
    """``x[:, :8]`` raises nothing when the axis shrinks; it takes other channels."""

    cuts, keeps = ("last",), ("conv", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 16), conv(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        return self.fc(F.relu(self.last(x[:, :8] * 0.5 + x[:, 8:])).mean((2, 3)))


@zoo
class SplitLiteral(ZooNetwork):
    """``split((8, 8), 1)``."""

    cuts, keeps = ("left", "right"), ("conv", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right, self.fc = conv(3, 16), conv(8, 10), conv(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        left, right = F.relu(self.conv(x)).split((8, 8), dim=1)  # type: ignore[no-untyped-call]
        return self.fc(F.relu(self.left(left) + self.right(right)).mean((2, 3)))


@zoo
class AttributeWidth(ZooNetwork):
    """``view(-1, self.dim)``: an attribute of the module holds the width."""

    cuts, keeps = ("conv", "hidden"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.dim = 12
        self.stem, self.conv = conv(3, 6), conv(6, self.dim)
        self.hidden, self.fc = nn.Linear(self.dim, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.adaptive_avg_pool2d(F.relu(self.conv(F.relu(self.stem(x)))), 1)
        return self.fc(F.relu(self.hidden(x.view(-1, self.dim))))


@zoo
class SoftmaxOverChannels(ZooNetwork):
    """A softmax over the channel axis needs all of them."""

    cuts, keeps = ("last",), ("conv", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 12), conv(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(torch.softmax(self.conv(x), dim=1))).mean((2, 3)))


@zoo
class FeatureMapOutput(ZooNetwork):
    """The features are an output beside the logits: they stay."""

    cuts, keeps = ("stem",), ("conv", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = conv(3, 12), conv(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        features = self.conv(F.relu(self.stem(x)))
        return {"features": features, "logits": self.fc(F.relu(features).mean((2, 3)))}


@zoo
class DataDependentBranch(ZooNetwork):
    """Python's ``if`` on a value: the branch that the example doesn't take is cut along."""

    cuts, keeps = ("stem", "taken", "other"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.taken, self.other = conv(3, 12), conv(12, 12), conv(12, 12)
        self.last, self.fc = conv(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        stem = F.relu(self.stem(x))
        y = self.taken(stem) if x.abs().sum() > 0 else self.other(stem)
        return self.fc(F.relu(self.last(F.relu(y))).mean((2, 3)))


@zoo
class FrozenNorm(ZooNetwork):
    """Batch norm by hand from four buffers, as detectors have it."""

    cuts, keeps = ("conv", "last"), ("fc",)
    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)
        self.register_buffer("scale", torch.ones(12))
        self.register_buffer("shift", torch.zeros(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x) * self.scale.reshape(1, -1, 1, 1) + self.shift)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@zoo
class IndexBuffer(ZooNetwork):
    """A buffer of channel numbers: renumbered, never sliced."""

    cuts, keeps = ("conv", "last"), ("fc",)
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)
        self.register_buffer("order", torch.tensor([3, 11, 0, 7, 1, 9, 2, 10, 4, 6, 5, 8]))

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.relu(self.conv(x))[:, self.order])).mean((2, 3)))


@zoo
class IndexedPart(ZooNetwork):
    """Some channels, picked by their numbers, go another way; one of them twice."""

    cuts, keeps = ("conv", "picked", "all"), ("fc",)
    chosen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.picked, self.all, self.fc = conv(3, 12), conv(6, 8), conv(12, 8), nn.Linear(8, 5)
        self.register_buffer("chosen", torch.tensor([9, 2, 5, 2, 11, 0]))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        y = self.picked(torch.index_select(x, 1, self.chosen)) + self.all(x)
        return self.fc(F.relu(y).mean((2, 3)))


@zoo
class OrderAndBack(ZooNetwork):
    """Another order, a layer for each channel, and the old order again, by two buffers, around a shortcut."""

    cuts, keeps = ("conv", "last"), ("fc",)
    order: Tensor
    back: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.own, self.last, self.fc = conv(3, 12), conv(12, 12, groups=12), conv(12, 8), nn.Linear(8, 5)
        self.register_buffer("order", torch.tensor([3, 11, 0, 7, 1, 9, 2, 10, 4, 6, 5, 8]), persistent=False)
        self.register_buffer("back", self.order.argsort())

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        x = x + self.own(x[:, self.order])[:, self.back]
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@zoo
class MaskBuffer(ZooNetwork):
    """A buffer of flags and one of whole numbers, a value for each channel."""

    cuts, keeps = ("conv", "last"), ("fc",)
    flags: Tensor
    powers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)
        self.register_buffer("flags", (torch.arange(12) % 3 > 0).view(1, 12, 1, 1))
        self.register_buffer("powers", torch.arange(12) % 4)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        x = torch.where(self.flags, x, -0.5 * x) * self.powers.view(-1, 1, 1)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@zoo
class UnusedLayer(ZooNetwork):
    """A layer that the forward never calls stays as it is."""

    cuts, keeps = ("conv",), ("unused", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused, self.fc = conv(3, 12), conv(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


@zoo
class EmbeddingMlp(ZooNetwork):
    """Tokens, an embedding with positions, an MLP."""

    cuts, keeps = ("up",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, 12), nn.Parameter(torch.zeros(1, 9, 12))
        self.up, self.down, self.fc = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 5)

    @classmethod
    def example(cls) -> tuple[Tensor, ...]:
        return (torch.arange(18).view(2, 9),)

    def forward(self, x: Tensor) -> Any:
        t = self.embed(x) + self.position
        return self.fc((t + self.down(F.gelu(self.up(t)))).mean(1))


@zoo
class TwoInputs(ZooNetwork):
    """A vector modulates an image's features."""

    cuts, keeps = ("conv", "scale"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.fc = conv(3, 12), nn.Linear(4, 12), nn.Linear(12, 5)

    @classmethod
    def example(cls) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(8)
        return (*super().example(), torch.randn(2, 4, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, vector: Tensor) -> Any:
        return self.fc((F.relu(self.conv(x)) * self.scale(vector)[:, :, None, None]).mean((2, 3)))


@zoo
class UNet(ZooNetwork):
    """Down, up by a transposed convolution, concatenated with the skip; the output is a map."""

    cuts, keeps = ("enter", "down", "up", "last"), ("out",)

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv(3, 8), conv(8, 16)
        self.up, self.last, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), conv(16, 8), conv(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        skip = F.relu(self.enter(x))
        y = self.up(F.relu(self.down(F.max_pool2d(skip, 2))))
        return self.out(F.relu(self.last(torch.cat((skip, y), dim=1))))


@zoo
class BranchByWidth(Classifier):
    """A way to go that is told by a width: that layer stays, the ones behind it go, and the reason is the line."""

    cuts, keeps, pins = ("last",), ("stem", "other", "fc"), {"stem": "constant in", "other": "constant in"}

    def __init__(self) -> None:
        super().__init__()
        self.other = conv(16, 16, 1)

    def middle(self, x: Tensor) -> Any:
        return x + self.other(x) if x.shape[1] == 16 else x


@zoo
class WidthBesideFactor(ZooNetwork):
    """A list holds a width and a factor that is none."""

    cuts, keeps = ("conv", "next"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)
        self.layout = [12, 0.5]

    def forward(self, x: Tensor) -> Any:
        width, factor = self.layout
        y = F.relu(self.conv(x)).flatten(2).view(x.shape[0], int(width), x.shape[2], -1) * factor
        return self.fc(F.relu(self.next(y)).mean((2, 3)))
