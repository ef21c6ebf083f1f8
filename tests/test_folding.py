"""Folded batch norms: where one is folded, and that nothing changes; each network is named after its difficulty."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import surgeon
from surgeon.agreement import distance, full_precision
from surgeon.errors import ModelError
from surgeon.folding import fold_batch_norms
from surgeon.tracing import Inputs, results_of


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """Folded, after making sure that it computes the same on other inputs as well, and that the model is as before."""
    model = shaken(model).double()
    x = x.double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = fold_batch_norms(model, x)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    assert distance(model(other), small(other)) < 1e-12
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return small


IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
VOLUMES = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(1))
LINES = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))

FOLDED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "bias": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGES),
    "no bias": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), IMAGES),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 9, 3, groups=3), nn.BatchNorm2d(9)), IMAGES),
    "not affine": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), IMAGES),
    "reflecting": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, padding_mode="reflect"), nn.BatchNorm2d(8)), IMAGES),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)), IMAGES),
    "transposed, grouped": (lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, 3, groups=2), nn.BatchNorm3d(6)), VOLUMES),
    "3d": (lambda: nn.Sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), VOLUMES),
    "1d": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), LINES),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), ROWS),
    "linear, no bias": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)), ROWS),
}


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_behind_a_layer_is_folded(name: str) -> None:
    make, x = FOLDED[name]
    assert norms(folded(make(), x)) == 0


class CalledTwice(nn.Module):
    """One convolution, behind which the same norm stands both times, or another one."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.second = self.first if same else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.conv(torch.relu(self.first(self.conv(x)))))
        return result


class SharedNorm(nn.Module):
    """Two convolutions with one norm, whose second one may be read elsewhere as well."""

    def __init__(self, *, leaks: bool) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.leaks = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), leaks

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        result: Tensor = self.norm(a) + self.norm(b) + (b if self.leaks else 0)
        return result


class TiedWeight(nn.Module):
    """Two convolutions with one weight; a norm behind the first one only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.relu(self.norm(self.a(x))))
        return result


class ReadsItsWeight(nn.Module):
    """The forward reads a convolution's weight, or its norm's, beside calling it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv, self.norm, self.name = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), name

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) * operator.attrgetter(self.name)(self).mean()
        return result


class AroundTheLayers(nn.Module):
    """Uses the tensors of layers that are never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.conv2d(x, self.conv.weight, None)
        mean, var = self.norm.running_mean, self.norm.running_var
        return nn.functional.batch_norm(y, mean, var, self.norm.weight, self.norm.bias)


class Doubled(nn.BatchNorm2d):
    """A norm that does more than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(which: int) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[which].register_forward_hook(lambda _module, _args, out: out + 1)
    return model


KEPT: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "another norm at the second call": (lambda: CalledTwice(same=False), IMAGES, 2),
    "one of its layers is read elsewhere": (lambda: SharedNorm(leaks=True), IMAGES, 1),
    "a tied weight": (TiedWeight, IMAGES, 1),
    "the forward reads the weight": (lambda: ReadsItsWeight("conv.weight"), IMAGES, 1),
    "the forward reads the norm": (lambda: ReadsItsWeight("norm.weight"), IMAGES, 1),
    "layers that are not called": (AroundTheLayers, IMAGES, 1),
    "a norm of one's own": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4)), IMAGES, 1),
    "something in between": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), IMAGES, 1),
    "a norm first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), IMAGES, 1),
    "a hook on the layer": (lambda: hooked(0), IMAGES, 1),
    "a hook on the norm": (lambda: hooked(1), IMAGES, 1),
    "a weight that is computed": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        IMAGES,
        1,
    ),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        IMAGES,
        1,
    ),
    "linear over a sequence": (lambda: nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(4)), LINES, 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_norm_stays_where(name: str) -> None:
    make, x, count = KEPT[name]
    assert norms(folded(make(), x)) == count


@pytest.mark.parametrize("make", [lambda: CalledTwice(same=True), lambda: SharedNorm(leaks=False)])
def test_a_layer_called_twice_and_a_shared_norm_are_folded_where_all_calls_agree(make: Callable[[], nn.Module]) -> None:
    assert norms(folded(make(), IMAGES)) == 0


@pytest.mark.parametrize(
    ("name", "left"), [("resnet18", 0), ("mobilenet_v3_small", 0), ("densenet121", 62), ("googlenet", 0)]
)
def test_torchvision(name: str, left: int) -> None:
    kwargs = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **kwargs)
    assert norms(folded(model, torch.randn(1, 3, 64, 64))) == left


def test_a_graph_is_folded_as_its_model_is() -> None:
    model = shaken(torchvision.models.resnet18()).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    graph = surgeon.prune(model, x, ratio=0.3, criterion="magnitude", as_graph=True, verify=False).model
    small = fold_batch_norms(graph, x)
    assert norms(small) == 0
    assert distance(graph(x), small(x)) < 1e-12


def test_layout_type_and_mode_of_the_copy() -> None:
    model = shaken(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).to(memory_format=torch.channels_last).half()
    small = fold_batch_norms(model.train(), IMAGES.half())
    weight = small.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float16
    assert model.training
    assert not any(part.training for part in small.modules())


class AsksItsNorm(nn.Module):
    """Whose forward needs the norm's own attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) * self.norm.eps
        return result


def test_a_forward_that_asks_for_its_norm_is_refused() -> None:
    with pytest.raises(ModelError, match="AsksItsNorm doesn't run without its batch norms: AttributeError"):
        fold_batch_norms(shaken(AsksItsNorm()), IMAGES)


class Announced(nn.Module):
    """Computes otherwise where it holds no norm any more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm: nn.Module = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result if isinstance(self.norm, nn.BatchNorm2d) else 2 * result


def test_a_copy_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match="computes something else with its batch norms folded"):
        fold_batch_norms(shaken(Announced()), IMAGES)


def test_what_is_compared_and_what_is_not() -> None:
    one = torch.tensor([1.0, 2.0])
    assert distance({"a": one, "b": 3}, {"a": one * 1.01, "b": 3}) == pytest.approx(0.01, rel=1e-4)
    assert distance(one, one[:1]) == float("inf")
    assert distance([one], [one, one]) == float("inf")
    assert distance(torch.tensor([1]), torch.tensor([2])) == float("inf")
    for nothing in (3, torch.zeros(2), torch.tensor([float("nan")])):
        value = distance(nothing, nothing)
        assert value != value  # NaN


def test_the_largest_error_of_what_says_something_counts() -> None:
    one, zero, nan = torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([1.0, float("nan")])
    assert distance([one, zero], [one * 1.01, zero]) == pytest.approx(0.01, rel=1e-4)
    assert distance([nan, one], [nan, one]) == 0
    assert distance([zero, torch.tensor([1])], [zero, torch.tensor([2])]) == float("inf")
    assert distance([one, zero], [one, one]) == float("inf")
    assert distance(one, nan) == float("inf")


def test_a_comparison_that_says_nothing_is_refused() -> None:
    model = shaken(Announced())
    for parameter in (model.get_parameter("norm.weight"), model.get_parameter("norm.bias")):
        nn.init.zeros_(parameter)
    with pytest.raises(ModelError, match=r"all zero, or not finite, on these inputs.*go on without folding"):
        fold_batch_norms(model, IMAGES)


def test_a_copy_is_compared_in_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's convolutions keep three digits of it by default: two ways to the same result would differ by as much."""
    before, seen = torch.backends.cudnn.allow_tf32, []

    def noted(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return results_of(model, inputs)

    monkeypatch.setattr("surgeon.folding.results_of", noted)
    fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 8, 8))
    assert (before, seen, torch.backends.cudnn.allow_tf32) == (True, [False, False], True)


@pytest.mark.parametrize("products", ["highest", "high", "medium"])
def test_settings_of_precision_come_back(products: str) -> None:
    try:
        torch.set_float32_matmul_precision(products)
        with full_precision():
            within = torch.get_float32_matmul_precision()
        assert (within, torch.get_float32_matmul_precision()) == ("highest", products)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch sets all at once")
def test_settings_of_precision_that_are_set_one_by_one_come_back() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch 2.9
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_precision():
            within = matmul.fp32_precision, conv.fp32_precision
        assert (within, matmul.fp32_precision, conv.fp32_precision) == (("ieee", "ieee"), "tf32", before[1])
    finally:
        matmul.fp32_precision = before[0]
        torch.set_float32_matmul_precision("highest")
