"""The report adds up: it agrees with the models that it is about."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.utils.flop_counter import FlopCounterMode

import surgeon
from tests.planned import filters_of
from tests.test_pruning import X, small_model


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs_of(model: nn.Module, inputs: Tensor) -> int:
    """Torch's own count; it says two for a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(inputs)
    return int(counter.get_total_flops()) // 2


def bytes_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


class Transformer(nn.Module):
    """Two blocks of attention and an MLP over tokens, written with matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))

    def attend(self, x: Tensor, index: int) -> Any:
        n, tokens, _ = x.shape
        q, k, v = self.qkv[index](x).view(n, tokens, 3, 4, -1).permute(2, 3, 0, 1, 4).flatten(1, 2)
        mixed = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
        return self.proj[index](mixed.view(4, n, tokens, -1).permute(1, 2, 0, 3).flatten(2))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for index in range(2):
            x = x + self.attend(self.norms[index](x), index)
            x = x + self.down[index](F.gelu(self.up[index](self.norms[2 + index](x))))
        return self.head(x.mean(1))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18()  # type: ignore[no-any-return]  # torchvision is untyped


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, float]] = {
    "resnet18": (resnet, torch.randn(1, 3, 32, 32), 0.4),
    "transformer": (Transformer, torch.randn(2, 7, 12), 0.4),
    "small": (small_model, X, 0.5),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_report_agrees_with_the_models(name: str) -> None:
    make, inputs, ratio = MODELS[name]
    model = make().eval()
    result = surgeon.prune(model, inputs, ratio=ratio, scope="local", criterion="magnitude")
    report, small = result.report, result.model
    assert (report.filters_before, report.filters_after) == (filters_of(model), filters_of(small))
    assert (report.params_before, report.params_after) == (parameters_of(model), parameters_of(small))
    assert (report.macs_before, report.macs_after) == (macs_of(model, inputs), macs_of(small, inputs))
    assert (report.bytes_before, report.bytes_after) == (bytes_of(model), bytes_of(small))
    assert report.params_after < report.params_before
    assert report.macs_after < report.macs_before
    for row in report.layers:
        dense, cut = model.get_submodule(row.name), small.get_submodule(row.name)
        assert row.type == type(dense).__name__
        assert [getattr(m, "out_channels", getattr(m, "out_features", 0)) for m in (dense, cut)] == [
            row.before,
            row.after,
        ]


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_rows_sum_to_the_filters(name: str) -> None:
    make, inputs, _ = MODELS[name]
    report = surgeon.prune(make(), inputs, filters=13, criterion="magnitude", verify=False).report
    rows = [row for row in report.layers if row.type == "Conv2d"]
    assert sum(row.before for row in rows) == report.filters_before
    assert sum(row.after for row in rows) == report.filters_after
    assert report.filters_before - report.filters_after == 13


def test_the_report_is_json() -> None:
    report = surgeon.prune(small_model(), X, filters=3, criterion="magnitude").report
    data = json.loads(json.dumps(report.to_dict()))
    assert data["check"]["status"] == "passed"
    assert data["filters_before"] - data["filters_after"] == 3
    assert set(data["seconds"]) == {"trace", "score", "plan", "rewrite", "verify"}
    assert [pin["layer"] for pin in data["pinned"]] == ["head"]


def test_a_parameter_of_no_rows_costs_nothing() -> None:
    """Register tokens that are switched off, as DINOv3 has them."""

    class RegistersOff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)
            self.registers = nn.Parameter(torch.empty(1, 0, 8))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(torch.cat([self.registers.expand(len(x), -1, -1), self.embed(x)], 1))
            return y

    result = surgeon.prune(RegistersOff(), torch.randn(2, 5, 6), max_params=0.5, criterion="magnitude")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert (result.report.params_before, result.report.params_after) == (92, 37)
