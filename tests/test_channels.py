"""The channel graph of small networks, against what a person reads off their source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon.channels import ChannelGraph, layer_of
from surgeon.rules import TABLE, Ledger, Marked, reasons
from tests.test_zoo import build
from tests.zoo import ZOO
from tests.zoo.base import conv


class Row(NamedTuple):
    """A group, as a person would write it down."""

    name: str
    size: int
    filters: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


def graph_of(name: str) -> ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(build(name), ZOO[name].example()))


def rows(graph: ChannelGraph) -> list[Row]:
    return [Row(g.name, g.size, g.filters, g.producers, g.consumers) for g in graph.groups]


KNOWN = {
    "PlainChain": [Row("conv1", 16, 1, ("conv1",), ("conv2",)), Row("conv2", 12, 1, ("conv2",), ("fc",))],
    "ResidualIdentity": [
        Row("stem", 12, 2, ("stem", "conv2"), ("conv1", "fc")),
        Row("conv1", 16, 1, ("conv1",), ("conv2",)),
    ],
    "DenseList": [
        Row("layers.0", 6, 1, ("layers.0",), ("layers.1", "layers.2", "fc")),
        Row("layers.1", 6, 1, ("layers.1",), ("layers.2", "fc")),
        Row("layers.2", 6, 1, ("layers.2",), ("fc",)),
    ],
    "FlattenLinear": [Row("conv", 12, 1, ("conv",), ("hidden",)), Row("hidden", 10, 0, ("hidden",), ("fc",))],
    "DepthwiseMultiplier": [
        Row("conv", 8, 3, ("conv", "depthwise"), ("point",)),
        Row("point", 6, 1, ("point",), ("fc",)),
    ],
    "SqueezeExcite": [
        Row("conv", 16, 1, ("conv", "excite"), ("squeeze", "fc")),
        Row("squeeze", 4, 0, ("squeeze",), ("excite",)),
    ],
    "EqualSplit": [
        Row("conv", 8, 1, ("conv",), ("left",)),
        Row("conv#2", 8, 1, ("conv",), ("right",)),
        Row("left", 12, 2, ("left", "right"), ("fc",)),
    ],
    "PaddedShortcut": [
        Row("stem", 8, 2, ("stem", "conv2"), ("conv1", "fc")),
        Row("conv1", 16, 1, ("conv1",), ("conv2",)),
    ],
    "PixelShuffled": [Row("conv", 8, 4, ("conv",), ("last",)), Row("last", 8, 1, ("last",), ("fc",))],
    "FlippedChannels": [Row("conv", 6, 2, ("conv",), ("last",)), Row("last", 8, 1, ("last",), ("fc",))],
    "SpatialGate": [Row("conv", 16, 1, ("conv",), ("gate", "fc"))],
}


@pytest.mark.parametrize("name", KNOWN)
def test_groups_are_those_of_the_source(name: str) -> None:
    assert rows(graph_of(name)) == KNOWN[name]


def test_roles_of_a_chains_tensors() -> None:
    group = graph_of("PlainChain").groups[0]
    assert {(m.tensor, m.axis): m.role for m in group.members} == {
        ("conv1.weight", 0): "produces",
        ("conv1.bias", 0): "follows",
        ("bn1.weight", 0): "follows",
        ("bn1.bias", 0): "follows",
        ("bn1.running_mean", 0): "follows",
        ("bn1.running_var", 0): "follows",
        ("conv2.weight", 1): "consumes",
    }
    assert group.channels == tuple(range(16))


def bundles(graph: ChannelGraph) -> list[list[str]]:
    return [[group.name for group in bundle.groups] for bundle in graph.bundles]


def test_groups_of_a_grouped_convolution_are_one_bundle() -> None:
    graph = graph_of("ChannelShuffle")
    four = ["", "#2", "#3", "#4"]
    assert bundles(graph) == [[f"conv{n}" for n in four], [f"grouped{n}" for n in four], ["last"]]
    assert [b.steps for b in graph.bundles] == [4, 4, 8]
    channels = [group.channels for group in graph.groups]
    assert channels[:4] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    assert channels[4:8] == channels[:4]


def test_halves_of_a_chunk_are_one_bundle() -> None:
    assert bundles(graph_of("EqualSplit")) == [["conv", "conv#2"], ["left"]]


def test_a_chain_has_no_bundles_of_several() -> None:
    assert bundles(graph_of("PlainChain")) == [["conv1"], ["conv2"]]


class Sorted(nn.Module):
    """An operator that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.special.bessel_j0(F.relu(self.conv(x))).mean((2, 3)))


def sorted_graph() -> ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(Sorted(), torch.randn(2, 3, 8, 8)))


class SortedWeight(Sorted):
    """An operator that no rule knows, on a weight: nothing is known of the filters that it makes."""

    def forward(self, x: Tensor) -> Any:
        weight = torch.special.bessel_j0(self.conv.weight)
        return self.fc(F.relu(F.conv2d(x, weight, self.conv.bias)).mean((2, 3)))


def sorted_weight_graph() -> ChannelGraph:
    return surgeon.channel_graph(surgeon.trace(SortedWeight(), torch.randn(2, 3, 8, 8)))


def pins(graph: ChannelGraph) -> dict[str, tuple[str, int, int]]:
    return {p.layer: (p.reason, p.channels, p.of) for p in graph.pinned}


@pytest.mark.parametrize(
    ("make", "layer", "expected", "file"),
    [
        (lambda: graph_of("PlainChain"), "fc", ("output", 5, 5), None),
        (lambda: graph_of("FeatureMapOutput"), "conv", ("output", 16, 16), None),
        (lambda: graph_of("SoftmaxOverChannels"), "conv", ("mixes channels in _softmax", 12, 12), "zoo/constants.py"),
        (lambda: graph_of("PaddedShortcut"), "conv2", ("constant in", 8, 16), "tests/zoo"),
        (sorted_graph, "conv", ("operator without rule special_bessel_j0", 8, 8), "test_channels.py"),
        (
            sorted_weight_graph,
            "conv",
            ("operator without rule special_bessel_j0", 8, 8),
            "test_channels.py",
        ),
    ],
    ids=["output", "feature map", "softmax", "padded shortcut", "no rule", "no rule for a weight"],
)
def test_pins_say_why(
    make: Callable[[], ChannelGraph], layer: str, expected: tuple[str, int, int], file: str | None
) -> None:
    graph = make()
    reason, channels, of = pins(graph)[layer]
    assert (reason if expected[0] != "constant in" else reason[:11], channels, of) == expected
    source = {p.layer: p.source for p in graph.pinned}[layer]
    assert (source is None) == (file is None)
    assert file is None or file in str(source)


def test_a_pin_names_the_line() -> None:
    (source,) = [p.source for p in sorted_graph().pinned if p.layer == "conv"]
    file, _, line = str(source).rpartition(":")
    with open(file, encoding="utf-8") as text:  # noqa: PTH123  # a path of the user's program
        assert "bessel_j0" in text.readlines()[int(line) - 1]


def test_the_graph_as_networkx() -> None:
    graph = graph_of("PlainChain").to_networkx()
    assert dict(graph.nodes(data=True)) == {
        "group:conv1": {"kind": "group", "size": 16, "filters": 1},
        "group:conv2": {"kind": "group", "size": 12, "filters": 1},
        "conv1": {"kind": "layer", "type": "Conv2d"},
        "bn1": {"kind": "layer", "type": "BatchNorm2d"},
        "conv2": {"kind": "layer", "type": "Conv2d"},
        "bn2": {"kind": "layer", "type": "BatchNorm2d"},
        "fc": {"kind": "layer", "type": "Linear"},
    }
    assert {(a, b): kind for a, b, kind in graph.edges(data="kind")} == {
        ("conv1", "group:conv1"): "produces",
        ("group:conv1", "bn1"): "couples",
        ("group:conv1", "conv2"): "consumes",
        ("conv2", "group:conv2"): "produces",
        ("group:conv2", "bn2"): "couples",
        ("group:conv2", "fc"): "consumes",
    }


def test_bare_parameters_are_nodes_too() -> None:
    graph = graph_of("FunctionalWeights").to_networkx()
    assert graph.nodes["weight"] == {"kind": "layer", "type": "parameter"}
    assert graph.edges["group:weight", "gamma"] == {"kind": "couples"}


def test_a_tied_layer_that_makes_and_reads_the_same_channels() -> None:
    """Its own in- and out-channels are one group: it produces, and the edge back is there as well."""
    (group,) = graph_of("CalledTwice").groups
    assert group.producers == ("stem", "conv")
    assert group.consumers == ("conv", "fc")


@pytest.mark.parametrize("name", ["PlainChain", "ChannelShuffle", "EqualSplit", "DenseList"])
def test_names_do_not_depend_on_later_pins(name: str) -> None:
    graph = graph_of(name)
    for group in graph.groups:
        pinned = graph.pin(group.numbers[:1], "for the test", "here.py:1")
        assert {g.name: g.channels for g in pinned.named.values()} == {g.name: g.channels for g in graph.groups}
        assert group.name not in [g.name for g in pinned.groups]
        left = {g.name: g.channels for g in pinned.groups}
        assert left.items() <= {g.name: g.channels for g in graph.groups}.items()
    assert rows(graph) == rows(graph_of(name))


def test_a_pinned_channel_keeps_its_group_and_says_why() -> None:
    graph = graph_of("PlainChain")
    first = graph.pin(graph.groups[0].numbers[3:4], "for the test", "here.py:1")
    assert pins(first)["conv1"] == ("for the test", 16, 16)
    both = first.pin(graph.groups[1].numbers, "another")
    assert [p.reason for p in both.pinned] == ["for the test", "another", "output"]
    assert both.groups == ()
    assert len(both.removable) == 0
    assert pins(graph) == {"fc": ("output", 5, 5)}


def test_pinning_one_group_of_a_bundle_keeps_the_others() -> None:
    """One of four groups of a grouped convolution can't stay alone."""
    graph = graph_of("ChannelShuffle")
    pinned = graph.pin(graph.named["conv#2"].numbers, "ignored")
    assert bundles(pinned) == bundles(graph)[1:]
    assert pins(pinned)["conv"] == ("ignored", 16, 16)


#: The whole set of reasons that a user can read.
REASON = re.compile(
    r"output|ignored|operator without rule \S+|constant in \S.*|mixes channels in \S+|would empty the layer"
    r"|not reached by the example inputs|not a float weight|its result isn't read|used in a way that isn't known"
    r"|as wide as \S+, which other data may reach: pass example inputs that do"
)


@pytest.mark.parametrize("name", ZOO)
def test_numbers_add_up(name: str) -> None:
    """Every channel is in one group at most; of every layer, each filter is free or counted as pinned."""
    graph = graph_of(name)
    numbers = np.concatenate([[], *(group.numbers for group in graph.groups)])
    assert sorted(numbers) == list(graph.removable)
    assert len(np.unique(numbers)) == len(numbers)
    space, structure = graph.structure.labels.space, graph.structure
    free, sizes = Counter[str](), Counter[str]()
    for (tensor, _), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        if structure.produced[start]:
            free[layer_of(tensor)] += int(np.isin(structure.channel[start : start + size], graph.removable).sum())
            sizes[layer_of(tensor)] += int(size)
    assert free + Counter({pin.layer: pin.channels for pin in graph.pinned if pin.layer in sizes}) == sizes
    others = {pin.reason for pin in graph.pinned if pin.layer not in sizes}
    assert others <= {reasons.UNREACHED, reasons.EMPTY, reasons.NOT_FLOAT}
    assert all(REASON.fullmatch(pin.reason) for pin in graph.pinned)


def planes() -> list[Tensor]:
    """Labels below 12: fewer places than labels, more, and repeated ones."""
    few = torch.tensor([[3], [0], [3]])
    many = torch.randint(12, (5, 7), generator=torch.Generator().manual_seed(0))
    return [few, many, few.expand(3, 4), many[:, :1].expand(5, 30), many.view(5, 1, 7).expand(5, 3, 7)]


@pytest.mark.parametrize("index", range(5))
def test_labels_count_as_often_as_they_are_there(index: int) -> None:
    labels = planes()[index]
    places, counts = surgeon.channels.structure._tally(labels, 12)
    assert len(places) <= min(12, labels.numel())
    found = np.zeros(12, dtype=np.int64)
    np.add.at(found, places, counts)
    assert found.tolist() == np.bincount(labels.flatten().numpy(), minlength=12).tolist()
    base = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(all="raise"):
        times = np.broadcast_to(surgeon.channels.structure._times(base, counts), places.shape)
    each = np.broadcast_to(counts, places.shape).tolist()
    assert times.tolist() == [int(base) * count % 2**64 for count in each]


def _no_list(ledger: Ledger, x: Marked) -> Marked:
    """Notes this and that, then fails."""
    ledger.fresh(3)
    ledger.couple(x.planes[0], x.planes[0])
    raise TypeError("an extension's mistake")


def _only_wide(_: Ledger, x: Marked) -> Marked:
    if x.shape[1] < 8:
        raise TypeError("too few")
    return x


@pytest.mark.parametrize("rule", [_no_list, lambda *_: None], ids=["raises", "gives nothing"])
def test_where_a_rule_fails_channels_stay(
    rule: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(TABLE, "relu", rule)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3)).eval()
    result = surgeon.prune(model, torch.randn(1, 3, 12, 12), filters=4, criterion="magnitude")
    assert result.model[0].out_channels == 8  # type: ignore[index]  # it is a Sequential still
    assert result.model[2].out_channels == 4  # type: ignore[index]  # likewise
    assert ("0", "operator relu: its rule failed") in {(pin.layer, pin.reason) for pin in result.report.pinned}
    assert "the rule of relu failed at 1" in caplog.text


def test_where_a_rule_fails_on_fewer_channels_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "relu", _only_wide)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3)).eval()
    result = surgeon.prune(model, torch.randn(1, 3, 12, 12), filters=4, criterion="magnitude")
    assert result.model[0].out_channels == 8  # type: ignore[index]  # it is a Sequential still
    assert result.model[2].out_channels == 4  # type: ignore[index]  # likewise


@pytest.mark.parametrize("where", ["input", "middle"])
def test_bits_read_as_another_type_and_back_are_the_same_channels(where: str) -> None:
    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(torch.int32).view(torch.float32) if where == "input" else x
            x = torch.relu(self.conv(x))
            x = x.view(torch.int32).view(torch.float32) if where == "middle" else x
            y: Tensor = self.out(x)
            return y

    result = surgeon.prune(Bits().eval(), torch.randn(1, 3, 8, 8), filters=4, criterion="magnitude")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.conv.out_channels == 4  # type: ignore[union-attr]  # it is a convolution
