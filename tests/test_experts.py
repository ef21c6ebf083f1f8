"""Products of experts in one call (torch._grouped_mm): one product each in a recording, cut at widths that it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon.tracing.parts import grouped_mm

WIDTH, HIDDEN, EXPERTS = 16, 24, 3


class Experts(nn.Module):
    """Each token goes through one of the experts, sorted as transformers does it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 5)
        self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 4)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        chosen = self.router(x).argmax(-1)
        order = chosen.argsort()
        ends = torch.bincount(chosen, minlength=EXPERTS).cumsum(0).to(torch.int32)
        rows = F.relu(torch._grouped_mm(x[order], self.up.transpose(-2, -1), offs=ends))
        rows = torch._grouped_mm(rows, self.down.transpose(-2, -1), offs=ends)
        result: Tensor = self.head(x + torch.zeros_like(x).index_copy(0, order, rows))
        return result


def product(one: Tensor, other: Tensor, ends: Any) -> Tensor:
    """The call itself; skips where this torch has no kernel for it on the CPU."""
    try:
        return torch._grouped_mm(one, other, offs=ends)
    except (NotImplementedError, RuntimeError) as reason:
        pytest.skip(f"no such kernel here: {reason}")


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    product(torch.zeros(4, 4), torch.zeros(1, 4, 4), ends=torch.tensor([4], dtype=torch.int32))
    return Experts().eval()


@pytest.mark.parametrize(
    ("one", "other", "ends"),
    [
        ((8, 4), (3, 4, 12), (2, 2, 8)),
        ((4, 8), (8, 12), (4, 8)),
        ((2, 4, 8), (8, 12), (4, 12)),
        ((2, 4, 8), (2, 8, 4), None),
    ],
)
def test_each_form_is_what_the_kernel_computes(one: Any, other: Any, ends: Any) -> None:
    torch.manual_seed(1)
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    factors = torch.randn(one), torch.randn(other)
    torch.testing.assert_close(grouped_mm(*factors, offs), product(*factors, ends=offs))


def test_experts_are_cut_in_steps_and_run(model: nn.Module) -> None:
    x = torch.randn(20, 6)
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random", round_to=4)
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    small = dict(result.model.named_parameters())
    assert small["up"].shape == (EXPERTS, HIDDEN // 2, WIDTH // 2)
    assert small["down"].shape == (EXPERTS, WIDTH // 2, HIDDEN // 2)
    assert result.model(torch.randn(50, 6)).shape == (50, 5)  # other tokens go elsewhere


@pytest.mark.parametrize("budget", [{"ratio": 0.4, "scope": "local"}, {"max_params": 0.6}])
def test_widths_that_the_kernel_refuses_are_not_planned(model: nn.Module, budget: Any) -> None:
    result = surgeon.prune(model, torch.randn(20, 6), criterion="random", **budget)
    assert result.model(torch.randn(50, 6)).shape == (50, 5)
    assert {pin.layer for pin in result.report.pinned} == {"head", "router"}
    small = dict(result.model.named_parameters())
    assert small["up"].numel() < EXPERTS * HIDDEN * WIDTH
    assert all(size % 4 == 0 for size in small["up"].shape[1:])
