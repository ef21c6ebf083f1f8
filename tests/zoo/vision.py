"""What detectors, matchers and spatial transformers do: offsets, regions, grids, patches, coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torchvision.ops import deform_conv2d, roi_align

from tests.zoo.base import Classifier, ZooNetwork, conv, draw, zoo


@zoo
class Deformable(Classifier):
    """deform_conv2d: offsets and a modulation mask from convolutions, the weight a raw parameter."""

    cuts, arrives = ("stem", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.modulate = conv(16, 18), conv(16, 9)
        self.weight, self.bias = nn.Parameter(torch.randn(12, 16, 3, 3)), nn.Parameter(torch.randn(12))

    def middle(self, x: Tensor) -> Any:
        mask = torch.sigmoid(self.modulate(x))
        return F.relu(deform_conv2d(x, self.offset(x), self.weight, self.bias, padding=1, mask=mask))


@zoo
class RegionHead(ZooNetwork):
    """roi_align on boxes that are an input, two hidden layers on the flattened regions."""

    cuts, keeps = ("stem", "fc6", "fc7"), ("score", "boxes")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc6, self.fc7 = conv(3, 8), nn.Linear(8 * 9, 16), nn.Linear(16, 12)
        self.score, self.boxes = nn.Linear(12, 3), nn.Linear(12, 8)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        boxes = torch.tensor([[0, 0.0, 0, 5, 5], [1, 1, 1, 7, 6], [1, 2, 0, 6, 4]], dtype=torch.float64)
        return draw(2, 3, 8, 8), boxes

    def forward(self, x: Tensor, boxes: Tensor) -> Any:
        regions = roi_align(F.relu(self.stem(x)), boxes, (3, 3), spatial_scale=1.0, sampling_ratio=2)
        x = F.relu(self.fc7(F.relu(self.fc6(regions.flatten(1)))))
        return {"scores": self.score(x), "boxes": self.boxes(x)}


@zoo
class Coordinates(Classifier):
    """CoordConv: a mesh grid is concatenated behind the channels, and a sine of it added."""

    arrives = 18

    def middle(self, x: Tensor) -> Any:
        n, _, h, w = x.shape
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        grid = torch.stack((ys, xs)).to(x).expand(n, -1, -1, -1)
        return torch.cat((x + torch.sin(grid[:, :1]), grid), dim=1)


@zoo
class GridSampled(Classifier):
    """Spatial transformer: affine_grid and grid_sample by a small network."""

    cuts = ("stem", "local", "last")

    def __init__(self) -> None:
        super().__init__()
        self.local, self.theta = nn.Linear(16, 10), nn.Linear(10, 6)

    def middle(self, x: Tensor) -> Any:
        theta = self.theta(F.relu(self.local(x.mean((2, 3))))).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


@zoo
class Involution(Classifier):
    """The kernel of each position comes from the features; it is shared inside a group of channels."""

    cuts = ("stem", "reduce", "last")

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.reduce, self.span = 2, conv(16, 8, 1), conv(8, 18, 1)

    def middle(self, x: Tensor) -> Any:
        n, c, h, w = x.shape
        kernel = self.span(F.relu(self.reduce(x))).view(n, self.groups, 9, h, w).unsqueeze(2)
        patches = F.unfold(x, 3, padding=1).view(n, self.groups, c // self.groups, 9, h, w)
        return (kernel * patches).sum(3).view(n, c, h, w)


@zoo
class CorrelationVolume(ZooNetwork):
    """Optical flow: all pairs of positions of two feature maps meet in a product, divided by the root of the width."""

    cuts, keeps = ("hidden",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.features, self.hidden, self.fc = conv(3, 12), conv(16, 8), nn.Linear(8, 2)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=8)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        a, b = torch.tanh(self.features(left)), torch.tanh(self.features(right))
        n, c, h, w = a.shape
        volume = torch.matmul(a.view(n, c, h * w).transpose(1, 2), b.view(n, c, h * w)) / c**0.5
        return self.fc(F.relu(self.hidden(volume.view(n, h * w, h, w))).mean((2, 3)))
