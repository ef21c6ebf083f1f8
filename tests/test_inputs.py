"""What a model is given of a batch: its inputs without the targets, whatever form either has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import HealingError, ScoreError
from surgeon.tracing import Inputs

X, Y, Z = (torch.full((2,), float(value)) for value in (1, 2, 3))


@pytest.mark.parametrize(
    ("batch", "like", "expected"),
    [
        (X, Inputs((X,)), Inputs((X,))),
        ((X, Z), Inputs((X,)), Inputs((X,))),
        ([X, Z], Inputs((X,)), Inputs((X,))),
        ((X, Y), Inputs((X, Y)), Inputs((X, Y))),
        (((X, Y), Z), Inputs((X, Y)), Inputs((X, Y))),
        (([X, Y], Z), Inputs((X, Y)), Inputs((X, Y))),
        ([[X, Y], Z], Inputs((X, Y)), Inputs((X, Y))),
        (((X, X), (Y, Y)), Inputs(((X, X), (Y, Y))), Inputs(((X, X), (Y, Y)))),
        ((X, Y, Z), Inputs((X, Y, Z)), Inputs((X, Y, Z))),
        ([X, Y], Inputs(([X],)), Inputs(([X, Y],))),  # a list of two images
        (([X, Y], Z), Inputs(([X],)), Inputs(([X, Y],))),
        (([X],), Inputs(([X],)), Inputs(([X],))),
        ({"x": X, "z": Z}, Inputs((), {"x": X}), Inputs((), {"x": X})),
        (({"x": X}, Z), Inputs((), {"x": X}), Inputs((), {"x": X})),
        (({"x": X}, Z), Inputs(({"x": X},)), Inputs(({"x": X},))),
        ((Inputs((X,), {"y": Y}), Z), Inputs((X, Z)), Inputs((X,), {"y": Y})),
    ],
)
def test_what_a_model_is_given_of_a_batch(batch: Any, like: Inputs, expected: Inputs) -> None:
    found = Inputs.from_batch(batch, like)
    assert repr((found.args, dict(found.kwargs))) == repr((expected.args, dict(expected.kwargs)))


class Two(nn.Module):
    """A tensor, and a dict with another one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(9, 16), nn.Linear(16, 3)

    def forward(self, image: Tensor, meta: dict[str, Tensor]) -> Any:
        return self.head(torch.relu(self.left(image) + self.right(meta["features"])))


class Each(nn.Module):
    """A list of images of any number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, images: list[Tensor]) -> Any:
        return self.head(torch.relu(self.body(torch.stack(images))))


def two(count: int) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.randn(count, 6), {"features": torch.randn(count, 9)}


@pytest.mark.parametrize("criterion", ["taylor", "obs", "auto"])
@pytest.mark.parametrize("container", [tuple, list])
def test_several_inputs_with_targets_rank_and_heal(criterion: str, container: Any) -> None:
    batches = [(container(two(16)), torch.randint(3, (16,))) for _ in range(4)]
    result = surgeon.prune(Two().eval(), two(2), ratio=0.5, criterion=criterion, dataloader=batches, heal="lstsq")
    assert any(row.healed < row.sliced for row in result.report.healing)


def test_a_list_of_two_images_with_targets_heals() -> None:
    batches = [([torch.randn(6), torch.randn(6)], "targets") for _ in range(40)]
    example = ([torch.randn(6), torch.randn(6)],)
    result = surgeon.prune(Each().eval(), example, ratio=0.5, criterion="magnitude", heal="lstsq", calibration=batches)
    assert any(row.healed < row.sliced for row in result.report.healing)


def test_batches_that_the_forward_rejects_are_named() -> None:
    batches = [torch.randn(4, 5)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(ScoreError, match=r"rejects a batch of the dataloader: .*; pass batches of what it takes"):
        surgeon.prune(model, torch.randn(2, 6), ratio=0.5, criterion="obs", dataloader=batches)
    with pytest.raises(HealingError, match=r"rejects a batch: RuntimeError: .*; pass batches of what it takes"):
        surgeon.prune(model, torch.randn(2, 6), ratio=0.5, criterion="magnitude", heal="lstsq", calibration=batches)
