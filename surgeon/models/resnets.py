"""Residual networks for 32x32 images."""

from __future__ import annotations

import itertools

import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

from surgeon.errors import SelectionError

__all__ = ["CifarResNet", "WideResNet", "scaled"]


def scaled(channels: int, width: float) -> int:
    """A width, multiplied; at least 1."""
    return max(1, round(channels * width))


def _start(model: nn.Module) -> None:
    """He et al. 2015 (arXiv 1502.01852) for convolutions and linear layers; biases from zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Padding(nn.Module):
    """The shortcut without parameters: every second pixel, zeros for the new channels, half of them in front."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.front = (outputs - inputs) // 2
        self.back = outputs - inputs - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, C, H, W) to (N, C + front + back, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.front, self.back))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, projections: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 and projections:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        elif stride != 1:
            self.shortcut = Padding(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, C, H, W)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for CIFAR: He et al. 2016 (arXiv 1512.03385, section 4.2); ``depth = 6 n + 2``.

    Parameters
    ----------
    depth:
        Layers with weights: 20, 32, 44, 56, 110.
    num_classes, width:
        Outputs, and what 16, 32 and 64 channels are multiplied by.
    projections:
        1x1 convolutions on the shortcuts that change the width (their option B), instead of zeros (option A).
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0, *, projections: bool = False) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise SelectionError(f"a CIFAR ResNet has 6 n + 2 layers (20, 32, 44, 56, 110), not {depth}")
        sizes = [scaled(channels, width) for channels in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, sizes[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(sizes[0])
        inputs = [sizes[0], *sizes]
        stages = []
        for stage, outputs in enumerate(sizes):
            strides = [1 if stage == 0 else 2] + [1] * ((depth - 2) // 6 - 1)
            widths = [inputs[stage]] + [outputs] * (len(strides) - 1)
            pairs = zip(widths, strides, strict=True)
            stages.append(nn.Sequential(*(BasicBlock(w, outputs, s, projections=projections) for w, s in pairs)))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(sizes[2], num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 3, 32, 32)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(self.pool(x).flatten(1))
        return scores


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (N, C, H, W)."""
        start = F.relu(self.bn1(x))
        inner = self.conv2(F.relu(self.bn2(self.conv1(start))))
        around = x if self.shortcut is None else self.shortcut(start)
        result: Tensor = inner + around
        return result


class WideResNet(nn.Module):
    """Wide ResNet: Zagoruyko & Komodakis 2016 (arXiv 1605.07146, table 1), without dropout; ``depth = 6 n + 4``.

    Parameters
    ----------
    depth, factor:
        WRN-depth-factor.
    num_classes:
        Outputs.
    """

    def __init__(self, depth: int, factor: float, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise SelectionError(f"a wide ResNet has 6 n + 4 layers (16, 22, 28, 40), not {depth}")
        sizes = [16, *(scaled(channels, factor) for channels in (16, 32, 64))]
        self.conv1 = nn.Conv2d(3, sizes[0], 3, padding=1, bias=False)
        stages = []
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            first = WideBlock(inputs, outputs, 1 if stage == 0 else 2)
            rest = (WideBlock(outputs, outputs, 1) for _ in range((depth - 4) // 6 - 1))
            stages.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(sizes[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(sizes[-1], num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, 3, 32, 32)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        scores: Tensor = self.linear(self.pool(F.relu(self.bn(x))).flatten(1))
        return scores
