"""Gates and statistics over channels, each with its own truth where a zero would count."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.base import per_channel
from tests.blocks.modern import GlobalResponse
from tests.zoo.base import Classifier, ZooNetwork, conv, zoo


@zoo
class SqueezeExciteConv(Classifier):
    """1x1 convolutions on the pooled map, as torchvision has it."""

    cuts = ("stem", "fc1", "fc2", "last")

    def __init__(self) -> None:
        super().__init__()
        self.avgpool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), conv(16, 6, 1), conv(6, 16, 1)

    def middle(self, x: Tensor) -> Any:
        return torch.sigmoid(self.fc2(F.silu(self.fc1(self.avgpool(x))))) * x


@zoo
class SqueezeExciteSequential(Classifier):
    """``self.fc(y).view(b, c, 1, 1)`` and expand_as."""

    cuts = ("stem", "excite.0", "excite.2", "last")

    def __init__(self) -> None:
        super().__init__()
        self.excite = nn.Sequential(nn.Linear(16, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 16), nn.Sigmoid())

    def middle(self, x: Tensor) -> Any:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.excite(y).view(b, c, 1, 1).expand_as(x)


@zoo
class EfficientChannelAttention(Classifier):
    """ECA: a convolution along the channels reads neighbours, so they stay."""

    cuts = ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def middle(self, x: Tensor) -> Any:
        y = self.conv(x.mean((2, 3)).unsqueeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y)


class ChannelPool(nn.Module):
    """The largest and the mean of all channels, over those that are kept."""

    masked_by = "stem.weight"

    def forward(self, x: Tensor) -> Any:
        return torch.cat((x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)), dim=1)

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.as_tensor(self.forward(x[:, mask]))


@zoo
class Cbam(Classifier):
    """Channel gate from mean and maximum through one MLP, spatial gate from mean and maximum over channels."""

    cuts = ("stem", "mlp.0", "last")

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(conv(16, 4, 1, bias=False), nn.ReLU(), conv(4, 16, 1, bias=False))
        self.pool, self.spatial = ChannelPool(), conv(2, 1, 7)

    def middle(self, x: Tensor) -> Any:
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.spatial(self.pool(x)))


@zoo
class MaxOverChannels(Classifier):
    """The largest channel as a gate."""

    cuts = ("stem", "last")

    class Largest(nn.Module):
        masked_by = "stem.weight"

        def forward(self, x: Tensor) -> Any:
            return x.max(dim=1, keepdim=True).values

        def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
            return x[:, mask].max(dim=1, keepdim=True).values

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.Largest()

    def middle(self, x: Tensor) -> Any:
        return x * torch.sigmoid(self.largest(x))


@zoo
class PlaceOfTheLargest(Classifier):
    """The largest channel as a gate, and where it stands as another: that counts channels, so all stay."""

    cuts, keeps = ("last",), ("stem", "fc")
    pins = MappingProxyType({"stem": "mixes channels in max"})

    def middle(self, x: Tensor) -> Any:
        largest, place = x.max(1, keepdim=True)
        return x * torch.sigmoid(largest) + place / 16


@zoo
class SelectiveKernels(Classifier):
    """SK: branches are stacked, a softmax over the branches weighs each channel."""

    cuts = ("stem", "small", "large", "reduce", "expand", "last")

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = conv(16, 16), conv(16, 16, 5)
        self.reduce, self.expand = conv(16, 8, 1), conv(8, 32, 1)

    def middle(self, x: Tensor) -> Any:
        parts = torch.stack((self.small(x), self.large(x)), dim=1)
        gate = self.expand(F.relu(self.reduce(parts.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(gate.shape[0], 2, -1, 1, 1).softmax(dim=1)
        return (parts * gate).sum(1)


@zoo
class GlobalResponseNormed(ZooNetwork):
    """ConvNeXt V2's block, channels last."""

    cuts, keeps = ("stem", "up", "down"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(3, 12), conv(12, 12, 7, groups=12), nn.LayerNorm(12)
        self.up, self.grn, self.down = nn.Linear(12, 24), GlobalResponse(24), nn.Linear(24, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + self.down(self.grn(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.fc(x.mean((2, 3)))


class Response(nn.Module):
    """GRN as its authors wrote it: channels last, gamma and beta of four axes."""

    masked_by = "stem.weight"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x: Tensor) -> Any:
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (energy / (energy.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        energy = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        mean = energy[..., mask].mean(dim=-1, keepdim=True)
        out: Tensor = self.gamma * (x * (energy / (mean + 1e-6))) + self.beta + x
        return out


@zoo
class GlobalResponseByHand(Classifier):
    """torch.norm over space, a mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.grn = Response(16)

    def middle(self, x: Tensor) -> Any:
        return self.grn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@zoo
class SoftPlaces(Classifier):
    """Global context: a softmax over positions pools, a bottleneck with LayerNorm adds to every position."""

    cuts = ("stem", "add.0", "last")

    def __init__(self) -> None:
        super().__init__()
        self.mask = conv(16, 1, 1)
        self.add = nn.Sequential(conv(16, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), conv(4, 16, 1))

    def middle(self, x: Tensor) -> Any:
        n, c, h, w = x.size()
        weights = self.mask(x).view(n, 1, h * w, 1).softmax(2)
        context = torch.matmul(x.view(n, 1, c, h * w), weights).view(n, c, 1, 1)
        return x + self.add(context)


@zoo
class CoordinateAttention(Classifier):
    """Pooled along each axis, concatenated along space, split by the sizes that came."""

    cuts = ("stem", "join", "row", "column", "last")

    def __init__(self) -> None:
        super().__init__()
        self.join, self.norm, self.row, self.column = conv(16, 8, 1), nn.BatchNorm2d(8), conv(8, 16, 1), conv(8, 16, 1)

    def middle(self, x: Tensor) -> Any:
        h, w = x.shape[2:]
        y = torch.cat((x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)), dim=2)
        rows, columns = torch.split(F.hardswish(self.norm(self.join(y))), [h, w], dim=2)
        return x * self.row(rows).sigmoid() * self.column(columns.permute(0, 1, 3, 2)).sigmoid()


@zoo
class SoftmaxPooled(Classifier):
    """A softmax over channels of a side branch of few: a mixture per position."""

    cuts = ("stem", "values", "last")
    arrives = 8

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.values = conv(16, 3, 1), conv(16, 24, 1)

    def middle(self, x: Tensor) -> Any:
        n, _, h, w = x.shape
        weights = torch.softmax(self.mix(x), dim=1).unsqueeze(2)
        return (weights * self.values(x).view(n, 3, -1, h, w)).sum(1)


@zoo
class NetVlad(ZooNetwork):
    """Soft assignment to clusters, residuals to centres, normalised, flattened."""

    cuts, keeps = ("stem", "hidden"), ("assign", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.assign, self.centres = conv(3, 12), conv(12, 4, 1), nn.Parameter(torch.randn(4, 12))
        self.hidden, self.fc = nn.Linear(48, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        n, c = x.shape[:2]
        soft = F.softmax(self.assign(x).view(n, 4, -1), dim=1)
        flat = x.view(n, c, -1)
        residual = flat.unsqueeze(1) - self.centres[None, :, :, None]
        vlad = F.normalize((residual * soft.unsqueeze(2)).sum(-1), p=2, dim=2)
        return self.fc(F.relu(self.hidden(F.normalize(vlad.view(n, -1), p=2, dim=1))))


@zoo
class BilinearPooling(ZooNetwork):
    """The outer product of features: channel times channel, flattened into a Linear layer."""

    cuts, keeps = ("hidden",), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.fc = conv(3, 8), nn.Linear(64, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x)).flatten(2)
        gram = torch.bmm(x, x.transpose(1, 2)) / x.shape[-1]
        return self.fc(F.relu(self.hidden(gram.flatten(1))))


@zoo
class ScaledByFilter(Classifier):
    """A per-channel parameter viewed over the map: ``self.scale.view(1, -1, 1, 1)``, and layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gamma = nn.Parameter(torch.ones(16)), nn.Parameter(1e-6 * torch.ones(16, 1, 1))

    def middle(self, x: Tensor) -> Any:
        return x + self.gamma * torch.tanh(x * self.scale.view(1, -1, 1, 1)) + per_channel(self.scale, x)
