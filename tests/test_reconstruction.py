"""Criterion ``obs`` against brute force: take a channel out, fit its readers anew, see what they have lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import surgeon
from surgeon.criteria import collecting, reconstruction
from surgeon.criteria.filters import channel_macs
from surgeon.errors import ScoreError
from surgeon.products import Moments
from tests.networks import redraw

Floats = NDArray[np.float64]


@dataclass
class Read:
    """What a reader is given, row by row, what it makes of it, and which channel each input belongs to."""

    rows: Tensor
    made: Tensor
    channel: NDArray[np.int64]

    def loss(self, gone: list[int]) -> float:
        """The part of the outputs' variance that no weights without these channels explain."""
        kept = torch.from_numpy(~np.isin(self.channel, gone))
        x = torch.cat([self.rows[:, kept], self.rows.new_ones(len(self.rows), 1)], 1)
        rest = self.made - x @ torch.linalg.lstsq(x, self.made).solution
        return float(rest.square().sum() / (self.made - self.made.mean(0)).square().sum())


class Network(nn.Module):
    """Eight channels made by `first`; a subclass says who reads them."""

    shape: tuple[int, ...] = (3, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def channels(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def reads(self, x: Tensor) -> Iterator[Read]:
        raise NotImplementedError


class OneReader(Network):
    def __init__(self) -> None:
        super().__init__()
        self.reader: nn.Module = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.reader(self.channels(x))

    def reads(self, x: Tensor) -> Iterator[Read]:
        yield Read(_rows(self.channels(x)), _rows(self(x)), np.arange(8))


class Grouped(OneReader):
    """Each of two groups of the reader is a problem of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.Conv2d(8, 6, 1, groups=2)

    def reads(self, x: Tensor) -> Iterator[Read]:
        for group, (given, made) in enumerate(zip(self.channels(x).chunk(2, 1), self(x).chunk(2, 1), strict=True)):
            yield Read(_rows(given), _rows(made), 4 * group + np.arange(4))


class Flattened(OneReader):
    """A channel owns four inputs of the reader."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))

    def reads(self, x: Tensor) -> Iterator[Read]:
        yield Read(self.channels(x).flatten(1), self(x), np.repeat(np.arange(8), 4))


class Coupled(Network):
    """Two layers make the channels, two read them: what they lose is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.one = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        self.two = nn.Linear(8, 2, bias=False)

    def channels(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x) + self.second(x))

    def forward(self, x: Tensor) -> Any:
        x = self.channels(x)
        return self.one(x), self.two(x.mean((2, 3)))

    def reads(self, x: Tensor) -> Iterator[Read]:
        given, (one, two) = self.channels(x), self(x)
        yield Read(_rows(given), _rows(one), np.arange(8))
        yield Read(given.mean((2, 3)), two, np.arange(8))


def _rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(0, -2)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 4, 4, generator=generator, dtype=torch.float64) for size in (90, 60)]


def made(kind: Callable[[], nn.Module]) -> Any:
    return redraw(kind().double(), 0).eval()


def scored(model: nn.Module, criterion: str = "obs") -> tuple[surgeon.ChannelGraph, Floats]:
    """Scores of the eight channels."""
    graph = surgeon.channel_graph(surgeon.trace(model, batches()[0]))
    numbers = graph.structure.along("first.weight", 0)
    return graph, surgeon.score(graph, criterion, [(x, None) for x in batches()]).raw[numbers]


def greedy(model: Any) -> Floats:
    """Take out the channel that costs least, again and again; its price is what the loss rises by."""
    with torch.no_grad():
        reads = list(model.reads(torch.cat(batches())))
    found, gone, reached = np.zeros(8), list[int](), 0.0
    while len(gone) < 8:
        loss = sum(read.loss(gone) for read in reads)
        left = [channel for channel in range(8) if channel not in gone]
        rises = [sum(read.loss([*gone, channel]) for read in reads) - loss for channel in left]
        reached = max(reached, min(rises))
        gone.append(left[int(np.argmin(rises))])
        found[gone[-1]] = reached
    return found


@pytest.mark.parametrize("kind", [OneReader, Grouped, Flattened, Coupled])
def test_the_score_is_what_the_readers_lose(kind: Callable[[], Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "_RIDGE", 1e-10)
    model = made(kind)
    expected, (_, found) = greedy(model), scored(model)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(np.argsort(found, kind="stable"), np.argsort(expected, kind="stable"))


@pytest.mark.parametrize("kind", [OneReader, Flattened])
def test_a_channel_that_others_replace_costs_nothing(kind: Callable[[], Any]) -> None:
    model = made(kind)
    with torch.no_grad():
        for parameter in model.first.parameters():
            parameter[5] = parameter[2]
    found = scored(model)[1]
    assert np.argmin(found) in (2, 5)
    assert found[[2, 5]].min() < 0.01 * np.delete(found, [2, 5]).min()


def test_per_mac() -> None:
    model = made(Flattened)
    graph, found = scored(model)
    numbers = graph.structure.along("first.weight", 0)
    np.testing.assert_allclose(scored(model, "obs-mac")[1], found / channel_macs(graph)[numbers])


@pytest.mark.parametrize("kind", [OneReader, Grouped, Flattened, Coupled])
@pytest.mark.parametrize("dead", [[3], list(range(8))])
def test_dead_channels_cost_nothing(kind: Callable[[], Any], dead: list[int]) -> None:
    model = made(kind)
    with torch.no_grad():
        for layer in (model.first, getattr(model, "second", model.first)):
            layer.weight[dead] = 0
    found = scored(model)[1]
    assert np.isfinite(found).all()
    assert (found[dead] < 1e-3).all()  # what the penalty says that their weights are worth
    assert (np.delete(found, dead) > found[dead].max()).all()


def test_many_inputs_are_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of one channel behind a flatten are taken together; a channel stays whole."""
    model = made(Flattened)
    with torch.no_grad():
        model.first.weight[6] = 0
    monkeypatch.setattr(collecting, "_MOST_INPUTS", 16)
    found = scored(model)[1]
    assert 0 <= found[6] < 1e-3 < np.delete(found, 6).min()


def test_no_batch_is_an_error() -> None:
    graph = surgeon.channel_graph(surgeon.trace(made(OneReader), batches()[0]))
    with pytest.raises(ScoreError, match="gave no batch"):
        surgeon.score(graph, "obs", [])


def test_data_that_runs_out_is_enough_for_all() -> None:
    graph = surgeon.channel_graph(surgeon.trace(made(OneReader), batches()[0]))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.as_tensor(model(batch)).square().sum()

    names = ["fisher", "obs", "auto"]
    once = surgeon.score_all(graph, names, iter(batches()), forward_loss=loss)
    again = surgeon.score_all(graph, names, batches(), forward_loss=loss)
    assert all((once[name].raw == again[name].raw).all() for name in names)


class Scaled(nn.Module):
    """Divides by a number that it takes from the batch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.first(x / x.abs().max().item())))


def test_numbers_that_a_batch_gives_the_forward_are_its_own() -> None:
    model, x = Scaled(), torch.randn(32, 4)
    graph = surgeon.channel_graph(surgeon.trace(model, x))
    alike, scaled = (surgeon.score(graph, "obs", [x, other]).raw for other in (x, 10 * x))
    np.testing.assert_allclose(scaled, alike, rtol=1e-5)


class Queries(Network):
    """What is multiplied by other activations has no reader with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (part(x).flatten(2).mT for part in (self.first, self.keys, self.values))
        return self.out(torch.softmax(q @ k.mT, -1) @ v)


def test_what_no_weight_reads_is_neither_first_nor_last() -> None:
    graph, found = scored(made(Queries))
    values = surgeon.score(graph, "obs", batches()).raw[graph.structure.along("values.weight", 0)]
    np.testing.assert_allclose(found, np.median(values))
    assert (found > 0).all()


def test_rows_are_shared_out_over_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a reader is given no more of them."""
    rows: list[int] = []
    add = Moments.add

    def told(self: Moments, x: Tensor, y: Tensor) -> None:
        rows.append(x.shape[1])
        add(self, x, y)

    monkeypatch.setattr(Moments, "add", told)
    monkeypatch.setattr(collecting, "_MOST_ROWS", 800)
    graph = surgeon.channel_graph(surgeon.trace(made(OneReader), batches()[0]))  # two convolutions read something
    many = [x for _ in range(20) for x in batches()]
    for given, parts in ((many, None), (many, 30), (Uncounted(many), None)):
        rows.clear()
        surgeon.score(graph, "obs", given, micro_batch=parts)
        assert 1500 < sum(rows) <= 1600
    rows.clear()
    surgeon.score(graph, "obs", batches())
    assert sum(rows) == 800  # a quarter of them from each at most


class Uncounted:
    """Batches that can be gone through again, and don't say how many they are."""

    def __init__(self, given: list[Tensor]) -> None:
        self.given = given

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.given


class Far(OneReader):
    """What the reader is given is a million away from zero."""

    def channels(self, x: Tensor) -> Tensor:
        return super().channels(x) + 1e6


def test_means_far_from_zero_cost_no_digits() -> None:
    near, far = made(OneReader), made(Far)
    np.testing.assert_allclose(scored(far)[1], scored(near)[1], rtol=1e-3)
