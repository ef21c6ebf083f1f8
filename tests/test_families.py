"""One member of each of torchvision's families at ratio 0.5: exact, and as small as halved widths leave it.

The Linear layers of alexnet and vgg are narrowed here (a float64 copy of the real ones takes a gigabyte); the real
ones are measured by the benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import surgeon
from surgeon.rewriting import fit
from tests.networks import redraw, settled
from tests.oracle import compare

CLASSES = 11  # a width that no hidden layer has


@dataclass(frozen=True)
class Family:
    """A torchvision model's name, the side of its example image, and what its builder needs."""

    name: str
    side: int = 64
    kwargs: tuple[tuple[str, Any], ...] = ()

    def build(self) -> nn.Module:
        """The model with redrawn weights, float64, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            kwargs: dict[str, Any] = {"weights": None, "num_classes": CLASSES, **dict(self.kwargs)}
            if self.name.startswith(("deeplab", "fcn", "lraspp")):
                kwargs["weights_backbone"] = None
            model: nn.Module = torchvision.models.get_model(self.name, **kwargs)
            return settled(redraw(_narrowed(model), 0).double().eval(), self.example())

    def example(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, 3, self.side, self.side, generator=generator, dtype=torch.float64)


AUX = (("aux_logits", False), ("init_weights", False))
FAMILIES = (
    Family("alexnet"),
    Family("vgg11", 32),
    Family("vgg11_bn", 32),
    Family("resnet18"),
    Family("resnet50"),
    Family("resnext50_32x4d"),
    Family("wide_resnet50_2", 32),
    Family("densenet121"),
    Family("googlenet", 64, AUX),
    Family("inception_v3", 96, AUX),
    Family("squeezenet1_1"),
    Family("mobilenet_v2"),
    Family("mobilenet_v3_small"),
    Family("mnasnet0_5"),
    Family("efficientnet_b0"),
    Family("efficientnet_v2_s"),
    Family("regnet_x_400mf"),
    Family("regnet_y_400mf"),
    Family("shufflenet_v2_x0_5"),
    Family("convnext_tiny"),
    Family("deeplabv3_mobilenet_v3_large"),
    Family("fcn_resnet50", 32),
    Family("lraspp_mobilenet_v3_large"),
)


def _narrowed(model: nn.Module) -> nn.Module:
    if isinstance(model, torchvision.models.AlexNet | torchvision.models.VGG):
        places = [i for i, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
        features = model.classifier[places[0]].in_features
        for place, width in zip(places, (128, 96, CLASSES), strict=True):
            model.classifier[place] = nn.Linear(features, width)
            features = width
    return model


def _layer_shares(layer: nn.Module) -> tuple[float, float]:
    """The least and the largest share of the weight that halved widths leave."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    left = (0.5 if weight.shape[0] != CLASSES else 1.0) * (0.5 if weight.shape[1] != 3 else 1.0)
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        # either half of the groups go, or half of each; a depth-wise one has no in-channels to lose
        return (0.5 if weight.shape[1] == 1 else 0.25), 0.5
    return left, left


def _shares(model: nn.Module) -> Iterator[tuple[int, float, float]]:
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if name == "weight" and isinstance(layer, nn.Conv2d | nn.Linear):
                yield parameter.numel(), *_layer_shares(layer)
            else:
                half = 1.0 if parameter.numel() == CLASSES else 0.5
                yield parameter.numel(), half, half


def halved(model: nn.Module) -> tuple[float, float]:
    """The least and the largest share of the parameters that widths halved everywhere would leave."""
    rows = list(_shares(model))
    total = sum(size for size, _, _ in rows)
    return sum(size * low for size, low, _ in rows) / total, sum(size * high for size, _, high in rows) / total


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_half_of_each_family(family: Family) -> None:
    model, x = family.build(), family.example()
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random")
    check = result.report.check
    assert check is not None
    assert check.status == "passed", check
    assert check.error < 1e-9
    verdict = compare(model, result.model, fit(model, result.plan, x).source, x)
    assert verdict.effect > 1e-6
    least, most = halved(model)
    left = result.report.params_after / result.report.params_before
    assert least - 0.05 <= left <= most + 0.05, f"{left:.3f} of the parameters left, halved widths leave {most:.3f}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_random_plan_of_each_family(family: Family) -> None:
    model, x = family.build(), family.example()
    result = surgeon.prune(model, x, ratio=0.3, scope="global", criterion="random", seed=1)
    compare(model, result.model, fit(model, result.plan, x).source, x)
