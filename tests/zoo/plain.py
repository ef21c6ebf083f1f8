"""Chains, residuals, concats, splits and weights that are used in unusual ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.nn.utils import parametrizations

from tests.zoo.base import ZooNetwork, conv, zoo


@zoo
class PlainChain(ZooNetwork):
    """Convolution, norm, ReLU, twice, and a head."""

    cuts, keeps = ("conv1", "conv2"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = conv(16, 12), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


@zoo
class ResidualIdentity(ZooNetwork):
    """The stem's channels and the block's outputs are one group."""

    cuts, keeps = ("stem", "conv1", "conv2"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2, self.fc = conv(3, 12), conv(12, 16), conv(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


@zoo
class InPlaceAdd(ZooNetwork):
    """The same with ``+=`` and in-place ReLU, as torchvision writes it."""

    cuts, keeps = ("stem", "conv1", "conv2"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2, self.fc = conv(3, 12), conv(12, 16), conv(16, 12), nn.Linear(12, 5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.stem(x))
        out = self.conv2(self.relu(self.conv1(x)))
        out += x
        return self.fc(self.relu(out).mean((2, 3)))


@zoo
class DenseList(ZooNetwork):
    """Each layer reads the concatenation of a growing list."""

    cuts, keeps = ("layers.0", "layers.1", "layers.2"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 6), conv(9, 6), conv(15, 6)])
        self.fc = nn.Linear(21, 5)

    def forward(self, x: Tensor) -> Any:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return self.fc(torch.cat(features, 1).mean((2, 3)))


@zoo
class EqualSplit(ZooNetwork):
    """Halves by chunk: equal numbers must go from both."""

    cuts, keeps = ("conv", "left", "right"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right, self.fc = conv(3, 16), conv(8, 12), conv(8, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        left, right = F.relu(self.conv(x)).chunk(2, dim=1)
        return self.fc(F.relu(self.left(left) + self.right(right)).mean((2, 3)))


@zoo
class ChannelShuffle(ZooNetwork):
    """view, transpose, flatten: what is kept arrives in another order."""

    cuts, keeps = ("conv", "grouped", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = conv(3, 16), conv(16, 16, groups=4)
        self.last, self.fc = conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.grouped(F.relu(self.conv(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@zoo
class DepthwiseMultiplier(ZooNetwork):
    """A depth-wise convolution that makes two channels of each."""

    cuts, keeps = ("conv", "depthwise"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = conv(3, 8), conv(8, 16, groups=8)
        self.point, self.fc = conv(16, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.gelu(self.point(F.gelu(self.depthwise(F.gelu(self.conv(x)))))).mean((2, 3)))


@zoo
class FlattenLinear(ZooNetwork):
    """Sixteen features of the Linear layer belong to one filter."""

    cuts, keeps = ("conv", "hidden"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.fc = conv(3, 12), nn.Linear(12 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.flatten(F.max_pool2d(F.relu(self.conv(x)), 2), 1)
        return self.fc(F.relu(self.hidden(x)))


@zoo
class PixelShuffled(ZooNetwork):
    """Four filters make one channel."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 32), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.pixel_shuffle(F.relu(self.conv(x)), 2))).mean((2, 3)))


@zoo
class PixelShuffleNormed(ZooNetwork):
    """Four filters make one channel, and what follows knows of one: a norm, slopes, a place in the picture."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.slopes = conv(3, 32), nn.BatchNorm2d(8), nn.PReLU(8)
        self.position = nn.Parameter(torch.randn(1, 1, 16, 16))
        self.last, self.fc = conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.slopes(self.norm(F.pixel_shuffle(self.conv(x), 2))) + self.position
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


@zoo
class PixelShuffleBesideASkip(ZooNetwork):
    """What was put together of four filters each stands beside whole maps, and a block adds to both."""

    cuts, keeps = ("stem", "down", "block"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.block = conv(3, 8), conv(8, 32, stride=2), conv(16, 16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        x = torch.cat([F.pixel_shuffle(self.down(x), 2), x], 1)
        return self.fc((x + self.block(x)).mean((2, 3)))


@zoo
class ViewShuffleBesideASkip(PixelShuffleBesideASkip):
    """The same with the shuffle written as a view: its filters have labels along the picture, whole maps have none."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        b, _, h, w = x.shape
        up = self.down(x).view(b, -1, 2, 2, h // 2, w // 2).permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h, w)
        x = torch.cat([up, x], 1)
        return self.fc((x + self.block(x)).mean((2, 3)))


@zoo
class ViewMaxout(ZooNetwork):
    """The larger of each channel of two halves, by a view: its channels may go in pairs or not at all."""

    cuts, keeps = ("stem",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = conv(3, 12), conv(12, 24), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(F.gelu(self.stem(x)))
        n, c, h, w = x.shape
        return self.fc(x.view(n, 2, c // 2, h, w).amax(1).mean((2, 3)))


@zoo
class FlippedChannels(ZooNetwork):
    """x plus its own flip: channels go in pairs, and their order turns."""

    cuts, keeps = ("conv", "last"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.fc = conv(3, 12), conv(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.conv(x))
        return self.fc(F.relu(self.last(torch.flip(x, (1,)) - 0.5 * x)).mean((2, 3)))


@zoo
class CalledTwice(ZooNetwork):
    """One convolution used twice: its in- and out-channels are the same channels."""

    cuts, keeps = ("stem", "conv"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = conv(3, 12), conv(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.conv(F.relu(self.conv(x)))).mean((2, 3)))


@zoo
class TiedWeights(ZooNetwork):
    """Two layers with one weight; the tie must survive."""

    cuts, keeps = ("stem", "first", "second"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.fc = conv(3, 12), conv(12, 12), conv(12, 12), nn.Linear(12, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.second(F.relu(self.first(F.relu(self.stem(x)))))).mean((2, 3)))


@zoo
class FunctionalWeights(ZooNetwork):
    """A functional convolution on the module's own parameters, and a per-channel scale."""

    cuts, keeps = ("stem",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 12), nn.Linear(10, 5)
        self.weight, self.bias = nn.Parameter(torch.randn(10, 12, 3, 3)), nn.Parameter(torch.randn(10))
        self.gamma = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Any:
        x = F.conv2d(F.relu(self.stem(x)), self.weight, self.bias, padding=1)
        return self.fc(F.gelu(x * self.gamma[:, None, None]).mean((2, 3)))


@zoo
class WeightNormed(ZooNetwork):
    """The weight is computed from a direction and a magnitude."""

    cuts, keeps = ("stem",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv(3, 12), parametrizations.weight_norm(conv(12, 16))
        self.last, self.fc = conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.relu(self.conv(F.relu(self.stem(x)))))).mean((2, 3)))
