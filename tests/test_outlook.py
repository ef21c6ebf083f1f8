"""What becomes of a layer's output: which values are as good as the target, asked of the network itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon.healing.calibration import Pair, read_batches
from tests.networks import redraw


class Behind(nn.Module):
    """A cut layer, its reader, and something behind that."""

    def __init__(self, behind: Callable[[Any, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.reader = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm, self.short = nn.BatchNorm2d(6), nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)
        self.scale = nn.Parameter(torch.randn(6, 1, 1))
        self.behind = behind

    def forward(self, x: Tensor) -> Any:
        short = self.short(x)
        return self.head(self.behind(self, self.reader(torch.relu(self.first(x))), short, x))


#: Behind the reader, and whether values are alike then.
BEHIND: dict[str, tuple[Callable[[Any, Tensor, Tensor, Tensor], Tensor], bool]] = {
    "relu": (lambda m, y, s, x: torch.relu(m.norm(y)), True),
    "relu6": (lambda m, y, s, x: F.relu6(4 * m.norm(y)), True),
    "clamp": (lambda m, y, s, x: m.norm(y).clamp(-0.5, 0.3), True),
    "clamp from below": (lambda m, y, s, x: m.norm(y).clamp_min(0.1), True),
    "shifted": (lambda m, y, s, x: torch.relu(m.scale * m.norm(y) + 0.2), True),
    "added to": (lambda m, y, s, x: torch.relu(s + m.norm(y)), True),
    "moved": (lambda m, y, s, x: torch.relu(m.norm(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), True),
    "smooth": (lambda m, y, s, x: F.silu(m.norm(y)), False),
    "leaky": (lambda m, y, s, x: F.leaky_relu(m.norm(y)), False),
    "seen by others": (lambda m, y, s, x: torch.relu(z := m.norm(y)) + z, False),
    "sum seen by others": (lambda m, y, s, x: torch.relu(z := s + m.norm(y)) + z, False),
    "the added comes later": (lambda m, y, s, x: torch.relu(m.norm(y) + m.short(x)), False),
}


def pair_of(name: str) -> tuple[Any, Pair]:
    torch.manual_seed(0)
    model: Any = redraw(Behind(BEHIND[name][0]).double(), 0).eval()
    with torch.no_grad():
        model.norm.weight[::2] *= -1
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    result = surgeon.prune(
        model, x[:2], ratio=0.5, scope="local", criterion="magnitude", ignored_layers=["reader", "short"]
    )
    pairs, _ = read_batches(model, result.model, result.plan, [(0, surgeon.Inputs.of(x))])
    (number,) = [n for n, site in enumerate(pairs[0].sites) if site.product.weight.name == "reader.weight"]
    pairs[0].arrive(number)
    return model, pairs[0]


def effect(model: Any, y: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.behind(model, y, model.short(x), x)
    return found


@pytest.mark.parametrize("name", BEHIND)
def test_what_is_as_good_has_the_same_effect(name: str) -> None:
    model, pair = pair_of(name)
    number = next(n for n, site in enumerate(pair.sites) if site.product.weight.name == "reader.weight")
    goal, x = pair.goal(number), pair.small.trace.inputs.args[0]
    if not BEHIND[name][1]:
        assert goal.least is None
        assert goal.most is None
        return
    assert goal.least is not None
    assert goal.most is not None
    given = goal.wanted + 3 * torch.randn(goal.wanted.shape, dtype=torch.float64)
    wanted, found, other = (effect(model, y, x) for y in (goal.wanted, goal.nearest(given), given))
    torch.testing.assert_close(found, wanted)
    free = (goal.least < goal.most).double().mean()
    assert 0.2 < free < 0.9
    moved = (goal.nearest(given) != goal.wanted).double().mean()
    assert moved > 0.1
    changed = ~torch.isclose(other, wanted)
    assert (goal.nearest(given) == given)[changed].double().mean() < 0.01  # what is as good is all that is
