"""Losses that the forward works out and returns beside its result."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import ZooNetwork, conv, zoo

Pair = tuple[Tensor, Tensor]


class Loss(nn.Module):
    """What a pair of values is worth; of a cut pair, what its kept channels are."""

    def __init__(self, masked_by: str) -> None:
        super().__init__()
        self.masked_by = masked_by

    def silenced(self, pair: Pair, mask: Tensor) -> Any:
        return self.forward((pair[0][:, mask], pair[1][:, mask]))


class LossBeside(ZooNetwork):
    """Two layers of one width whose results are compared."""

    cuts: ClassVar[tuple[str, ...]] = ("stem", "left", "right")
    keeps: ClassVar[tuple[str, ...]] = ("fc",)
    Loss: ClassVar[Any] = None

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.loss = conv(3, 12), nn.Linear(16, 5), type(self).Loss("left.weight")
        self.left, self.right = conv(12, 16), conv(12, 16)

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        left, right = self.left(stem), self.right(stem)
        return {"y": self.fc((left + right).mean((2, 3))), "loss": self.loss((left, right))}


@zoo
class DistillationLoss(LossBeside):
    """Mean squared, smooth and absolute differences, by mean and by sum."""

    class Loss(Loss):
        def forward(self, pair: Pair) -> Any:
            smooth = F.smooth_l1_loss(*pair) + F.huber_loss(*pair, reduction="sum")
            return F.mse_loss(*pair) + F.l1_loss(*pair) + smooth


@zoo
class BinaryLoss(LossBeside):
    """Cross entropy for each channel, whose value for two zeros isn't zero."""

    class Loss(Loss):
        def forward(self, pair: Pair) -> Any:
            left, right = pair
            by_logits = F.binary_cross_entropy_with_logits(left, torch.sigmoid(right))
            return F.binary_cross_entropy(torch.sigmoid(left), torch.sigmoid(right)) + by_logits


@zoo
class DivergenceLoss(LossBeside):
    """Kullback-Leibler divergence of the places of each channel."""

    class Loss(Loss):
        def forward(self, pair: Pair) -> Any:
            left, right = (part.flatten(2) for part in pair)
            return F.kl_div(left.log_softmax(-1), right.softmax(-1), reduction="sum")


@zoo
class ClassLoss(LossBeside):
    """Cross entropy over channels as classes: which is which matters."""

    cuts, keeps = ("stem",), ("left", "right", "fc")
    pins: ClassVar[dict[str, str]] = {"left": "mixes channels in"}

    class Loss(Loss):
        def forward(self, pair: Pair) -> Any:
            return F.cross_entropy(pair[0], pair[1].argmax(1))


class CommitmentLoss(Loss):
    """Codes towards what they stand for, and the reverse."""

    def forward(self, pair: Pair) -> Any:
        chosen, z = pair
        return F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(chosen.detach(), z)


@zoo
class VectorQuantised(ZooNetwork):
    """VQ-VAE: the nearest row of a codebook, a straight-through gradient, the commitment loss."""

    cuts, keeps = ("stem", "before", "after"), ("last",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.before = conv(3, 12), conv(12, 10)
        self.codes, self.loss = nn.Embedding(20, 10), CommitmentLoss("before.weight")
        self.after, self.last = conv(10, 12), conv(12, 3)

    def forward(self, x: Tensor) -> Any:
        z = self.before(torch.relu(self.stem(x)))
        rows = z.permute(0, 2, 3, 1)
        flat, codes = rows.reshape(-1, rows.shape[-1]), self.codes.weight
        distance = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.t()
        chosen = self.codes(distance.argmin(1)).view(rows.shape).permute(0, 3, 1, 2)
        return {"y": self.last(torch.relu(self.after(z + (chosen - z).detach()))), "loss": self.loss((chosen, z))}
