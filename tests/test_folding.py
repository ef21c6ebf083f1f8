"""Batch norms go into convolutions only where that computes the same; networks are named after what makes it hard."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from surgeon.errors import ModelError
from surgeon.measure import Footprint, difference, file_bytes, fold_batch_norms, footprint
from surgeon.measure import folding as module


def settled(model: nn.Module) -> nn.Module:
    """Running statistics and scales that aren't the identity."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (part.running_mean, part.bias):
                nn.init.normal_(tensor) if tensor is not None else None
            for tensor in (part.running_var, part.weight):
                nn.init.uniform_(tensor, 0.5, 1.5) if tensor is not None else None
    return model.eval()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc, self.bn1 = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.fc(self.bn(self.conv(x)).relu().mean((2, 3))))
        return y


class CalledTwice(nn.Module):
    """Both parts are called twice, always together: may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(self.bn(self.conv(x)).relu()))
        return y


class TwoNormsBehindOneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.conv(self.one(self.conv(x)).relu()))
        return y


class OneNormBehindTwoConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.two(self.bn(self.one(x)).relu()))
        return y


class ReadInBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.bn(y) + y
        return z


class NormOnOneOfTwoCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.bn(self.conv(x)))
        return y


class WeightReadElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)) * self.conv.weight.sum()
        return y


class UnderTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.same = self.bn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.same(self.two(self.bn(self.one(x))))
        return y


def norms_left(model: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (Plain, 0), (CalledTwice, 0), (TwoNormsBehindOneConvolution, 2), (OneNormBehindTwoConvolutions, 1),
        (ReadInBetween, 1), (NormOnOneOfTwoCalls, 1), (WeightReadElsewhere, 1), (UnderTwoNames, 1),
    ],
)  # fmt: skip
def test_folding_computes_the_same(network: type[nn.Module], left: int) -> None:
    model, x = settled(network()).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norms(model, x)
    assert difference(model(x), folded(x)) < 1e-12
    assert norms_left(folded) == left
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_norm_of_resnet18_is_folded() -> None:
    model = settled(torchvision.models.resnet18(weights=None))
    folded = fold_batch_norms(model, torch.randn(1, 3, 32, 32))
    assert norms_left(model) == 20
    assert norms_left(folded) == 0


def test_a_wrong_folding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "foldable", lambda recording: [("conv", "one"), ("conv", "two")])
    with pytest.raises(ModelError, match=r"folding batch norms changes .* measure without fold_bn"):
        fold_batch_norms(settled(TwoNormsBehindOneConvolution()), torch.randn(2, 3, 5, 5))


def test_a_footprint_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    found = footprint(model, torch.zeros(1, 3, 6, 6))
    outputs = [4 * (4 * 16), 4 * (4 * 16), 4 * (2 * 16)]  # bytes: conv, relu, conv
    assert found == Footprint(
        macs=4 * 3 * 9 * 16 + 4 * 2 * 16, params=108 + 8, weight_bytes=4 * 116, activation_bytes=sum(outputs),
        peak_bytes=outputs[0] + outputs[1], file_bytes=file_bytes(model),
    )  # fmt: skip


def test_the_size_of_a_file_is_that_of_the_file() -> None:
    from safetensors.torch import save

    model = torchvision.models.mobilenet_v2(weights=None)
    assert file_bytes(model) == len(save(model.state_dict()))
    assert file_bytes(model.bfloat16()) == len(save(model.bfloat16().state_dict()))
