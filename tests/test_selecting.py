"""Layers that keep all their filters: how they are named, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import NothingToCutError, SelectionError
from tests.planned import gone, graph_of, plan_of
from tests.test_zoo import build
from tests.zoo import ZOO
from tests.zoo.base import conv


class Nested(nn.Module):
    """Two containers of two convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(conv(3, 8), conv(8, 8))
        self.late = nn.Sequential(conv(8, 8), conv(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.late(self.early(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        (lambda m: [m.early[0]], {"early.1", "late.0", "late.1"}),
        (lambda m: ["late.1"], {"early.0", "early.1", "late.0"}),
        (lambda m: ["*.0"], {"early.1", "late.1"}),
        (lambda m: ["early*"], {"late.0", "late.1"}),
        (lambda m: ["early"], {"late.0", "late.1"}),
        (lambda m: [m.late], {"early.0", "early.1"}),
        (lambda m: [m.late, "early.?"], set()),
        (lambda m: "late", {"early.0", "early.1"}),
        (lambda m: m.late, {"early.0", "early.1"}),
        (lambda m: (n for n in ["late", "early.0"]), {"early.1"}),
    ],
    ids=["module", "name", "glob", "glob of all", "container name", "container", "mixed", "one", "one module", "lazy"],
)
def test_ignored_layers_keep_all(ignored: Callable[[Any], Iterable[Any]], left: set[str]) -> None:
    model = Nested()
    graph = graph_of(model)
    if not left:
        with pytest.raises(NothingToCutError, match=r"early\.0: ignored"):
            plan_of(graph, ratio=0.5, scope="local", ignored_layers=ignored(model))
        return
    assert gone(plan_of(graph, ratio=0.5, scope="local", ignored_layers=ignored(model))) == dict.fromkeys(left, 4)


def test_an_ignored_layer_whose_weight_goes_by_anothers_name_keeps_all() -> None:
    """The filters of a tied decoder are the columns of its encoder's weight."""
    stem, first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(stem, first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    graph = surgeon.channel_graph(surgeon.trace(model, torch.randn(1, 3, 8, 8)))
    scores = surgeon.score(graph, "magnitude")
    for ignored, left in (("3", {1}), ("0", {1})):
        plan = surgeon.make_plan(graph, scores, ratio=0.5, scope="local", ignored_layers=[ignored])
        small = surgeon.rewrite(model, plan)
        biases = {index: small.get_parameter(f"{index}.bias").shape for index in (0, 1, 3)}
        wanted = {0: (8,), 1: (16,), 3: (8,)}
        assert {index for index, shape in biases.items() if shape != wanted[index]} == left, ignored


def test_ignoring_one_of_a_coupled_pair_keeps_both() -> None:
    name = "ResidualIdentity"
    graph = graph_of(build(name), ZOO[name].example())
    assert set(gone(plan_of(graph, ratio=0.5, ignored_layers=["conv2"]))) == {"conv1"}


@pytest.mark.parametrize(
    ("ignored", "told"),
    [
        (["erly"], r"^ignored_layers: 'erly' matches no layer of the model; did you mean 'early', "),
        (["*.9"], r"^ignored_layers: '\*\.9' matches no layer of the model$"),
        ([nn.Linear(2, 2)], r"^ignored_layers holds a Linear that is no part of this model; pass the model's own"),
        (["early", "lat"], r"'lat' matches no layer.*did you mean 'late'"),
        ([3], r"ignored_layers"),
    ],
    ids=["name", "glob", "module", "second", "number"],
)
def test_selections_that_are_refused(ignored: list[Any], told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        plan_of(graph_of(Nested()), ratio=0.5, ignored_layers=ignored)


def test_nothing_to_cut_lists_every_layer() -> None:
    name = "SoftmaxOverChannels"
    graph = graph_of(build(name), ZOO[name].example())
    with pytest.raises(NothingToCutError) as caught:
        plan_of(graph, ratio=0.5, ignored_layers=["last"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "nothing in this model can be cut:"
    assert lines[1].startswith("  conv: mixes channels in _softmax (")
    assert lines[2:] == ["  last: ignored", "  fc: output"]


def test_a_model_without_weights_says_so() -> None:
    with pytest.raises(NothingToCutError, match="it has no convolution or linear weight"):
        plan_of(graph_of(nn.ReLU()), ratio=0.5)
