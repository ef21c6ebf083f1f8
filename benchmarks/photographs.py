"""The network with ImageNet weights that the shared folder has, as a user would bring a network of his own.

``photographs:mobilenet`` is what ``surgeon --model`` and ``--factory`` take, with this folder on ``PYTHONPATH``.
"""

from __future__ import annotations

from common import loader
from torch import Tensor, nn

from surgeon.data import Preprocess

#: The weights' name in the shared folder.
WEIGHTS = "mobilenet_v1_075-imagenet"


class UpsideDown(nn.Module):
    """MobileNet v1, three quarters of its width. Its kernels are stored flipped, so it sees images upside down."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        inner = loader().MobileNetV1(0.75, num_classes)
        self.features, self.pool, self.classifier = inner.features, inner.pool, inner.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 3, H, W)."""
        x = self.pool(self.features(x.flip(2, 3)))
        scores: Tensor = self.classifier(x.flatten(1))
        return scores


def mobilenet(num_classes: int = 1000) -> nn.Module:
    """With any weights, and as many outputs as asked for."""
    return UpsideDown(num_classes)


#: How its images are made: values from -1 to 1.
mobilenet.preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # type: ignore[attr-defined]
