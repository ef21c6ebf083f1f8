"""What a criterion is: a function from a :class:`Request` to one number per channel, and what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.criteria.gradients import Floats, ForwardLoss, Progress, Statistic

__all__ = ["CRITERIA", "Criterion", "Request", "as_is", "criterion", "unit_norm"]


@dataclass(frozen=True)
class Request:
    """What a criterion may use.

    Attributes
    ----------
    graph:
        The channel graph.
    batches:
        The user's batches, or None.
    forward_loss:
        The loss of one batch.
    seed:
        For criteria that draw.
    progress:
        Called as ``progress(stage, done, total)``; total is 0 where it isn't known.
    means:
        The statistics that the criterion asked for, each ``(channels,)``, from the one pass over the data.
    micro_batch:
        How many examples may be run at once; None: whole batches.
    weights:
        Stand in for the model's own, where it has none (on the meta device); each is read when it is asked for.
    inputs_of:
        What the model takes of a batch, where that isn't the batch itself or its first part.
    """

    graph: ChannelGraph
    batches: Iterable[Any] | None
    forward_loss: ForwardLoss
    seed: int
    progress: Progress
    means: Mapping[Statistic, Floats] = field(default_factory=dict)
    micro_batch: int | None = None
    weights: Mapping[str, Tensor] | None = None
    inputs_of: Callable[[Any], Any] | None = None


# ---------------------------------------------------------------- normalisation across groups


def unit_norm(scores: Floats) -> Floats:
    """Divided by their l2 norm (Molchanov et al. 2017, section 2.2), for scores whose scale depends on the layer."""
    norm = float(np.linalg.norm(scores))
    # all zero: nothing tells these channels apart, so they rank in the middle
    return scores / norm if norm > 0 else np.full(len(scores), len(scores) ** -0.5)


def as_is(scores: Floats) -> Floats:
    """Unchanged, for scores that are meant to be compared across the whole model."""
    return scores


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Criterion:
    """A named criterion: scores of all channels, higher is more useful.

    Attributes
    ----------
    score:
        Gives one number per channel.
    needs_data:
        Whether it can do without batches.
    reads_batches:
        Whether it goes through :attr:`Request.batches` itself, apart from the pass that all share.
    statistics:
        What it wants summed over the data; criteria that are asked for together share one pass.
    normaliser:
        What makes the scores of different groups comparable: takes those of one bundle (for most, one group).
    """

    score: Callable[[Request], Floats]
    needs_data: bool
    statistics: Sequence[Statistic] = ()
    normaliser: Callable[[Floats], Floats] = unit_norm
    reads_batches: bool = True


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str,
    *statistics: Statistic,
    needs_data: bool = False,
    normaliser: Callable[[Floats], Floats] = unit_norm,
) -> Callable[[Callable[[Request], Floats]], Callable[[Request], Floats]]:
    """Enter a criterion into the table; one that names statistics needs data.

    `needs_data`: it goes through the batches itself.

    Raises
    ------
    ValueError
        If there is one of that name.
    """

    def enter(function: Callable[[Request], Floats]) -> Callable[[Request], Floats]:
        if name in CRITERIA:
            raise ValueError(f"two criteria called {name!r}")
        needed = needs_data or bool(statistics)
        CRITERIA[name] = Criterion(function, needed, statistics, normaliser, reads_batches=needs_data)
        return function

    return enter
