"""VGG networks for 32x32 images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from surgeon.models.resnets import scaled

__all__ = ["CifarVGG"]

#: Convolutions of each stage, between which the images are halved: five stages, but for the small network.
_STAGES: Mapping[int, tuple[int, ...]] = {
    7: (2, 2),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class CifarVGG(nn.Module):
    """VGG for CIFAR: the convolutions of Simonyan & Zisserman 2015 (arXiv 1409.1556, table 1), one linear layer behind.

    Parameters
    ----------
    depth:
        11, 13, 16 or 19: the name of the original, whose three linear layers count; or 7: the first two stages alone, a
        network for images from 2x2 pixels.
    num_classes, width:
        Outputs, and what 64 to 512 channels are multiplied by.
    norm:
        Batch norm after each convolution, which has no bias then.
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0, *, norm: bool = True) -> None:
        super().__init__()
        last = scaled(_widest(len(_STAGES[depth]) - 1), width)
        self.features = nn.Sequential(*_layers(_STAGES[depth], width, norm=norm))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 3, 32, 32)."""
        scores: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return scores


def _widest(stage: int) -> int:
    return min(64 << stage, 512)


def _layers(stages: tuple[int, ...], width: float, *, norm: bool) -> Iterator[nn.Module]:
    inputs = 3
    for stage, count in enumerate(stages):
        if stage:
            yield nn.MaxPool2d(2)
        for _ in range(count):
            outputs = scaled(_widest(stage), width)
            yield nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
            if norm:
                yield nn.BatchNorm2d(outputs)
            yield nn.ReLU(inplace=True)
            inputs = outputs
