"""Weights that are computed, tied, shared, or used by functions."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.nn.utils import parametrizations, parametrize

from tests.blocks.base import Place
from tests.blocks.modern import StandardisedConv
from tests.zoo.base import Classifier, ZooNetwork, conv, zoo


class Computed(Classifier):
    """The middle convolution's weight is computed by `dress`."""

    cuts: ClassVar[tuple[str, ...]] = ("stem", "conv", "last")
    arrives = 12

    def __init__(self) -> None:
        super().__init__()
        self.conv = self.dress(conv(16, 12))

    def dress(self, layer: nn.Module) -> nn.Module:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Any:
        return F.relu(self.conv(x))


@zoo
class WeightNormHook(Computed):
    """The old nn.utils.weight_norm: a hook sets the weight before each forward."""

    def dress(self, layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.weight_norm(layer)


@zoo
class WeightNormBoth(ZooNetwork):
    """Both ways in one model, on linear layers, one of them over the in-features (dim=1)."""

    shape, cuts, keeps = (2, 10), ("first", "third"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(10, 12))
        self.second = parametrizations.weight_norm(nn.Linear(12, 14), dim=1)
        self.third, self.fc = parametrizations.weight_norm(nn.Linear(14, 12)), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.third(F.relu(self.second(F.relu(self.first(x)))))))


@zoo
class SpectralNormed(Computed):
    """parametrizations.spectral_norm: one number of the whole weight, so it may stay."""

    cuts = ("last",)

    def dress(self, layer: nn.Module) -> nn.Module:
        return parametrizations.spectral_norm(layer)


@zoo
class SpectralNormHook(Computed):
    """The old nn.utils.spectral_norm."""

    cuts = ("last",)

    def dress(self, layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.utils.spectral_norm(layer)


@zoo
class Orthogonal(Computed):
    """parametrizations.orthogonal: of a convolution each filter's window of each channel is made so by itself."""

    cuts = ("stem", "conv", "last")

    def dress(self, layer: nn.Module) -> nn.Module:
        return parametrizations.orthogonal(layer, orthogonal_map="cayley")


@zoo
class OrthogonalHouseholder(Computed):
    """The same by Householder reflections, whose signs it keeps on the diagonal and makes whole numbers of."""

    cuts = ("stem", "conv", "last")

    def dress(self, layer: nn.Module) -> nn.Module:
        return parametrizations.orthogonal(layer, orthogonal_map="householder")

    def prepare(self) -> None:
        original = self.get_parameter("conv.parametrizations.weight.original")
        signs = original.data.diagonal(dim1=-2, dim2=-1)
        signs.copy_(signs.sign())


@zoo
class OrthogonalLinear(ZooNetwork):
    """The same of a linear layer: a fixed base times a matrix made as a whole, so what it reads stays."""

    shape, cuts, keeps = (2, 10), ("square", "last"), ("first", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.square = nn.Linear(10, 12), parametrizations.orthogonal(nn.Linear(12, 12))
        self.last, self.fc = nn.Linear(12, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.last(F.relu(self.square(F.relu(self.first(x)))))))


class Doubled(nn.Module):
    """A user's own parametrisation, pointwise."""

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(x) * 2


@zoo
class OwnParametrisation(Computed):
    """parametrize.register_parametrization with a pointwise module."""

    def dress(self, layer: nn.Module) -> nn.Module:
        parametrize.register_parametrization(layer, "weight", Doubled())
        return layer


@zoo
class WeightStandardised(Classifier):
    """Each filter standardised over its inputs, by hand, as BiT has it."""

    cuts, arrives = ("stem", "conv", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = StandardisedConv(Place(16, (8, 8)), 12), nn.GroupNorm(2, 12)

    def middle(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.conv(x)))


class StandardisedByNorm(StandardisedConv):
    """The same by F.batch_norm of the flattened weight, as timm has it."""

    def forward(self, x: Tensor) -> Any:
        flat = self.weight.reshape(1, self.weight.shape[0], -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-5)
        return self.convolve(x, weight.reshape_as(self.weight))


@zoo
class WeightStandardisedByNorm(WeightStandardised):
    """timm's StdConv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = StandardisedByNorm(Place(16, (8, 8)), 12)


class Modulated(nn.Module):
    """StyleGAN2's: the weight is scaled by a style, demodulated, and all examples are one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, 12, 16, 3, 3)), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Any:
        n, c, h, w = x.shape
        style = self.style(x.mean((2, 3))).view(n, 1, c, 1, 1)
        weight = self.weight * style
        weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(n, -1, 1, 1, 1)
        x = F.conv2d(x.reshape(1, n * c, h, w), weight.view(-1, c, 3, 3), padding=1, groups=n)
        return x.view(n, -1, h, w)


@zoo
class StyleModulated(Classifier):
    """Modulated convolution: the layers around it are cut at least."""

    cuts, arrives = ("last",), 12

    def __init__(self) -> None:
        super().__init__()
        self.conv = Modulated()

    def middle(self, x: Tensor) -> Any:
        return F.relu(self.conv(x))


@zoo
class DynamicKernels(Classifier):
    """CondConv: a softmax mixes raw kernels for each example."""

    cuts, arrives = ("stem", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.route = nn.Parameter(torch.randn(3, 12, 16, 3, 3)), nn.Linear(16, 3)

    def middle(self, x: Tensor) -> Any:
        weights = torch.softmax(self.route(x.mean((2, 3)).mean(0, keepdim=True)), 1)
        kernel = (weights.view(3, 1, 1, 1, 1) * self.kernels).sum(0)
        return F.relu(F.conv2d(x, kernel, padding=1))


@zoo
class ParameterLists(ZooNetwork):
    """Weights and biases in nn.ParameterList and nn.ParameterDict, used by functions."""

    shape, cuts, keeps = (2, 10), ("weights", "named"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(12, 10), torch.randn(14, 12)])
        self.biases = nn.ParameterList([torch.randn(12), torch.randn(14)])
        self.named, self.fc = nn.ParameterDict({"weight": torch.randn(8, 14)}), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = F.relu(F.linear(x, weight, bias))
        return self.fc(F.relu(x @ self.named["weight"].t()))


@zoo
class TransposedFunctional(Classifier):
    """F.conv_transpose2d on a raw parameter, with groups, and a transposed module of several strides."""

    cuts, arrives = ("stem", "up", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 8, 3, 3)), nn.Parameter(torch.randn(8))
        self.up = nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1)

    def middle(self, x: Tensor) -> Any:
        return F.relu(self.up(F.relu(F.conv_transpose2d(x, self.weight, self.bias, padding=1))))


@zoo
class TransposedGroups(Classifier):
    """nn.ConvTranspose2d with groups, and a depth-wise one."""

    cuts, arrives = ("stem", "grouped", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2)
        self.depthwise = nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12)

    def middle(self, x: Tensor) -> Any:
        return F.relu(self.depthwise(F.relu(self.grouped(x))))


@zoo
class Autoencoder(ZooNetwork):
    """The decoder uses the encoder's weight, transposed."""

    shape, cuts, keeps = (2, 10), ("encode", "middle"), ()

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle = nn.Linear(10, 16), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Any:
        code = self.middle(F.relu(self.encode(x)))
        return F.linear(F.relu(code), self.encode.weight.t(), self.bias)


@zoo
class LowRank(ZooNetwork):
    """LoRA by hand: a frozen layer and a product of two narrow ones."""

    shape, cuts, keeps = (2, 10), ("base", "lora_a"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.base, self.fc = nn.Linear(10, 16), nn.Linear(16, 5)
        self.lora_a, self.lora_b = nn.Linear(10, 4, bias=False), nn.Linear(4, 16, bias=False)
        self.base.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.base(x) + 2.0 * self.lora_b(self.lora_a(x))))


@zoo
class LowRankKernel(Computed):
    """LoRA inside a convolution's weight: a column of A for each place of the kernel on each in-channel."""

    shapes: ClassVar[Any] = {"lora_a": (4, 8 * 9), "lora_b": (6, 4), "conv.weight": (6, 8, 3, 3)}

    def __init__(self) -> None:
        super().__init__()
        self.lora_a, self.lora_b = nn.Parameter(torch.randn(4, 16 * 9)), nn.Parameter(torch.randn(12, 4))

    def dress(self, layer: nn.Module) -> nn.Module:
        return layer

    def middle(self, x: Tensor) -> Any:
        assert isinstance(self.conv, nn.Conv2d)
        weight = self.conv.weight
        weight = weight + 0.5 * (self.lora_b @ self.lora_a).view(weight.shape)
        return F.relu(F.conv2d(x, weight, self.conv.bias, padding=1))


@zoo
class KernelReadTwice(Computed):
    """A kernel that slides, and whose places are summed by a vector of as many as it is wide: those stay."""

    def __init__(self) -> None:
        super().__init__()
        self.profile = nn.Parameter(torch.randn(3))

    def dress(self, layer: nn.Module) -> nn.Module:
        return layer

    def middle(self, x: Tensor) -> Any:
        assert isinstance(self.conv, nn.Conv2d)
        x = F.conv2d(x, self.conv.weight * self.profile, self.conv.bias, padding=1)
        return F.relu(x) * (self.conv.weight @ self.profile).sum((1, 2))[:, None, None]


@zoo
class OneNumberForEachPlace(Classifier):
    """A map of numbers, one for each channel and place, kept in one row."""

    shapes: ClassVar[Any] = {"map": (1, 8 * 64)}

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.randn(1, 16 * 64))

    def middle(self, x: Tensor) -> Any:
        return F.relu(x + self.map.view(1, x.shape[1], 8, 8))
