"""Every rule against the operator itself: what a rule lets go is removed for real, and the numbers must agree."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.channels import ChannelGraph, Guide, Labels, Mismatch, Structure, analyse, label
from surgeon.channels.structure import Flags, Ints, flat
from surgeon.rules import TABLE, Ledger, Marked, Rule, algebra, layout
from surgeon.tracing import Inputs, Replay, Trace, Unfinished, operator_name, record
from surgeon.trial.alignment import align
from surgeon.verification import Silencer
from tests.rule_samples import SAMPLES, UNREACHABLE, Sample

TOLERANCE = 1e-12
#: Changes that show whether a result depends on an element; one of them may hide in a flat stretch.
PUSHES = (0.7, -0.9)


class Refused(Exception):
    """The operator or the label pass doesn't take the smaller operands: the trial would refuse this width."""


class Call(nn.Module):
    """A module whose forward is the sample's function of its parameters and inputs."""

    def __init__(self, sample: Sample, operands: Sequence[Tensor]) -> None:
        super().__init__()
        self.sample = sample
        for index, operand in enumerate(operands):
            if "i" not in sample.letters[index]:
                self.register_parameter(f"p{index}", nn.Parameter(operand))

    def forward(self, *inputs: Tensor) -> Any:
        own, feed = dict(self.named_parameters()), iter(inputs)
        names = [f"p{index}" for index in range(len(self.sample.letters))]
        return self.sample.run(*(own[name] if name in own else next(feed) for name in names))


@dataclass(frozen=True)
class Reading:
    """A recording and its channels."""

    sample: Sample
    operands: tuple[Tensor, ...]
    structure: Structure

    @property
    def labels(self) -> Labels:
        return self.structure.labels

    @property
    def outputs(self) -> list[fx.Node]:
        (node,) = (n for n in self.labels.trace.graph.nodes if n.op == "output")
        return list(node.all_input_nodes)

    @functools.cached_property
    def free(self) -> list[int]:
        """Channels that aren't pinned."""
        return [int(number) for number in np.flatnonzero(self.structure.pinned < 0)]

    def values(self, kept: Flags | None = None) -> dict[fx.Node, Tensor]:
        """The results, with all but the kept channels silenced."""
        trace = self.labels.trace
        run = Replay(trace) if kept is None else Replay(trace, call=Silencer(ChannelGraph(self.structure), kept))
        return {node: in_double(value) for node, value in run.steps() if node in self.outputs}


def in_double(value: Tensor) -> Tensor:
    """In double precision, complex numbers as such."""
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def operands_of(sample: Sample) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(shape, dtype=torch.float64, generator=generator) for shape in sample.shapes]
    return tuple(sample.low + (sample.high - sample.low) * one for one in drawn)


def recording(sample: Sample, operands: Sequence[Tensor]) -> Trace:
    with torch.inference_mode(sample.mode == "direct"):
        model = Call(sample, [operand.clone() for operand in operands])
    given = [o for letters, o in zip(sample.letters, operands, strict=True) if "i" in letters] or [torch.zeros(1)]
    return record(model, Inputs(tuple(given)))


def without_output(labels: Labels) -> Labels:
    """Leave out the pins that only say that the result is the model's output."""
    pins = [pin for pin in labels.ledger.pins if pin.reason != "output"]
    return replace(labels, ledger=replace(labels.ledger, pins=pins))


def read(sample: Sample) -> Reading:
    operands = operands_of(sample)
    return Reading(sample, operands, analyse(without_output(label(recording(sample, operands)))))


def flags_of(reading: Reading, removed: Sequence[int]) -> Flags:
    kept = np.ones(reading.structure.count, dtype=np.bool_)
    kept[list(removed)] = False
    return kept


def places(reading: Reading) -> Iterator[tuple[str, int, Ints]]:
    """Each labelled axis: tensor, axis and the channel of every place."""
    space = reading.labels.space
    for (name, axis), start, size in zip(space.places, space.starts, space.sizes, strict=True):
        yield name, axis, reading.structure.channel[start : start + size]


def remove(reading: Reading, kept: Flags) -> tuple[Tensor, ...]:
    """The operands without the removed channels, by plain indexing."""
    small = {f"p{index}": operand for index, operand in enumerate(reading.operands)}
    for name, axis, channels in sorted(places(reading), key=lambda place: -place[1]):
        if name not in small:
            continue  # the call makes it itself, in the size that it needs
        flags = torch.from_numpy(np.append(kept, True)[channels])
        if not flags.any():
            raise Refused("nothing is left")
        if len(flags) == small[name].shape[axis]:
            small[name] = small[name].index_select(axis, flags.nonzero().flatten())
        else:
            small[name] = remove_in_groups(small[name], flags)
    return tuple(small.values())


def remove_in_groups(weight: Tensor, flags: Tensor) -> Tensor:
    """The second axis of a grouped convolution's weight, of which each group has its own."""
    flags = flags.view(-1, weight.shape[1])
    if flags.sum(1).min() < flags.sum(1).max():
        raise Refused("the groups get different widths")
    rows = weight.chunk(len(flags))
    return torch.cat([row[:, own] for row, own in zip(rows, flags, strict=True)])


def read_small(dense: Reading, operands: tuple[Tensor, ...]) -> tuple[Reading, dict[fx.Node, fx.Node]]:
    """The smaller call, labelled along the dense one, and the dense node of each of its nodes."""
    try:
        trace = recording(dense.sample, operands)
        nodes = align(trace.graph, dense.labels.trace.graph)
        labels = label(trace, Guide(dense.labels, nodes))
    except (Unfinished, Mismatch, RuntimeError) as problem:
        raise Refused(str(problem)) from problem
    return Reading(dense.sample, operands, analyse(without_output(labels), nodes)), nodes


def dense_channels(dense: Reading, small: Reading, kept: Flags) -> Ints:
    """The dense channel of each channel of the smaller call, known from what was removed."""
    result = np.full(small.structure.count + 1, -1, dtype=np.int64)
    left = {(name, axis): channels[np.append(kept, True)[channels]] for name, axis, channels in places(dense)}
    for name, axis, slots in places(small):
        if len(slots) != len(left[name, axis]):
            raise Refused("the call makes another number of places")
        result[slots] = left[name, axis]
        assert (result[slots] == left[name, axis]).all()
    for name, axis, slots in places(small):
        assert (result[slots] == left[name, axis]).all(), "a channel of the smaller call is two of the dense one"
    if (small.structure.signature != dense.structure.signature[result[:-1]]).any():
        raise Refused("channels take another way")
    return result


def keys(reading: Reading, node: fx.Node, channel: Ints) -> Ints:
    """The channels of every place of a result, one column per plane; `channel` renames them."""
    shape = tuple(node.meta["shape"])
    columns = [np.full(int(np.prod(shape)), -1)]
    for plane in reading.labels.marks[node].planes:
        own = channel[reading.structure.of(plane.labels)].reshape(plane.labels.shape)
        columns.append(np.broadcast_to(own, shape).reshape(-1))
    return np.stack(columns, axis=1)


def source(dense: Reading, small: Reading, nodes: tuple[fx.Node, fx.Node], channel: Ints, kept: Flags) -> Ints:
    """Which place of the dense result stands at each place of the smaller one, flat, as the labels tell."""
    shapes = [tuple(node.meta["shape"]) for node in nodes]
    mute = [a for a in range(len(shapes[0])) if not any(a in p.axes for p in dense.labels.marks[nodes[0]].planes)]
    assert all(shapes[0][a] == shapes[1][a] for a in mute), f"{shapes[0]} became {shapes[1]} where nothing is labelled"
    itself = np.append(np.arange(dense.structure.count), -1)
    theirs, ours = keys(dense, nodes[0], itself), keys(small, nodes[1], channel)
    stay = np.flatnonzero(np.append(kept, True)[theirs].all(axis=1))
    order, wanted = np.lexsort(theirs[stay].T), np.lexsort(ours.T)
    if len(order) != len(wanted) or (theirs[stay][order] != ours[wanted]).any():
        raise Refused("other channels arrive here")
    index = np.empty(len(order), dtype=np.int64)
    index[wanted] = stay[order]
    return index


def attempt(dense: Reading, removed: Sequence[int]) -> None:
    """Remove channels and compare; Refused if the smaller call isn't taken, AssertionError if it differs."""
    kept = flags_of(dense, removed)
    small, nodes = read_small(dense, remove(dense, kept))
    channel = dense_channels(dense, small, kept)
    theirs = dense.values(kept)
    for match, value in small.values().items():
        index = source(dense, small, (nodes[match], match), channel, kept)
        wanted = theirs[nodes[match]].flatten()[torch.from_numpy(index)]
        torch.testing.assert_close(value.flatten(), wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def demands(reading: Reading) -> Iterator[list[list[int]]]:
    """Parts that must lose equally many channels: the free channels of each part."""
    ledger = reading.labels.ledger
    for tie in ledger.ties:
        yield [members(reading, flat(part)) for part in tie.parts]
    for anchor in ledger.anchors:
        labels, where = flat(anchor.labels), flat(anchor.coordinates)
        yield [members(reading, labels[where == place]) for place in np.unique(where)]
    for found in ledger.slices.values():
        yield [members(reading, flat(part)) for _, _, part, _ in found]


def members(reading: Reading, labels: Ints) -> list[int]:
    channels = reading.structure.channel[labels]
    return [c for c in dict.fromkeys(int(c) for c in channels) if c in reading.free]


def bundle(reading: Reading, channel: int) -> set[int]:
    """The channel with those of the same rank in the parts that must stay as wide as its own."""
    removed, before = {channel}, 0
    while len(removed) > before:
        before = len(removed)
        for parts in demands(reading):
            ranks = max(([part.index(c) for c in part if c in removed] for part in parts), key=len)
            for part in parts:
                short = len(ranks) - len(removed & set(part))
                new = [part[r] for r in ranks if r < len(part) and part[r] not in removed]
                removed |= set(new[:short]) if short > 0 else set()
    return removed


def outcome(reading: Reading, channel: int) -> str:
    """The letter of one channel, as :class:`Sample` explains them."""
    if channel not in reading.free:
        return "p"
    for letter, removed in (("c", {channel}), ("b", bundle(reading, channel))):
        try:
            attempt(reading, sorted(removed))
        except Refused:
            continue
        return letter
    return "k"


def found(reading: Reading) -> dict[tuple[str, int], str]:
    """The letter of every labelled axis; several where its channels differ."""
    letters = {number: outcome(reading, number) for number in range(reading.structure.count)}
    return {
        (name, axis): "".join(sorted({letters[int(c)] for c in channels})) for name, axis, channels in places(reading)
    }


def check(sample: Sample) -> None:
    """The sample's declared letters against what is found; and channels of all axes at once."""
    reading = read(sample)
    letters = found(reading)
    text = [
        own if "i" in own else [letters.get((f"p{index}", axis), "-") for axis in range(len(own))]
        for index, own in enumerate(sample.letters)
    ]
    assert text == sample.letters, f"declared {sample.letters}, found {text}"
    attempt(reading, sorted({int(c[0]) for name, axis, c in places(reading) if letters[name, axis] == "c"}))


def recorded(sample: Sample) -> set[str]:
    trace = recording(sample, operands_of(sample))
    return {operator_name(node) for node in trace.calls}


def carried(reading: Reading, node: fx.Node, channel: int) -> Tensor:
    """Where a result carries this channel."""
    shape = tuple(node.meta["shape"])
    result = torch.zeros(shape, dtype=torch.bool)
    for plane in reading.labels.marks[node].planes:
        own = torch.from_numpy(reading.structure.of(plane.labels) == channel)
        result |= own.view(plane.labels.shape)
    return result


def summed(reading: Reading) -> set[int]:
    """Channels over which some operator sums or takes statistics."""
    ledger = reading.labels.ledger
    planes = [fact.plane for fact in ledger.summed] + [plane for found in ledger.statistics.values() for plane in found]
    return {int(c) for plane in planes for c in np.unique(reading.structure.of(plane.labels))}


def results(reading: Reading, operands: Sequence[Tensor]) -> list[Tensor]:
    leaves = pytree.tree_leaves(reading.sample.run(*operands))
    return [in_double(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def changed(reading: Reading, base: Sequence[Tensor], operand: int, element: int) -> list[Tensor]:
    """Which places of each result change with one element of one operand."""
    masks = [torch.zeros_like(value, dtype=torch.bool) for value in base]
    for push in PUSHES:
        operands = [one.clone() for one in reading.operands]
        operands[operand].view(-1)[element] += push
        for mask, was, value in zip(masks, base, results(reading, operands), strict=True):
            mask |= (was != value) & ~(was.isnan() & value.isnan())
    return masks


def channels_at(reading: Reading, operand: int) -> Tensor:
    """Channels of each element of an operand, one row per labelled axis."""
    shape = reading.operands[operand].shape
    planes = reading.labels.space.planes.get(f"p{operand}", ())
    rows = [torch.from_numpy(reading.structure.of(p.labels)).view(p.labels.shape).expand(shape) for p in planes]
    return torch.stack([row.flatten() for row in rows]) if rows else torch.empty(0, shape.numel(), dtype=torch.int64)


def check_dependence(reading: Reading) -> None:
    """A result that depends on a free channel carries it, unless the channel was summed over."""
    base = results(reading, reading.operands)
    watched = set(reading.free) - summed(reading)
    carries = {c: [carried(reading, node, c) for node in reading.outputs] for c in watched}
    for operand in range(len(reading.operands)):
        at = channels_at(reading, operand)
        for element in range(at.shape[1]):
            own = watched & {int(c) for c in at[:, element]}
            masks = changed(reading, base, operand, element) if own else []
            for c in own:
                assert not any(bool((m & ~there).any()) for m, there in zip(masks, carries[c], strict=True)), (
                    f"operand {operand}, element {element}: a result depends on channel {c} and doesn't carry it"
                )


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_what_a_rule_lets_go_can_go(sample: Sample) -> None:
    check(sample)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_results_carry_the_channels_that_they_depend_on(sample: Sample) -> None:
    check_dependence(read(sample))


def may_be_unseen(name: str) -> bool:
    """Whether a version of torch may take an operator apart before it is recorded, or leave out what gives nothing."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [getattr(packet, overload) for overload in (packet.overloads() if packet else ())]
    own = [one for one in overloads if "(Tensor " in str(one._schema)]  # others are for numbers in scripts
    apart = (torch._C._dispatch_has_kernel_for_dispatch_key(one.name(), "CompositeImplicitAutograd") for one in own)
    return any(apart) or any(not one._schema.returns for one in own)


def test_every_operator_of_the_table_has_a_sample() -> None:
    declared = set()
    for sample in SAMPLES:
        names = set(sample.names.split())
        missing = {name for name in names - recorded(sample) if not may_be_unseen(name)}
        assert not missing, f"{sample} doesn't record {missing}"
        declared |= names
    assert declared & set(UNREACHABLE) == set()
    assert declared | set(UNREACHABLE) == set(TABLE)


def test_an_operator_without_rule_pins_what_flows_in() -> None:
    sample = Sample("histc", torch.histc, "3p 3p 2p")
    assert recorded(sample) == {"histc"}
    assert "histc" not in TABLE
    check(sample)


def test_samples_have_names_of_their_own() -> None:
    counts = Counter(str(sample) for sample in SAMPLES)
    assert [name for name, count in counts.items() if count > 1] == []


def swapped(ledger: Ledger, tensors: Sequence[Marked], dim: int = 0) -> Marked:
    """A wrong rule for cat."""
    return algebra.assemble(ledger, tensors, dim, lambda labels: torch.cat(labels[::-1], dim))


def uncoupled(ledger: Ledger, a: Marked, b: Marked) -> Marked:
    """A wrong rule for mm."""
    before = len(ledger.couples)
    result: Marked = MM(ledger, a, b)
    del ledger.couples[before:]
    return result


MM = TABLE["mm"]


def in_place(ledger: Ledger, x: Marked, factor: int) -> Marked:
    """A wrong rule for pixel_shuffle: each channel stays where it was."""

    def grow(labels: Tensor) -> Tensor:
        return labels[:, : labels.shape[1] // factor**2].repeat_interleave(factor, 2).repeat_interleave(factor, 3)

    return layout.move(ledger, grow, x)


def frightened(ledger: Ledger, x: Marked) -> Marked:
    """A rule for relu that pins without need."""
    ledger.pin(x.planes, "fear")
    return x


WRONG: dict[str, Rule] = {
    "flip": algebra.pointwise,
    "_softmax": algebra.pointwise,
    "cat": swapped,
    "mm": uncoupled,
    "pixel_shuffle": in_place,
    "relu": frightened,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = next(sample for sample in SAMPLES if str(sample) == name)
    check(sample)
    monkeypatch.setitem(TABLE, name, WRONG[name])
    with pytest.raises(AssertionError):
        check(sample)


@pytest.mark.parametrize("name", ["flip", "_softmax", "cat", "pixel_shuffle"])
def test_a_rule_that_loses_a_dependence_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = next(sample for sample in SAMPLES if str(sample) == name)
    check_dependence(read(sample))
    monkeypatch.setitem(TABLE, name, WRONG[name])
    with pytest.raises(AssertionError, match="depends on channel"):
        check_dependence(read(sample))
