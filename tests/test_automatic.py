"""The criterion ``auto``: its ways by hand on a small network, what it compares, and what it does without targets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon import automatic
from surgeon.automatic import COUPLINGS, POWERS, Way, coupled_channels
from surgeon.criteria import GatedModel, channel_macs
from surgeon.criteria.gradients import expected_loss, has_targets
from surgeon.cutting import read_graph
from surgeon.healing import heal
from surgeon.tracing import Inputs
from tests.networks import redraw

CLASSES = 5


class Stream(nn.Module):
    """A stream of 8 channels that three layers make together, and 12 and 10 inner ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.three, self.four = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        x = torch.relu(x + self.four(torch.relu(self.three(x))))
        return self.head(x.mean((2, 3)))


def model() -> Any:
    return redraw(Stream().double(), 0).eval()


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(12, 3, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (12,), generator=generator),
        )
        for _ in range(count)
    ]


def inputs(count: int = 4) -> list[Tensor]:
    return [x for x, _ in batches(count)]


def coupled_by_hand(graph: surgeon.ChannelGraph) -> np.ndarray[Any, Any]:
    return np.unique(graph.structure.along("stem.weight", 0))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_way_is_what_its_definition_says(power: float, coupling: float | None) -> None:
    graph = read_graph(model(), inputs()[0])
    assert sorted(coupled_channels(graph)) == sorted(coupled_by_hand(graph))
    found = surgeon.score_all(graph, ["obs", "fisher"], batches())
    values = automatic._scores(graph, found, Way(power, coupling)).normalised
    expected = found["obs"].raw ** 0.6 * found["fisher"].raw ** 0.4 / np.maximum(channel_macs(graph), 1) ** power
    coupled, rest = coupled_by_hand(graph), np.setdiff1d(graph.removable, coupled_by_hand(graph))
    np.testing.assert_allclose(values[rest], expected[rest], rtol=1e-12)
    if coupling is not None:
        np.testing.assert_allclose(values[coupled], expected[coupled] * coupling, rtol=1e-12)
    else:
        assert values[coupled].min() > values[rest].max()
        assert (np.argsort(values[coupled]) == np.argsort(expected[coupled])).all()


def by_hand(dense: Any, graph: surgeon.ChannelGraph, way: Way, budget: float) -> tuple[float, surgeon.Plan]:
    """The error that a way ends with: healed on the first three batches, judged on the fourth."""
    scores = surgeon.score_all(graph, ["obs", "fisher"], batches())
    plan = surgeon.make_plan(graph, automatic._scores(graph, scores, way), max_macs=budget)
    small = surgeon.rewrite(dense, plan)
    heal(dense, small, plan, inputs()[:3])
    with torch.no_grad():
        wanted, found = (net(inputs()[3]).double() for net in (dense, small))
    return float(((wanted - found) ** 2).mean() / wanted.var(correction=0)), plan


def test_prune_takes_the_way_that_ends_nearest_on_what_was_not_healed_on() -> None:
    dense = model()
    graph = read_graph(dense, inputs()[0])
    result = surgeon.prune(dense, inputs()[0], max_macs=0.3, criterion="auto", dataloader=batches(), heal="lstsq")
    tried = {
        way: by_hand(dense, graph, way, 0.3) for way in itertools.starmap(Way, itertools.product(POWERS, COUPLINGS))
    }
    middle = [way for way in tried if way.power == 1.5]
    first = min(middle, key=lambda way: tried[way][0])
    row = [first, *(way for way in tried if way.coupling == first.coupling)]  # which is kept where others are alike
    best = min(row, key=lambda way: tried[way][0])
    end = {1.0: 0.5, 2.0: 3.0}.get(best.power)
    if end is not None:
        beyond = best._replace(power=end)
        tried[beyond] = by_hand(dense, graph, beyond, 0.3)
        best = min([best, beyond], key=lambda way: tried[way][0])
    assert result.plan.removed == tried[best][1].removed
    assert result.plan.criterion == str(best)
    assert len({str(plan.removed) for _, plan in tried.values()}) > 3  # else any would do


@pytest.mark.parametrize(
    ("distances", "best", "tries"),
    [
        ({Way(1.5, None): 1.0}, Way(1.5, None), 5),
        ({Way(1.5, 3.0): 1.0, Way(2.0, 3.0): 0.5}, Way(2.0, 3.0), 6),
        ({Way(1.5, 1.0): 1.0, Way(2.0, 1.0): 0.5, Way(3.0, 1.0): 0.4}, Way(3.0, 1.0), 6),
        ({Way(1.5, 1.0): 1.0, Way(1.0, 1.0): 0.5, Way(0.5, 1.0): 0.4, Way(0.5, None): 0.1}, Way(0.5, 1.0), 6),
    ],
)
def test_the_search_goes_downhill(distances: dict[Way, float], best: Way, tries: int) -> None:
    asked = set()

    def distance(way: Way) -> float:
        asked.add(way)
        return distances.get(way, 2.0)

    assert automatic._search(read_graph(model(), inputs()[0]), distance) == best
    assert len(asked) == tries


def test_a_single_batch_judges_as_well() -> None:
    result = surgeon.prune(
        model(), inputs()[0], max_macs=0.5, criterion="auto", dataloader=batches(1), heal="lstsq"
    )  # fmt: skip
    assert result.report.macs_after <= 0.5 * result.report.macs_before


def test_a_budget_out_of_reach_is_said() -> None:
    with pytest.raises(surgeon.BudgetError, match="out of reach"):
        surgeon.prune(model(), inputs()[0], max_macs=0.001, criterion="auto", dataloader=batches(), heal="lstsq")


def test_all_ways_are_judged_by_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, ...]] = []
    apart = automatic.distance_between

    def told(dense: nn.Module, small: nn.Module, like: Inputs, judges: Any, inputs_of: Any) -> float:
        seen.append(tuple(batch[0] for _, batch in judges))
        return apart(dense, small, like, judges, inputs_of)

    monkeypatch.setattr(automatic, "distance_between", told)
    data = TensorDataset(torch.cat(inputs()), torch.cat([y for _, y in batches()]))
    loader = DataLoader(data, 12, shuffle=True)
    surgeon.prune(model(), inputs()[0], max_macs=0.5, criterion="auto", dataloader=loader)
    assert len(seen) > 3
    assert all(torch.equal(x, y) for judges in seen[1:] for x, y in zip(seen[0], judges, strict=True))


# --- without targets


def test_targets_are_taken_where_there_are_any() -> None:
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return F.cross_entropy(outputs, targets, reduction="none")

    surgeon.prune(model(), inputs()[0], max_macs=0.5, criterion="auto", dataloader=batches(), loss_fn=loss)
    assert seen
    one, two = Inputs((inputs()[0],)), Inputs((inputs()[0], inputs()[0]))
    assert has_targets(batches()[0], one)
    assert not has_targets(inputs()[0], one)
    assert not has_targets((inputs()[0], None), one)
    assert not has_targets(tuple(inputs()[0]), one)
    assert not has_targets((inputs()[0], inputs()[0]), two)
    assert has_targets(((inputs()[0], inputs()[0]), batches()[0][1]), two)


@pytest.mark.parametrize("plain", [True, False])
def test_without_targets_it_asks_the_model_itself(plain: bool) -> None:
    dense, given = model(), inputs() if plain else [(x, None) for x in inputs()]
    result = surgeon.prune(dense, inputs()[0], max_macs=0.4, criterion="auto", dataloader=given, heal="lstsq")
    again = surgeon.prune(dense, inputs()[0], max_macs=0.4, criterion="auto", dataloader=given, heal="lstsq")
    assert result.plan.removed == again.plan.removed
    assert result.report.macs_after <= 0.4 * result.report.macs_before


def test_labels_are_drawn_as_the_model_says() -> None:
    """The mean square over many draws is the expectation over all labels."""
    dense = model()
    x = inputs()[0][:2]
    graph = read_graph(dense, x)
    gated = GatedModel(graph.structure, dense)
    expected: Any = 0.0
    chances = dense(x).softmax(1).detach()
    for label in range(CLASSES):
        F.cross_entropy(gated(x), torch.full((2,), label), reduction="sum").backward()  # type: ignore[no-untyped-call]
        expected = expected + chances[:, label, None] * gated.gates.square()
    total, draws = torch.zeros_like(expected), 3000
    for seed in range(draws):
        expected_loss(Inputs((x,)), seed)(gated, x).sum().backward()  # type: ignore[no-untyped-call]
        total += gated.gates.square() / draws
    large = expected > expected.max() / 10
    torch.testing.assert_close(total[large], expected[large], rtol=0.2, atol=0)
    assert math.isfinite(float(total.sum()))


def test_what_is_drawn_for_an_example_does_not_depend_on_the_others() -> None:
    dense, x = model(), inputs()[0]
    gated = GatedModel(read_graph(dense, x).structure, dense)
    loss = expected_loss(Inputs((x,)), 0)
    apart = torch.cat([loss(gated, x[number : number + 1]) for number in range(len(x))])
    torch.testing.assert_close(loss(gated, x), apart)
