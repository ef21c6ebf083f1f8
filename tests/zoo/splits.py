"""Channels in parts: chunk, split, slices, gates of halves, and concatenations of lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import CONSTANT, Classifier, ZooNetwork, conv, zoo


@zoo
class ChunkOfThree(Classifier):
    """chunk(3, 1), each part its own way."""

    cuts, width, arrives = ("stem", "second", "last"), 18, 6

    def __init__(self) -> None:
        super().__init__()
        self.second = conv(6, 6)

    def middle(self, x: Tensor) -> Any:
        a, b, c = x.chunk(3, dim=1)
        return a * torch.sigmoid(self.second(b)) + torch.tanh(c)


@zoo
class SplitConstant(Classifier):
    """torch.split(x, 4, 1): four parts of the dense width, more or fewer of a cut one."""

    cuts, keeps, pins, arrives = ("last",), ("stem", "fc"), CONSTANT, 4

    def middle(self, x: Tensor) -> Any:
        return sum(torch.split(x, 4, dim=1))


@zoo
class SplitByWidth(Classifier):
    """torch.split(x, self.c, 1)."""

    arrives = 8

    def __init__(self) -> None:
        super().__init__()
        self.c = 8

    def middle(self, x: Tensor) -> Any:
        first, second = torch.split(x, self.c, 1)
        return first * torch.sigmoid(second)


@zoo
class SplitByTuple(Classifier):
    """Unequal parts: a tuple in an attribute, as Res2Net and Inception mixes have it."""

    cuts, arrives = ("stem", "wide", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.split_indexes = (4, 4, 8)
        self.small, self.wide = conv(4, 4), conv(8, 8, 5, groups=8)
        self.join = conv(16, 12, 1)

    def middle(self, x: Tensor) -> Any:
        keep, small, wide = torch.split(x, self.split_indexes, dim=1)  # type: ignore[arg-type]  # a tuple does
        return self.join(torch.cat((keep, self.small(small), self.wide(wide)), dim=1))


@zoo
class Res2Net(Classifier):
    """split by self.width, each part added to the next one's input."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.convs = 4, nn.ModuleList(conv(4, 4) for _ in range(3))

    def middle(self, x: Tensor) -> Any:
        parts = torch.split(x, self.each, 1)
        out, y = [parts[0]], parts[0]
        for i, layer in enumerate(self.convs):
            y = F.relu(layer(parts[i + 1] if i == 0 else y + parts[i + 1]))
            out.append(y)
        return torch.cat(out, 1)


@zoo
class GluModule(Classifier):
    """nn.GLU over channels."""

    arrives = 8

    def __init__(self) -> None:
        super().__init__()
        self.glu = nn.GLU(dim=1)

    def middle(self, x: Tensor) -> Any:
        return self.glu(x)


@zoo
class GateByChunk(Classifier):
    """NAFNet's SimpleGate: the product of two halves."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        first, second = x.chunk(2, dim=1)
        return first * second


@zoo
class GeGlu(ZooNetwork):
    """Linear to twice the width, chunk, GELU of one half times the other."""

    shape, cuts, keeps = (2, 6, 10), ("embed", "up", "down"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(10, 12), nn.Linear(12, 32), nn.Linear(16, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.fc((x + self.down(value * F.gelu(gate))).mean(1))


class Bottleneck(nn.Module):
    """Two convolutions with norms around an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.bn1 = conv(width, width, bias=False), nn.BatchNorm2d(width)
        self.cv2, self.bn2 = conv(width, width, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Any:
        return x + F.silu(self.bn2(self.cv2(F.silu(self.bn1(self.cv1(x))))))


class C2f(nn.Module):
    """YOLOv8's: list of two halves, each bottleneck's output appended."""

    def __init__(self, width: int, out: int, by_attribute: bool) -> None:
        super().__init__()
        self.c, self.by_attribute = width // 2, by_attribute
        self.cv1, self.cv2 = conv(width, 2 * self.c, 1), conv(4 * self.c, out, 1)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        y = self.cv1(x)
        parts = list(y.split((self.c, self.c), 1) if self.by_attribute else y.chunk(2, 1))
        parts.extend(m(parts[-1]) for m in self.m)
        return F.silu(self.cv2(torch.cat(parts, 1)))


@zoo
class YoloC2f(Classifier):
    """``list(self.cv1(x).chunk(2, 1))``."""

    cuts, arrives = ("stem", "block.cv1", "block.m.0.cv1", "block.m.1.cv2", "block.cv2", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.block = C2f(16, 12, by_attribute=False)

    def middle(self, x: Tensor) -> Any:
        return self.block(x)


@zoo
class YoloC2fSplit(YoloC2f):
    """``split((self.c, self.c), 1)``, as its export path has it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = C2f(16, 12, by_attribute=True)


@zoo
class Csp(Classifier):
    """Cross-stage partial: two 1x1 branches, one goes through bottlenecks, concatenated."""

    cuts, arrives = ("stem", "cv1", "cv2", "cv3", "m.0.cv1", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = conv(16, 8, 1), conv(16, 8, 1), conv(16, 12, 1)
        self.m = nn.Sequential(Bottleneck(8), Bottleneck(8))

    def middle(self, x: Tensor) -> Any:
        return F.silu(self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1)))


@zoo
class SpatialPyramid(Classifier):
    """SPPF: the same pooling again and again, all four concatenated."""

    arrives = 64

    def middle(self, x: Tensor) -> Any:
        parts = [x]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 3, stride=1, padding=1))
        return torch.cat(parts, 1)


@zoo
class DenseBlock(Classifier):
    """DenseNet: norm and ReLU over the concatenation of all that came before."""

    cuts, arrives = ("stem", "layers.0", "layers.1", "last"), 32

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(2))
        self.layers = nn.ModuleList(conv(16 + 8 * i, 8) for i in range(2))

    def middle(self, x: Tensor) -> Any:
        features = [x]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


@zoo
class HalvesByShape(Classifier):
    """x[:, : c // 2] and x[:, c // 2 :], c read from the shape."""

    arrives = 8

    def middle(self, x: Tensor) -> Any:
        c = x.shape[1]
        return x[:, : c // 2] - 0.5 * x[:, c // 2 :]


@zoo
class PartialConvolution(Classifier):
    """FasterNet: self.dim_conv3 channels are convolved, the rest passes."""

    cuts = ("stem", "partial", "last")

    def __init__(self) -> None:
        super().__init__()
        self.dim_conv3, self.dim_untouched = 4, 12
        self.partial = conv(4, 4, bias=False)

    def middle(self, x: Tensor) -> Any:
        first, rest = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return torch.cat((self.partial(first), rest), 1)


@zoo
class StackedSum(Classifier):
    """torch.stack and sum, and unbind."""

    cuts = ("stem", "other", "last")

    def __init__(self) -> None:
        super().__init__()
        self.other = conv(16, 16)

    def middle(self, x: Tensor) -> Any:
        first, second = torch.stack([x, self.other(x)], dim=0).unbind(0)
        return torch.stack((first, second, x), dim=-1).sum(-1)


@zoo
class HalvesOtherwise(Classifier):
    """Two halves of one layer go through functions of their own and together again: each keeps to its half."""

    def middle(self, x: Tensor) -> Any:
        front, back = x.chunk(2, 1)
        return torch.cat([torch.tanh(front), torch.sigmoid(back)], 1)
