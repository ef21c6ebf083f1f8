"""Random numbers in a forward: both models of a check draw the same ones, whatever their widths."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import VerificationError

Draw = Callable[[Tensor], Tensor]
DRAWS: dict[str, Draw] = {
    "randn": lambda x: torch.randn(x.shape),
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 5),
    "along the channels alone": lambda x: torch.rand(x.shape[1])[:, None, None],
    "for all channels": lambda x: x.new_empty(len(x), 1, *x.shape[2:]).normal_(),
    "in place": lambda x: torch.zeros_like(x).uniform_(-1, 1),
    "logarithms": lambda x: torch.empty_like(x).log_normal_(),
    "in a size": lambda x: torch.normal(0.0, 1.0, x.shape),
    "about a mean": lambda x: torch.normal(x, x.exp()),
    "from a generator": lambda x: torch.randn(x.shape, generator=torch.Generator().manual_seed(3)),
}


class Noisy(nn.Module):
    """A layer whose output has noise added, as in generators of images and in autoencoders that sample."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.stem, self.head, self.draw = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + 0.1 * self.draw(x))  # type: ignore[no-any-return]  # torch's modules are untyped


def cut(draw: Draw) -> tuple[nn.Module, surgeon.Result, Tensor]:
    """Half of the stem gone."""
    torch.manual_seed(0)
    model, x = Noisy(draw).eval(), torch.rand(1, 3, 6, 6)
    return model, surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random"), x


@pytest.mark.parametrize("name", DRAWS)
def test_noise_is_no_difference(name: str) -> None:
    _, result, _ = cut(DRAWS[name])
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.get_parameter("stem.weight").shape[0] == 4


def test_a_wrong_weight_behind_noise_is_caught() -> None:
    model, result, x = cut(torch.randn_like)
    small = copy.deepcopy(result.model)
    with torch.no_grad():
        small.get_parameter("head.weight")[0, 0] += 0.1
    with pytest.raises(VerificationError, match="first at convolution in head"):
        surgeon.verify(model, small, result.plan, x)


def test_a_check_leaves_the_generator_as_it_is() -> None:
    model, result, x = cut(torch.randn_like)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    surgeon.verify(model, result.model, result.plan, x)
    assert torch.equal(torch.rand(3), wanted)
