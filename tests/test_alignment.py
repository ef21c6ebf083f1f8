"""Which call of an unfinished run is which of the dense one."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

import surgeon


class BehindInPlace(nn.Module):
    """A width as a number, behind an in-place activation on a view: recording that makes views which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 5)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.act(self.first(x)).mean()
        y = self.second(x).transpose(1, 2).contiguous()
        result: Tensor = self.last((y.view(x.shape[0], 12, -1).transpose(1, 2)) * gate)  # the number
        return result


def test_an_unfinished_run_names_the_call_that_failed() -> None:
    model = BehindInPlace().eval()
    result = surgeon.prune(model, torch.randn(2, 4, 6), ratio=0.5, scope="local", criterion="random")
    lines, start = inspect.getsourcelines(BehindInPlace.forward)
    number = start + next(index for index, line in enumerate(lines) if "# the number" in line)
    (pin,) = [pin for pin in result.report.pinned if pin.reason != "output"]
    assert pin.layer == "second"
    assert str(pin.source).endswith(f"test_alignment.py:{number}")
    assert result.model.get_submodule("first").out_features == 6
