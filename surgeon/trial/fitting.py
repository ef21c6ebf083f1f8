"""Match what arrives at the small widths with the dense channels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx

from surgeon.channels import ChannelGraph, Group, Structure
from surgeon.channels.structure import Flags, Hashes, Ints
from surgeon.tracing import Trace, named_tensors
from surgeon.trial.alignment import partners
from surgeon.trial.bindings import Binding, settings
from surgeon.trial.blame import Misfit, find_misfit, find_other_way
from surgeon.trial.folding import Fold
from surgeon.trial.places import Matching
from surgeon.trial.renumbering import ChannelNumbers
from surgeon.trial.running import Run, Widths, read_recording, run_at, widths_of
from surgeon.trial.targets import Settings

#: Channels of each group, by its name.
Counts = dict[str, int]
#: Signatures of channels that take ways that no dense one takes: the forward ran and its shapes followed.
Strangers = frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Fit:
    """Where each place of the small model's tensors comes from.

    Attributes
    ----------
    graph:
        The dense channel graph.
    small:
        The channels of the small model (*slots*), from the trial's recording.
    nodes:
        Dense node of each node of the small recording.
    channel:
        Dense channel of each slot.
    kept:
        The flags that it was made for: one bool per dense channel.
    bindings:
        Numbers that the user's own program holds and that follow the widths.
    folds:
        Numbers in the forward that follow the widths, folded into weights.
    numbers:
        What the small model's tensors of channel numbers hold.
    """

    graph: ChannelGraph
    small: Structure
    nodes: dict[fx.Node, fx.Node]
    channel: Ints
    kept: Flags
    bindings: tuple[Binding, ...] = ()
    folds: tuple[Fold, ...] = ()
    numbers: ChannelNumbers = field(default_factory=dict)

    @functools.cached_property
    def matching(self) -> Matching:
        """Where what arrives in the small model comes from, label by label."""
        return Matching.of(self.graph.structure, self.small, self.channel, self.kept)

    def positions(self, name: str, axis: int) -> Tensor:
        """Dense position (label offset) that stands at each position of an axis of the small tensor."""
        dense, small = self.graph.structure, self.small
        theirs, ours = dense.along(name, axis), self.channel[small.along(name, axis)]
        chosen = np.zeros(dense.count + 1, dtype=bool)
        chosen[ours] = True
        kept = np.flatnonzero(chosen[theirs])
        if np.array_equal(theirs[kept], ours):  # they stand in their old order, as nearly always
            return torch.from_numpy(kept)
        by_channel = kept[np.argsort(theirs[kept], kind="stable")]
        result = np.empty(len(ours), dtype=np.int64)
        result[np.argsort(ours, kind="stable")] = by_channel
        return torch.from_numpy(result)

    def gather(self, name: str, tensor: Tensor) -> Tensor:
        """The small tensor: `tensor`, a dense parameter or buffer called `name`, indexed once per axis.

        Of channel numbers those that the small model's own were tried with.
        """
        if name in self.numbers:
            return self.numbers[name].to(tensor.device, tensor.dtype)
        small = tensor
        for plane in self.graph.structure.labels.space.planes.get(name, ()):
            axis = max(plane.axes)
            index = self.positions(name, axis).to(tensor.device)
            if len(plane.axes) == 1:
                if len(index) != small.shape[axis]:
                    small = small.index_select(axis, index)
            else:
                small = self._gather_groups(name, small, index)
        return self._folded(name, small.clone() if small is tensor and self._folds(name) else small)

    def _folds(self, name: str) -> list[tuple[int, Ints, float]]:
        """Of each factor on a tensor the axis, the dense rows and the factor."""
        rows = ((fold.factor, place, rows) for fold in self.folds for place, rows in fold.rows.items())
        return [(axis, found, factor) for factor, (owner, axis), found in rows if owner == name]

    def _folded(self, name: str, small: Tensor) -> Tensor:
        """The folds' factors on the rows of a small tensor, in place; indices (integers) are left alone."""
        for axis, dense_rows, factor in self._folds(name) if small.is_floating_point() else ():
            rows = torch.from_numpy(np.flatnonzero(np.isin(self.positions(name, axis).numpy(), dense_rows)))
            rows = rows.to(small.device)
            small.index_copy_(axis, rows, (small.index_select(axis, rows).double() * factor).to(small.dtype))
        return small

    def _gather_groups(self, name: str, tensor: Tensor, index: Tensor) -> Tensor:
        """The second axis of a grouped convolution's weight: every group keeps channels of its own."""
        per_group = self.graph.trace.tensors[name].shape[1]
        groups = len(self.graph.structure.along(name, 1)) // per_group
        index = index.view(groups, -1) % per_group
        index = index.repeat_interleave(tensor.shape[0] // groups, 0)
        index = index.view(*index.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
        return tensor.gather(1, index)

    def source(self, name: str) -> Tensor:
        """Flat dense index of each element of the small tensor: ``small.flatten() == dense.flatten()[source]``."""
        shape = named_tensors(self.graph.trace.model)[name].shape
        return self.gather(name, torch.arange(shape.numel()).view(shape)).flatten()

    @property
    def settings(self) -> Settings:
        """Numbers to set on the small model besides its tensors."""
        return settings(self.bindings, self.kept)

    @property
    def cut(self) -> list[str]:
        """Names of the tensors that change: they lose places, or a number is folded into them."""
        dense = self.graph.structure.labels.space
        sizes = dict(zip(self.small.labels.space.places, self.small.labels.space.sizes, strict=True))
        places = zip(dense.places, dense.sizes, strict=True)
        smaller = [n for (n, axis), size in places if n in dense.planes and sizes.get((n, axis)) != size]
        return list(dict.fromkeys([*smaller, *(name for fold in self.folds for name, _ in fold.rows)]))


def counts_at(graph: ChannelGraph, widths: Widths, kept: Flags) -> Counts | Strangers:
    """How many channels each group has when the forward runs at these widths; or those that take other ways there.

    Raises
    ------
    Misfit
        If the forward fails there or carries channels otherwise than the dense one.
    """
    slots, known = Kinds.of(run_at(graph, widths, kept, {}).structure), Kinds.of(graph.structure)
    counts = dict(zip(slots.pairs(), slots.counts.tolist(), strict=True))
    return _strangers(slots, known) or {
        group.name: counts.get(_key(graph.structure, group), 0) for group in graph.groups
    }  # fmt: skip


def attempt(graph: ChannelGraph, kept: Flags, bindings: tuple[Binding, ...]) -> Fit | Misfit:
    """Match the small model that keeps exactly these channels with the dense one, with these numbers bound."""
    try:
        run = run_at(graph, widths_of(graph, kept), kept, settings(bindings, kept))
        return replace(_match(graph, run, kept), bindings=bindings)
    except Misfit as misfit:
        misfit.bindings = bindings
        return misfit


def fit_recording(graph: ChannelGraph, recording: Trace, kept: Flags) -> Fit:
    """:func:`attempt` for a small model that exists already, from a recording of its own forward.

    Raises
    ------
    Misfit
        If it isn't the model that keeps these channels.
    """
    return _match(graph, read_recording(graph, recording, kept), kept)


def _match(graph: ChannelGraph, run: Run, kept: Flags) -> Fit:
    slots, known = Kinds.of(run.structure), Kinds.of(graph.structure)
    if _strangers(slots, known):
        why = "channels take another way than in the dense model"
        raise find_other_way(graph, run.structure, run.nodes, kept, why)
    chosen = known.only(kept)
    if not (np.array_equal(slots.keys, chosen.keys) and np.array_equal(slots.counts, chosen.counts)):
        raise find_other_way(graph, run.structure, run.nodes, kept, "takes other channels than it did")
    channel = np.full(run.structure.count, -1, dtype=np.int64)
    channel[slots.numbers] = chosen.numbers  # of one signature, both in order
    fitted = Fit(graph, run.structure, run.nodes, channel, kept, folds=run.folds, numbers=run.numbers)
    disorder = _disorder(fitted)
    if disorder is not None:
        raise find_misfit(
            graph, run.nodes, kept, disorder, "other channels arrive here than in the dense model", exactly=True
        )
    return fitted


def _disorder(fitted: Fit) -> fx.Node | None:
    """The first dense call whose kept channels aren't those of the small call."""
    small, partner = fitted.small.labels.marks, partners(fitted.nodes)
    for theirs, mark in fitted.graph.structure.labels.marks.items():
        ours = small.get(partner[theirs]) if theirs in partner else None
        known = theirs.op == "call_function" and ours is not None
        if known and fitted.matching.places(mark, ours) is None:  # type: ignore[arg-type]  # known: not None
            return theirs
    return None


@dataclass(frozen=True)
class Kinds:
    """Channels by their signatures.

    Attributes
    ----------
    keys:
        The different signatures, in ascending order: a row of two numbers for each.
    counts:
        How many channels have each.
    numbers:
        All channels: those of the first signature in the order of their first labels, then those of the next.
    """

    keys: Hashes
    counts: Ints
    numbers: Ints

    @classmethod
    def of(cls, structure: Structure) -> Kinds:
        """The channels of a recording."""
        first = np.full(structure.count + 1, np.iinfo(np.int64).max)
        labels = np.arange(len(structure.channel) - 1, 0, -1)
        first[structure.channel[labels]] = labels  # where a channel has several, the first is written last
        one, two = structure.signature.T
        return cls._sorted(structure.signature, np.lexsort((first[:-1], two, one)))

    @classmethod
    def _sorted(cls, signature: Hashes, numbers: Ints) -> Kinds:
        """From channels that are in order, and the signatures of all."""
        rows = signature[numbers]
        starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1))) if len(rows) else numbers
        return cls(rows[starts], np.diff(np.append(starts, len(rows))), numbers)

    def only(self, kept: Flags) -> Kinds:
        """The kept channels alone (`kept`: bool per channel)."""
        stays = kept[self.numbers]
        kind = np.repeat(np.arange(len(self.keys)), self.counts)[stays]
        counts = np.bincount(kind, minlength=len(self.keys))
        return Kinds(self.keys[counts > 0], counts[counts > 0], self.numbers[stays])

    def pairs(self) -> list[tuple[int, int]]:
        """The signatures as pairs of plain numbers."""
        return [(one, two) for one, two in self.keys.tolist()]


def _strangers(slots: Kinds, known: Kinds) -> Strangers:
    """Signatures that more slots have than dense channels do."""
    most = dict(zip(known.pairs(), known.counts.tolist(), strict=True))
    found = zip(slots.pairs(), slots.counts.tolist(), strict=True)
    return frozenset(key for key, count in found if count > most.get(key, 0))


def _key(structure: Structure, group: Group) -> tuple[int, int]:
    return tuple(int(v) for v in structure.signature[group.numbers[0]])  # type: ignore[return-value]  # two columns
