"""Criteria: how useful each channel is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.criteria import table  # noqa: F401  # it fills CRITERIA
from surgeon.criteria.filters import channel_bytes, channel_macs
from surgeon.criteria.gates import GatedModel
from surgeon.criteria.gradients import (
    Floats,
    ForwardLoss,
    Gradients,
    Statistic,
    check_losses,
    default_forward_loss,
    means,
)
from surgeon.criteria.pieces import check_micro_batch
from surgeon.criteria.registry import CRITERIA, Criterion, Request, criterion
from surgeon.errors import ScoreError, SelectionError
from surgeon.exclusive import one_at_a_time
from surgeon.processes import repeatable, same, together
from surgeon.tracing import outside_inference_mode

__all__ = [
    "CRITERIA", "Criterion", "GatedModel", "Gradients", "Request", "Scores", "Statistic", "channel_bytes",
    "channel_macs", "criterion", "find_criterion", "score", "score_all",
]  # fmt: skip


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
        The same after the criterion's normalisation across groups: most divide by the l2 norm of the scores of the
        bundle (for most, of the group), some are compared as they are.
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


@one_at_a_time
def score(
    graph: ChannelGraph,
    criterion: str | Callable[[Request], Floats] = "taylor",
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    forward_loss: ForwardLoss | None = None,
    macs_weight: float = 0.0,
    micro_batch: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
    inputs_of: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Score every channel; higher is more useful.

    Parameters
    ----------
    graph:
        The channels, of a model that is left as it is (:func:`surgeon.channel_graph`).
    criterion:
        A name of the table (``taylor``, ``fisher``, ``magnitude``, ...: docs/criteria.md has all), or a function of a
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
    micro_batch:
        Run at most so many examples of a batch at once, so that their activations alone are in memory. The scores are
        those of whole batches, by every criterion, if the loss of a batch is the sum (or mean) of its examples'. (Only
        ``obs`` draws other places of large feature maps.)
    weights:
        The weights by name, for a model on the meta device, which has none; each is read when it is its turn. For
        criteria that look at weights alone.
    inputs_of:
        What the model takes of a batch, where that isn't the batch itself or the first part of ``(inputs, targets)``:
        for criteria that look at no targets.
    seed:
        For criteria that draw, such as ``random``.
    progress:
        Called as ``progress("score", batches done, batches in all)``.

    Raises
    ------
    SelectionError
        If no criterion has that name.
    ScoreError
        If the criterion needs data and gets none, or the loss is not finite.
    """
    found = score_all(
        graph, [criterion], dataloader, loss_fn,
        forward_loss=forward_loss, macs_weight=macs_weight, micro_batch=micro_batch, weights=weights,
        inputs_of=inputs_of, seed=seed, progress=progress,
    )  # fmt: skip
    (scores,) = found.values()
    return scores


@outside_inference_mode
@together("scoring")
@one_at_a_time
def score_all(
    graph: ChannelGraph,
    criteria: Iterable[str | Callable[[Request], Floats]],
    dataloader: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    forward_loss: ForwardLoss | None = None,
    macs_weight: float = 0.0,
    micro_batch: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
    inputs_of: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Scores]:
    """Score every channel by several criteria, by name, in one pass over the data.

    Parameters
    ----------
    criteria:
        Names and functions, as one of them is given to :func:`score`.
    graph, dataloader, loss_fn, forward_loss, macs_weight, micro_batch, weights, inputs_of, seed, progress:
        See :func:`score`.

    Raises
    ------
    SelectionError
        If no criterion has some name, or two functions have one.
    ScoreError
        If a criterion needs data and gets none, or the loss is not finite.
    """
    chosen = _find_all(criteria)
    check_losses(loss_fn, forward_loss)
    check_micro_batch(micro_batch)
    if dataloader is not None and any(entry.reads_batches for entry in chosen.values()):
        dataloader = repeatable(dataloader)
    request = Request(
        graph, dataloader, forward_loss or default_forward_loss(loss_fn, graph.trace.inputs, inputs_of), seed,
        progress or (lambda *_: None), micro_batch=micro_batch, weights=weights, inputs_of=inputs_of,
    )  # fmt: skip
    statistics = dict.fromkeys(statistic for entry in chosen.values() for statistic in entry.statistics)
    missing = [name for name, entry in chosen.items() if entry.needs_data]
    if dataloader is None and missing:
        raise ScoreError(
            f"criterion {missing[0]!r} needs data: pass dataloader=..., or criterion='magnitude', which needs none"
        )
    if statistics and dataloader is not None:
        found = means(graph, statistics, dataloader, request.forward_loss, request.progress, micro_batch)
        request = replace(request, means=found)
    return {name: _scores(name, entry, request, macs_weight) for name, entry in chosen.items()}


def _find_all(criteria: Iterable[str | Callable[[Request], Floats]]) -> dict[str, Criterion]:
    found: dict[str, Criterion] = {}
    for name, entry in (find_criterion(given) for given in dict.fromkeys(criteria)):
        if name in found:
            raise SelectionError(f"two criteria called {name!r}: give them names of their own")
        found[name] = entry
    return found


def _scores(name: str, entry: Criterion, request: Request, macs_weight: float) -> Scores:
    graph = request.graph
    raw = np.array(entry.score(request), dtype=np.float64)
    raw = same(torch.from_numpy(raw)).numpy()  # processors of another kind round otherwise
    if raw.shape != (graph.structure.count,) or not np.isfinite(raw[graph.removable]).all():
        raise ScoreError(
            f"criterion {name!r} gave no finite number for each of the {graph.structure.count} channels: return an "
            "array of that many floats"
        )
    values = raw.copy()
    for bundle in graph.bundles:
        numbers = np.concatenate([group.numbers for group in bundle.groups])
        values[numbers] = entry.normaliser(raw[numbers])
    if macs_weight:
        values -= macs_weight * channel_macs(graph) / 1e6
    return Scores(name, raw, values, graph)
