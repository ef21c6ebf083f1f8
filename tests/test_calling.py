"""Forwards that are run for real leave models and tensors as they were; models are copied, whatever they hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.automatic import distance_between
from surgeon.cost import Latency, Place, Table
from surgeon.cost.calls import in_place_calls
from surgeon.folding import fold_batch_norms
from surgeon.measure import footprint, latency
from surgeon.measure.layers import layer_latency
from surgeon.tracing import Inputs, copied_inputs, results_of


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Doubling(nn.Module):
    """Writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions."""
        y: Tensor = self.out(torch.relu(self.bn(self.conv(x.mul_(2)))))
        return y


class Writing(Doubling):
    """Writes into all that it holds, and draws a number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.calls, self.kept = 0, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions."""
        torch.rand(1)
        self.get_buffer("seen").add_(1)
        self.calls += 1
        self.kept.append(x)
        return super().forward(x)


def in_time(model: nn.Module, x: Tensor) -> None:
    def timer(call: Callable[[], object]) -> float:
        call()
        return 1.0

    table = Table(Place.here(torch.device("cpu")), timer)
    Latency(surgeon.channel_graph(surgeon.trace(model, x)), table)


RUNS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "latency": lambda model, x: latency({"m": model}, x, rounds=1, warmup=0),
    "latency of layers": lambda model, x: layer_latency({"m": model}, x, rounds=1, warmup=0),
    "footprint": footprint,
    "calls in place": lambda model, x: in_place_calls(surgeon.trace(model, x)),
    "latency table": in_time,
    "folding": fold_batch_norms,
    "the choice of a way": lambda model, x: distance_between(model, model, Inputs((x,)), [x]),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_leaves_nothing_behind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    model, x = Writing().train(), images()
    state = torch.get_rng_state()
    RUNS[name](model, x)
    assert torch.equal(x, images())
    assert not model.get_buffer("seen").any()
    assert (model.calls, model.kept) == (0, [])
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_models_that_are_compared_are_given_the_same(tmp_path: Path) -> None:
    model, x = Doubling().eval(), images()
    assert isinstance(fold_batch_norms(model, x).get_submodule("bn"), nn.Identity)
    assert distance_between(model, model, Inputs((x,)), [x]) == 0
    assert surgeon.export(model, tmp_path / "m.pt2", example_inputs=x).error < 1e-4
    assert torch.equal(x, images())


def test_what_a_forward_keeps_and_returns_is_what_it_was_then() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            count: Tensor = self.get_buffer("count").add_(x.sum())
            return count

    model = Counting()
    assert results_of(model, Inputs((torch.ones(3),))) == [torch.tensor([3.0])]
    assert model.get_buffer("count") == 0


def test_copies_of_inputs_are_as_many_as_the_inputs() -> None:
    x = torch.ones(2, requires_grad=True)
    one, other = copied_inputs(Inputs((x, x))).args
    assert one is other is not x
    assert one.requires_grad
    assert one.is_leaf


class Locked(Doubling):
    """Holds what can't be copied, and a result of an earlier forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.last = self.conv(images())

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions, then a mean."""
        return super().forward(x + 0).mean((2, 3))


def tuned(model: nn.Module, x: Tensor, folder: Path) -> None:
    data = [(x, torch.tensor([0, 1]))]
    options = {"steps": 2, "ratio": 0.4, "criterion": "magnitude", "directory": folder}
    surgeon.prune_and_tune(model, x, data, **options)  # type: ignore[arg-type]  # of several kinds
    (folder / "step-2.safetensors").unlink()
    surgeon.prune_and_tune(model, x, data, **options)  # type: ignore[arg-type]  # of several kinds


COPIES: dict[str, Callable[[nn.Module, Tensor, Path], object]] = {
    "folding": lambda model, x, _: fold_batch_norms(model, x),
    "latency": lambda model, x, _: latency({"m": model}, x, rounds=1, warmup=0, layout="channels_last"),
    "export": lambda model, x, folder: surgeon.export(model, folder / "m.pt2", example_inputs=x),
    "prune_and_tune": tuned,
    "sensitivity": lambda model, x, _: surgeon.sensitivity(
        model, x, [(x, torch.tensor([0, 1]))], what="weights", ratios=(0.5,)
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_models_are_copied_whatever_they_hold(name: str, tmp_path: Path) -> None:
    COPIES[name](Locked().eval(), images(), tmp_path)
