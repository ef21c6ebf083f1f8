"""Batches of every form that a model can be given: all that look at them see the same inputs in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon.tracing import Inputs
from tests.test_report import parameters_of


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.head(torch.relu(self.one(a) + self.two(b)))


class Listed(TwoInputs):
    """Takes a list, as detectors take one of images."""

    def forward(self, given: list[Tensor]) -> Any:  # type: ignore[override]  # it is another one
        return super().forward(given[0], given[1])


class Named(TwoInputs):
    def forward(self, *, a: Tensor, b: Tensor) -> Any:  # type: ignore[override]  # it is another one
        return super().forward(a, b)


FORMS: dict[str, tuple[type[nn.Module], Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any]]] = {
    "arguments": (TwoInputs, lambda a, b: (a, b), lambda a, b: (a, b)),
    "one list": (Listed, lambda a, b: ([a, b],), lambda a, b: [a, b]),
    "names": (Named, lambda a, b: Inputs((), {"a": a, "b": b}), lambda a, b: {"a": a, "b": b, "more": a}),
    "inputs": (TwoInputs, lambda a, b: (a, b), lambda a, b: Inputs((a, b))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize(
    "wanted",
    [{"criterion": "magnitude", "heal": "lstsq"}, {"criterion": "taylor"}, {"criterion": "obs"}, {"criterion": "auto"}],
)
def test_batches_of_several_inputs(form: str, *, with_targets: bool, wanted: dict[str, Any]) -> None:
    if wanted["criterion"] == "taylor" and not with_targets:
        pytest.skip("it needs them")
    torch.manual_seed(0)
    kind, example, given = FORMS[form]
    drawn = [(torch.randn(12, 6), torch.randn(12, 6), torch.arange(12) % 4) for _ in range(4)]
    batches = [(given(a, b), y) if with_targets else given(a, b) for a, b, y in drawn]
    torch.manual_seed(1)
    result = surgeon.prune(kind(), example(drawn[0][0], drawn[0][1]), ratio=0.3, dataloader=batches, **wanted)
    torch.manual_seed(1)
    plain = surgeon.prune(TwoInputs(), drawn[0][:2], ratio=0.3, dataloader=[((a, b), y) for a, b, y in drawn], **wanted)
    assert parameters_of(result.model) == parameters_of(plain.model) < parameters_of(TwoInputs())
    if with_targets or wanted["criterion"] != "auto":  # which asks the model itself where there are none
        assert result.plan.removed == plain.plan.removed


@pytest.mark.parametrize(
    "wanted", [{"criterion": "taylor", "heal": "lstsq"}, {"criterion": "obs"}, {"criterion": "auto"}]
)
def test_batches_that_nobody_can_know(wanted: dict[str, Any]) -> None:
    torch.manual_seed(0)
    drawn = [(torch.randn(12, 6), torch.randn(12, 6), torch.arange(12) % 4) for _ in range(4)]
    batches = [{"left": a, "right": b, "label": y} for a, b, y in drawn]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["left"], batch["right"]), batch["label"], reduction="none")

    def inputs_of(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["left"], batch["right"]

    model, x = TwoInputs(), drawn[0][:2]
    plain = surgeon.prune(model, x, ratio=0.3, dataloader=[((a, b), y) for a, b, y in drawn], **wanted)
    given = surgeon.prune(model, x, ratio=0.3, dataloader=batches, forward_loss=loss, inputs_of=inputs_of, **wanted)
    assert given.plan.removed == plain.plan.removed
    pairs = [(batch, batch["label"]) for batch in batches]
    given = surgeon.prune(
        model, x, ratio=0.3, dataloader=pairs, loss_fn=F.cross_entropy, inputs_of=lambda pair: inputs_of(pair[0]),
        **wanted,
    )  # fmt: skip
    assert given.plan.removed == plain.plan.removed
