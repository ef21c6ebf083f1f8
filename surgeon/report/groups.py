"""The groups of a cut as rows: who makes, passes on and reads their channels, how many stay, and how they scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surgeon.channels import ChannelGraph, Group
from surgeon.channels.structure import Flags
from surgeon.criteria import Scores
from surgeon.criteria.gradients import Floats

__all__ = ["GroupRow", "ScoreHistogram", "flow_of", "group_rows"]

_BINS = 24


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of one group's channels: how many of those that stay and of those that go lie in each of equal bins.

    Attributes
    ----------
    low, high:
        Where the first bin begins and the last one ends.
    kept, removed:
        Channels in each bin.
    cut:
        The line between the two: half-way from the best channel that goes to the worst that stays. None if nothing
        goes, or if they overlap, as they may where widths are rounded or channels go in blocks.
    """

    low: float
    high: float
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    cut: float | None


@dataclass(frozen=True)
class GroupRow:
    """One group that could be cut.

    Attributes
    ----------
    name, size, kept:
        The group, its channels, and how many of them stay.
    producers, followers, consumers:
        Layers that make the channels, that pass them on (norms), that read them.
    scores:
        None where the channels were ranked anew in several steps, or the scores are not known any more.
    """

    name: str
    size: int
    kept: int
    producers: tuple[str, ...]
    followers: tuple[str, ...]
    consumers: tuple[str, ...]
    scores: ScoreHistogram | None = None


def group_rows(graph: ChannelGraph, kept: Flags, scores: Scores | None) -> tuple[GroupRow, ...]:
    """One row for each group of the dense model whose channels may go."""
    same = scores is not None and len(scores.normalised) == len(kept)
    return tuple(
        _row(group, kept, scores.normalised if same and scores is not None else None) for group in graph.groups
    )


def _row(group: Group, kept: Flags, scores: Floats | None) -> GroupRow:
    stays = kept[group.numbers]
    others = {*group.producers, *group.consumers}
    followers = dict.fromkeys(m.layer for m in group.members if m.role == "follows" and m.layer not in others)
    found = None if scores is None else histogram(scores[group.numbers], stays)
    return GroupRow(
        group.name, group.size, int(stays.sum()), group.producers, tuple(followers), group.consumers, found
    )  # fmt: skip


def histogram(scores: Floats, stays: Flags) -> ScoreHistogram | None:
    """The scores of a group's channels, in bins; None where they are not finite."""
    if not np.isfinite(scores).all():
        return None
    low, high = float(scores.min()), float(scores.max())
    # the last bin holds its upper edge; np.histogram does the same at ten times the cost, and there are many groups.
    # Divided first: the number of bins over the smallest range there is would be infinite.
    bins = ((scores - low) / ((high - low) or 1.0) * _BINS).astype(np.int64).clip(0, _BINS - 1)
    kept, removed = (np.bincount(bins[part], minlength=_BINS) for part in (stays, ~stays))
    best_gone, worst_kept = scores[~stays].max(initial=-np.inf), scores[stays].min(initial=np.inf)
    cut = (
        (best_gone + worst_kept) / 2 if np.isfinite([best_gone, worst_kept]).all() and best_gone <= worst_kept else None
    )
    return ScoreHistogram(low, high, tuple(kept.tolist()), tuple(removed.tolist()), None if cut is None else float(cut))


def flow_of(graph: ChannelGraph) -> tuple[str, ...]:
    """The layers with tensors, in the order in which the forward first calls them."""
    owners = {member.layer for group in graph.named.values() for member in group.members}
    called = [node.meta["site"].path for node in graph.trace.calls]
    return tuple(dict.fromkeys([*(path for path in called if path in owners), *sorted(owners)]))
