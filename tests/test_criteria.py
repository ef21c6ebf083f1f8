"""Every criterion against its definition, written out by hand for networks that know their own filters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

import surgeon
from surgeon.cost import Cost
from surgeon.criteria import CRITERIA, GatedModel, Request
from surgeon.errors import ScoreError, SelectionError
from tests.known_networks import KNOWN, Known
from tests.networks import sample_network

Floats = NDArray[np.float64]
Batch = tuple[Tensor, Tensor]


class Case:
    """One network with weights, batches of unequal size, its graph, and everything scored in one pass."""

    def __init__(self, kind: type[Known]) -> None:
        torch.manual_seed(0)
        self.net = kind().double().eval()
        for parameter in self.net.parameters():
            nn.init.normal_(parameter)
        shapes = [(n, *kind.shape) for n in (4, 3)]
        self.batches = [(torch.randn(s, dtype=torch.float64), torch.randint(0, 4, s[:1])) for s in shapes]
        self.graph = surgeon.channel_graph(surgeon.trace(self.net, self.batches[0][0][:1]))
        self.weights = {name: p.detach() for name, p in self.net.named_parameters()}
        self.numbers = self.graph.structure.along(*kind.place)
        assert set(self.numbers) <= set(self.graph.removable)
        self.scores = surgeon.score_all(self.graph, CRITERIA, self.batches, seed=3)

    def gates(self) -> Iterator[Tensor]:
        """Of each batch ``(N, width)``: the derivative of each example's own loss by each gate."""
        for inputs, targets in self.batches:
            rows = []
            for x, y in zip(inputs, targets, strict=True):
                gate = torch.ones(self.net.width, dtype=torch.float64, requires_grad=True)
                loss = F.cross_entropy(self.net.gated(x[None], gate), y[None])
                rows.append(torch.autograd.grad(loss, gate)[0])
            yield torch.stack(rows)

    def fisher(self) -> Tensor:
        return torch.cat(list(self.gates())).square().mean(0)

    def filters(self, c: int) -> list[Tensor]:
        return [layer[c] for layer in self.net.layers(self.weights)]


@functools.cache
def made(network: str) -> Case:
    return Case(KNOWN[network])


def each(by_hand: Callable[[Case, int], Tensor | float]) -> Callable[[Case], Tensor]:
    return lambda case: torch.tensor([float(by_hand(case, c)) for c in range(case.net.width)], dtype=torch.float64)


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def weight_by_gradient(case: Case) -> Tensor:
    found = []
    for inputs, targets in case.batches:
        loss = F.cross_entropy(case.net(inputs), targets, reduction="sum")
        names, tensors = zip(*case.net.named_parameters(), strict=True)
        slopes = dict(zip(names, torch.autograd.grad(loss, tensors), strict=True))
        layers = case.net.layers({name: case.weights[name] * slopes[name] for name in names})
        found.append(torch.stack([torch.stack([f.sum() for f in layer]) for layer in layers]).sum(0))
    return torch.stack(found).square().mean(0)


def macs(case: Case, c: int) -> int:
    cost = Cost(case.graph)
    kept = cost.everything()
    kept[case.numbers[c]] = False
    return cost.macs(cost.everything()) - cost.macs(kept)


def lamp(case: Case) -> Tensor:
    squares = [sum(float(f.square().sum()) for f in case.filters(c)) for c in range(case.net.width)]
    return torch.tensor([s / sum(t for t in squares if t >= s) for s in squares], dtype=torch.float64)


def fpgm(case: Case, c: int) -> Tensor:
    layers = case.net.layers(case.weights)
    return mean([sum(((layer[c] - other).norm() for other in layer), torch.zeros(())) for layer in layers])


BY_HAND: dict[str, Callable[[Case], Tensor]] = {
    "taylor": lambda case: torch.cat(list(case.gates())).abs().mean(0),
    "taylor-gate": lambda case: torch.stack([g.sum(0).square() for g in case.gates()]).mean(0),
    "taylor-weight": weight_by_gradient,
    "fisher": Case.fisher,
    "fisher-mac": lambda case: case.fisher() / each(macs)(case),
    "fisher-memory": lambda case: case.fisher() / (8 * case.net.elements),  # a float64 has 8 bytes
    "magnitude": each(lambda case, c: mean([f.square().mean().sqrt() for f in case.filters(c)])),
    "magnitude-l1": each(lambda case, c: mean([f.abs().mean() for f in case.filters(c)])),
    "magnitude-group": each(
        lambda case, c: torch.cat(
            [part.flatten() for part in (*case.filters(c), *case.net.readers(case.weights, c))]
        ).norm()
    ),
    "bn-scale": each(lambda case, c: mean([s.detach().abs() for s in case.net.scales(c)])),
    "fpgm": each(fpgm),
    "lamp": lamp,
    "random": lambda case: torch.from_numpy(np.random.default_rng(3).random(case.graph.structure.count)[case.numbers]),
}


#: Those that fit readers anew: see `test_reconstruction.py`.
REFITTED = ("obs", "obs-mac", "auto")


@pytest.mark.parametrize("criterion", BY_HAND)
@pytest.mark.parametrize("network", KNOWN)
def test_a_criterion_is_what_its_definition_says(network: str, criterion: str) -> None:
    case = made(network)
    expected = BY_HAND[criterion](case).numpy()
    assert len(np.unique(expected)) == case.net.width  # alike channels would hide a wrong order
    found = case.scores[criterion].raw[case.numbers]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=0)
    normalised = case.scores[criterion].normalised[case.numbers]
    per_group = criterion in ("taylor", "magnitude", "magnitude-l1", "magnitude-group", "fpgm", "random")
    expected = expected / np.linalg.norm(expected) if per_group else expected
    np.testing.assert_allclose(normalised, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("network", KNOWN)
def test_one_pass_equals_separate_passes(network: str) -> None:
    case = made(network)
    for name, together in case.scores.items():
        alone = surgeon.score(case.graph, name, case.batches, seed=3)
        np.testing.assert_array_equal(alone.raw, together.raw)
        np.testing.assert_array_equal(alone.normalised, together.normalised)


def test_all_criteria_read_the_data_once() -> None:
    case = made("joined")
    seen: list[str] = []

    def batches() -> Iterator[Batch]:
        for batch in case.batches:
            seen.append("batch")
            yield batch

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append("loss")
        return F.cross_entropy(outputs, targets)

    surgeon.score_all(case.graph, BY_HAND, batches(), loss_fn)
    assert seen == ["batch", "loss"] * len(case.batches)


# --- across groups, and where there is nothing to go by


class Mixed(nn.Module):
    """Channels behind a norm, channels behind none, and a head that only train mode runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.head, self.aux, self.last = nn.Linear(5, 4), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.a(x)))
        out: Tensor = self.head(self.b(x).mean((2, 3)))
        return (out, self.last(self.aux(x)).mean((2, 3))) if self.training else out


def graph_of(model: nn.Module, x: Any) -> surgeon.ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(model, x))


def images(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % 4)]


def test_channels_without_a_norm_compete_on_equal_terms() -> None:
    torch.manual_seed(0)
    model = Mixed().eval()
    nn.init.uniform_(model.norm.weight, -2, 2)
    graph = graph_of(model, images()[0][0])
    scores = surgeon.score(graph, "bn-scale")
    np.testing.assert_allclose(scores["a"], model.norm.weight.detach().abs(), rtol=1e-6)
    rms = model.b.weight.detach().square().mean((1, 2, 3)).sqrt().numpy()
    np.testing.assert_allclose(scores["b"], rms * scores["a"].mean() / rms.mean(), rtol=1e-6)
    plain = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    assert surgeon.score(graph_of(plain, torch.randn(2, 3)), "bn-scale")["0"].mean() == pytest.approx(1)


def test_channels_that_the_loss_never_sees_rank_in_the_middle() -> None:
    torch.manual_seed(0)
    graph = graph_of(Mixed().eval(), images()[0][0])
    gradient = [name for name, entry in CRITERIA.items() if entry.statistics and name != "taylor"]
    for scores in surgeon.score_all(graph, gradient, images()).values():
        others = np.concatenate([scores.raw[g.numbers] for g in graph.groups if g.name != "aux"])
        fisher_per_cost = scores.criterion in ("fisher-mac", "fisher-memory", "auto")
        assert fisher_per_cost or (scores["aux"] == np.median(others)).all()
        assert (scores["aux"] > 0).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("zero", [False, True])
def test_every_score_is_a_finite_number(seed: int, zero: bool) -> None:
    spec = sample_network(seed, extended=True)
    model, inputs = spec.build(), spec.inputs()
    if zero:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    graph = graph_of(model, inputs)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        outputs = pytree.tree_leaves(model(*batch))
        return torch.stack([output.square().mean() for output in outputs]).sum()

    for scores in surgeon.score_all(graph, CRITERIA, [inputs], forward_loss=loss).values():
        assert np.isfinite(scores.raw).all()
        assert np.isfinite(scores.normalised).all()
        assert all(len(scores[group.name]) == group.size for group in graph.groups)


def test_the_model_is_left_alone() -> None:
    model = Mixed().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    surgeon.score_all(graph_of(model, images()[0][0]), CRITERIA, images())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_scale_of_every_kind_of_norm_counts_once() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.GroupNorm(2, 4), norm, nn.Conv2d(4, 2, 3)).eval()
    nn.init.constant_(norm.weight, -3)
    scores = surgeon.score(graph_of(model, images()[0][0]), "bn-scale")
    assert {float(v) for g in scores.values() for v in g} == {2.0}


# --- what is asked for


def test_a_missing_dataloader_names_the_criterion() -> None:
    graph = made("joined").graph
    with pytest.raises(ScoreError, match="'fisher' needs data"):
        surgeon.score_all(graph, ["magnitude", "fisher"])
    assert set(surgeon.score_all(graph, ["magnitude", "lamp", "magnitude"])) == {"magnitude", "lamp"}


def test_names_are_told_apart() -> None:
    def ones(request: Request) -> Floats:
        return np.ones(request.graph.structure.count)

    graph = made("joined").graph
    assert set(surgeon.score_all(graph, [ones, "random"])) == {"ones", "random"}
    ones.__name__ = "magnitude"
    with pytest.raises(SelectionError, match="two criteria called 'magnitude'"):
        surgeon.score_all(graph, ["magnitude", ones])
    with pytest.raises(SelectionError, match="did you mean 'fisher'"):
        surgeon.score_all(graph, ["fischer"])


def test_every_criterion_is_defined_here_and_documented() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "criteria.md").read_text(encoding="utf-8")
    for name, entry in CRITERIA.items():
        assert name in BY_HAND or name in REFITTED
        assert f"| `{name}` |" in page
        assert entry.score.__doc__


# --- what stands between the data and the loss


class Told(nn.Module):
    """Its features come before its class scores, which go by the usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        features = self.last(torch.relu(self.conv(x))).mean((2, 3))
        return {"features": features, "logits": self.head(features)}


def test_logits_are_ranked_by_whatever_stands_beside_them() -> None:
    model, batches = Told(), images()
    graph = graph_of(model, batches[0][0])

    def by_hand(outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs["logits"], targets, reduction="none")

    found = surgeon.score(graph, "taylor", batches)
    np.testing.assert_array_equal(found.raw, surgeon.score(graph, "taylor", batches, by_hand).raw)
    assert found.raw[graph.removable].min() > 0


class Stream(IterableDataset[Any]):
    """Images that nobody has counted."""

    def __iter__(self) -> Iterator[Any]:
        for inputs, targets in images():
            yield from zip(inputs, targets, strict=True)


@pytest.mark.parametrize("criterion", ["taylor", "obs"])
def test_a_loader_without_a_length(criterion: str) -> None:
    model, batches = Mixed(), images()
    graph = graph_of(model, batches[0][0])
    told: list[int] = []
    loader: DataLoader[Any] = DataLoader(Stream(), len(batches[0][0]))
    found = surgeon.score(graph, criterion, loader, progress=lambda _stage, _done, total: told.append(total))
    np.testing.assert_allclose(found.raw, surgeon.score(graph, criterion, batches).raw)
    assert set(told) <= {0}


def test_a_criterion_of_ones_own_may_go_through_batches_that_run_out() -> None:
    seen: list[int] = []

    @surgeon.criteria.criterion("mine", needs_data=True)
    def mine(request: Request) -> Floats:
        assert request.batches is not None
        seen.append(sum(1 for _ in request.batches))
        return np.ones(request.graph.structure.count)

    graph, batches = graph_of(Mixed(), images()[0][0]), images() * 3
    try:
        surgeon.score_all(graph, ["taylor", "mine"], iter(batches))
        surgeon.score_all(graph, ["taylor", mine], iter(batches))
    finally:
        CRITERIA.pop("mine")
    assert seen == [3, 3]


def test_a_loss_may_ask_for_the_models_device_and_two_losses_exclude_each_other() -> None:
    model, batches = Mixed(), images()
    graph = graph_of(model, batches[0][0])

    def loss(given: nn.Module, batch: Any) -> Tensor:
        device = next(given.parameters()).device
        return F.cross_entropy(given(batch[0].to(device)), batch[1].to(device), reduction="none")

    found = surgeon.score(graph, "taylor", batches, forward_loss=loss)
    np.testing.assert_array_equal(found.raw, surgeon.score(graph, "taylor", batches).raw)
    with pytest.raises(ScoreError, match="loss_fn and forward_loss exclude each other"):
        surgeon.score(graph, "taylor", batches, F.cross_entropy, forward_loss=loss)


def test_recordings_of_the_last_few_shapes_are_kept() -> None:
    model = Mixed()
    gated = GatedModel(graph_of(model, torch.randn(1, 3, 8, 8)).structure, model)
    for size in range(8, 40):
        gated(torch.randn(1, 3, size, 8))
    assert 1 < len(gated._recordings) <= 16
