"""Criteria: how useful each channel is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.criteria.gates import GatedModel
from surgeon.criteria.table import CRITERIA, Criterion, Floats, ForwardLoss, Request, criterion, default_forward_loss
from surgeon.errors import ScoreError, SelectionError
from surgeon.tracing import outside_inference_mode

__all__ = ["CRITERIA", "Criterion", "GatedModel", "Request", "Scores", "criterion", "find_criterion", "score"]


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Floats]):
    """Scores of the channels of every group: ``scores[group.name]``, float64, in the order of ``group.channels``.

    Attributes
    ----------
    criterion:
        The criterion's name.
    raw:
        One number per channel of the graph, as the criterion gave it.
    normalised:
        The same after normalisation: divided by the l2 norm of the scores of the bundle (for most, of the group).
    graph:
        What was scored.
    """

    criterion: str
    raw: Floats
    normalised: Floats
    graph: ChannelGraph

    def __getitem__(self, name: str) -> Floats:
        for group in self.graph.groups:
            if group.name == name:
                return self.normalised[group.numbers]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (group.name for group in self.graph.groups)

    def __len__(self) -> int:
        return len(self.graph.groups)


def find_criterion(name: str | Callable[[Request], Floats]) -> tuple[str, Criterion]:
    """The criterion called `name`; a callable is one by itself.

    Raises
    ------
    SelectionError
        If there is none of that name.
    """
    if callable(name):
        return getattr(name, "__name__", "custom"), Criterion(name, needs_data=False)
    if name not in CRITERIA:
        close = difflib.get_close_matches(name, CRITERIA, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise SelectionError(f"no criterion called {name!r}; {hint}there are: {', '.join(sorted(CRITERIA))}")
    return name, CRITERIA[name]


def needs_data_message(name: str) -> str:
    """What to say when `name` is asked for without data."""
    return f"criterion {name!r} needs data: pass dataloader=..., or criterion='magnitude', which needs none"


@outside_inference_mode
def score(
    graph: ChannelGraph,
    criterion: str | Callable[[Request], Floats] = "taylor",
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    forward_loss: ForwardLoss | None = None,
    macs_weight: float = 0.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Score every channel; higher is more useful.

    Parameters
    ----------
    criterion:
        A name of the table (``taylor``, ``magnitude``, ``magnitude-l1``, ``random``), or a function of a
        :class:`Request` that gives one float per channel.
    dataloader:
        Batches ``(inputs, targets)``; one pass is made.
    loss_fn:
        ``loss_fn(outputs, targets)``: per-example losses ``(N,)`` or their mean. Default: cross entropy.
    forward_loss:
        ``forward_loss(model, batch)`` in place of both, for dict batches and detectors.
    macs_weight:
        Subtract this times the channel's MACs in millions (Molchanov et al. 2017, section 2.3: their
        regularisation with the FLOPs of the layer); off by default.

    Raises
    ------
    SelectionError
        If no criterion has that name.
    ScoreError
        If the criterion needs data and gets none, or the loss is not finite.
    """
    name, chosen = find_criterion(criterion)
    if chosen.needs_data and dataloader is None:
        raise ScoreError(
            f"criterion {name!r} needs data: pass dataloader=..., or criterion='magnitude', which needs none"
        )
    request = Request(
        graph, dataloader, forward_loss or default_forward_loss(loss_fn), seed, progress or (lambda *_: None)
    )
    raw = np.asarray(chosen.score(request), dtype=np.float64)
    if raw.shape != (graph.structure.count,) or not np.isfinite(raw[graph.removable]).all():
        raise ScoreError(f"criterion {name!r} gave no finite number for each of the {graph.structure.count} channels")
    return Scores(name, raw, _normalised(graph, raw, macs_weight), graph)


def _normalised(graph: ChannelGraph, raw: Floats, macs_weight: float) -> Floats:
    values: Floats = raw.copy()
    for bundle in graph.bundles:
        numbers = np.concatenate([group.numbers for group in bundle.groups])
        norm = float(np.linalg.norm(raw[numbers]))
        # all zero: the data says nothing of these (auxiliary heads that eval mode skips), so they rank in the middle
        values[numbers] = raw[numbers] / norm if norm > 0 else len(numbers) ** -0.5
    if macs_weight:
        values -= macs_weight * channel_macs(graph) / 1e6
    return values


def channel_macs(graph: ChannelGraph) -> Floats:
    """MACs (one multiply-add is 1) that disappear with each channel alone."""
    structure = graph.structure
    total: Floats = np.zeros(structure.count + 1)  # the last entry takes the places without a channel
    for work in graph.structure.labels.ledger.work:
        for factor in work.factors:
            channels = structure.of(factor)
            np.add.at(total, channels, work.macs / len(channels))
    return np.delete(total, -1)
