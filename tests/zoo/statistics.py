"""Norms of every kind, and what sorts, sums or mixes along the channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torchvision.ops import FrozenBatchNorm2d

from tests.zoo.base import Classifier, ZooNetwork, conv, zoo


class Normed(Classifier):
    """A norm behind the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.made()

    def made(self) -> nn.Module:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Any:
        return self.norm(x)


@zoo
class FrozenBatchNormed(Normed):
    """torchvision's FrozenBatchNorm2d: four buffers."""

    def made(self) -> nn.Module:
        norm: nn.Module = FrozenBatchNorm2d(16)
        return norm


@zoo
class BatchNormPlain(Normed):
    """nn.BatchNorm2d without affine parameters."""

    def made(self) -> nn.Module:
        return nn.BatchNorm2d(16, affine=False)


@zoo
class BatchNormUntracked(Normed):
    """nn.BatchNorm2d without running statistics."""

    def made(self) -> nn.Module:
        return nn.BatchNorm2d(16, track_running_stats=False)


@zoo
class InstanceNormAffine(Normed):
    """nn.InstanceNorm2d with parameters and statistics."""

    def made(self) -> nn.Module:
        return nn.InstanceNorm2d(16, affine=True, track_running_stats=True)


@zoo
class GroupNormOfFour(Normed):
    """Four groups."""

    def made(self) -> nn.Module:
        return nn.GroupNorm(4, 16)


@zoo
class GroupNormOfOne(Normed):
    """One group: a layer norm over all."""

    def made(self) -> nn.Module:
        return nn.GroupNorm(1, 16)


@zoo
class PReluChannels(Normed):
    """One slope per channel."""

    def made(self) -> nn.Module:
        return nn.PReLU(16)


@zoo
class PReluOne(Normed):
    """One slope for all."""

    def made(self) -> nn.Module:
        return nn.PReLU()


@zoo
class Dropouts(Normed):
    """Dropout2d, Dropout and AlphaDropout."""

    def made(self) -> nn.Module:
        return nn.Sequential(nn.Dropout2d(0.3), nn.Dropout(0.2), nn.AlphaDropout(0.1), nn.Upsample(scale_factor=2))


@zoo
class LocalResponse(Normed):
    """LocalResponseNorm reads neighbours along the channels: they stay."""

    cuts = ("last",)

    def made(self) -> nn.Module:
        return nn.LocalResponseNorm(3)


class Bare(nn.Module):
    """A norm over the kept channels that has no parameters."""

    masked_by = "stem.weight"

    def forward(self, x: Tensor) -> Any:
        return self.whole(x)

    def whole(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, mask] = self.whole(x[:, mask])
        return out


@zoo
class LayerNormBare(Normed):
    """F.layer_norm over the last axis by the shape, without parameters."""

    class Norm(Bare):
        def whole(self, x: Tensor) -> Tensor:
            return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)

    def made(self) -> nn.Module:
        return self.Norm()


@zoo
class LayerNormModuleBare(ZooNetwork):
    """nn.LayerNorm(16, elementwise_affine=False): its normalized_shape follows."""

    shape, cuts, keeps = (2, 6, 10), ("stem", "hidden"), ("fc",)

    class Norm(nn.LayerNorm):
        masked_by = "stem.weight"

        def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            out[..., mask] = F.layer_norm(x[..., mask], (int(mask.sum()),))
            return out

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(10, 16), self.Norm(16, elementwise_affine=False)
        self.hidden, self.fc = nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.gelu(self.hidden(self.norm(self.stem(x)))).mean(1))


@zoo
class LayerNormOverMap(Normed):
    """nn.LayerNorm([16, 8, 8]): over channels and space, one weight per place."""

    def made(self) -> nn.Module:
        return nn.LayerNorm([16, 8, 8])


@zoo
class RmsNormed(ZooNetwork):
    """nn.RMSNorm, and one by hand in float32's manner, as Llama has it."""

    shape, cuts, keeps = (2, 6, 10), ("stem", "up"), ("fc",)

    class ByHand(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x: Tensor) -> Any:
            variance = x.pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(variance + 1e-6))

        def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.weight * x * torch.rsqrt(x[..., mask].pow(2).mean(-1, keepdim=True) + 1e-6)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.own = nn.Linear(10, 12), nn.RMSNorm(12), self.ByHand(12)
        self.up, self.down, self.fc = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.down(F.silu(self.up(self.norm(x))))
        return self.fc(self.own(x).mean(1))


@zoo
class UnitVectors(Classifier):
    """F.normalize over channels."""

    def middle(self, x: Tensor) -> Any:
        return F.normalize(x, p=2, dim=1)


@zoo
class CosineClassifier(ZooNetwork):
    """Features and class weights on the unit sphere; the weight is a raw parameter."""

    cuts, keeps = ("stem", "last"), ("weight",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = conv(3, 12), conv(12, 16)
        self.weight, self.scale = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.last(F.relu(self.stem(x)))).mean((2, 3))
        return self.scale * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


@zoo
class CosineSimilarity(CosineClassifier):
    """The same by F.cosine_similarity against prototypes."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.last(F.relu(self.stem(x)))).mean((2, 3))
        return self.scale * F.cosine_similarity(x[:, None, :], self.weight[None], dim=-1)


@zoo
class Prototypes(CosineClassifier):
    """Distances to prototypes: squared by hand, and by torch.cdist."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.last(F.relu(self.stem(x)))).mean((2, 3))
        return -(x[:, None] - self.weight[None]).pow(2).sum(-1) - self.scale * torch.cdist(x, self.weight)


class Along(Classifier):
    """Something along the channels that needs all of them: they stay."""

    cuts, keeps = ("last",), ("stem", "fc")


@zoo
class SortedChannels(Along):
    """torch.sort over channels."""

    def middle(self, x: Tensor) -> Any:
        return torch.sort(x, dim=1).values


@zoo
class TopChannels(Along):
    """topk over channels."""

    arrives = 4

    def middle(self, x: Tensor) -> Any:
        return x.topk(4, dim=1).values


@zoo
class SummedChannels(Along):
    """cumsum over channels."""

    def middle(self, x: Tensor) -> Any:
        return x.cumsum(1)


@zoo
class SoftmaxChannelsOnce(Along):
    """F.softmax over channels, and its logarithm."""

    def middle(self, x: Tensor) -> Any:
        return x.softmax(1) + 0.1 * F.log_softmax(x, dim=1)


@zoo
class GatheredChannels(Along):
    """gather by an argmax over channels."""

    def middle(self, x: Tensor) -> Any:
        return x - x.gather(1, x.argmax(1, keepdim=True))


@zoo
class PooledChannels(Classifier):
    """max_pool over neighbouring channels: pairs of them meet."""

    cuts, arrives = ("last",), 8

    def middle(self, x: Tensor) -> Any:
        return F.max_pool3d(x.unsqueeze(1), (2, 1, 1)).squeeze(1)
