"""Training for sparsity before a cut: penalties that drive the least useful channels of the channel graph to zero.

A penalty is a callable ``penalty(model) -> scalar tensor`` that :func:`surgeon.tune` adds to the loss. One with
``state_dict``/``load_state_dict`` (tensors by name) is saved with the run; one with ``after_epoch(model)`` is called
after every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from surgeon.channels import ChannelGraph
from surgeon.errors import TuningError

__all__ = ["GroupPenalty", "Penalty", "ScalePenalty", "Stateful"]

#: What :func:`surgeon.tune` adds to the loss.
Penalty = Callable[[nn.Module], Tensor]


class Stateful(Protocol):
    """A penalty that remembers something from step to step."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Tensors by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        ...


@dataclass(frozen=True)
class _Place:
    """One axis of one parameter, and the penalised channel at each of its positions (one beyond the last: none)."""

    tensor: str
    axis: int
    channels: Tensor


class GroupPenalty:
    """Growing l2 penalty on whole channels: all slices that live and die together shrink together.

    ``R = 1/2 sum_c lambda_c I_c^2`` with ``I_c^2`` the sum of the squared weights in all slices of channel c, in every
    tensor of its group. Every lambda starts at `strength`; after each epoch it grows by
    ``growth * (I_max - I_c) / (I_max - I_min)`` within the group, so the least useful channel's grows most and the
    most useful one's not at all (growing regularisation: Wang et al. 2021, arXiv 2012.09243, section 3.2; group norms
    over coupled slices: Fang et al. 2023, arXiv 2301.12900, section 3.3).

    Parameters
    ----------
    graph:
        The channel graph of the model that is trained; pinned channels are left alone.
    strength:
        Every channel's first lambda, 0 or more.
    growth:
        What the least useful channel's lambda gains per epoch, 0 or more. Enough is a sum of some 0.1 to 0.4 over the
        run, and the learning rate should fall (``schedule="cosine"``): a strong penalty at a high rate undoes training.
    share:
        If given, above 0 and below 1: in each group this share of the channels, those of least I, gains `growth`, and
        the others nothing (as in Wang et al., who choose the channels to go by their norm).

    Raises
    ------
    TuningError
        If a number is out of its range, or nothing in the graph may be removed.
    """

    def __init__(
        self, graph: ChannelGraph, strength: float = 1e-4, growth: float = 1e-2, share: float | None = None
    ) -> None:
        _check(graph, strength=strength, growth=growth)
        if share is not None and not 0 < share < 1:
            raise TuningError(f"share={share!r}: expected the share of channels that the penalty grows for, 0 to 1")
        self.growth, self.share = growth, share
        self._places = list(_places(graph))
        numbers = {int(n): i for i, n in enumerate(graph.removable)}
        self._groups = [torch.tensor([numbers[int(n)] for n in g.numbers]) for g in graph.groups]
        self.strengths = torch.full((len(numbers),), strength, dtype=torch.float32)

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty, a scalar on the model's device."""
        squares = self._squares(model)
        return (self.strengths.to(squares.device) * squares).sum() / 2

    def _squares(self, model: nn.Module) -> Tensor:
        """Sum of the squared weights of each channel."""
        parameters = dict(model.named_parameters())
        device = parameters[self._places[0].tensor].device
        total = torch.zeros(len(self.strengths) + 1, device=device)  # the last entry takes what isn't penalised
        for place in self._places:
            squares = _along(parameters[place.tensor].float().square(), place.axis, len(place.channels))
            total = total.index_add(0, place.channels.to(device), squares)
        return total[:-1]

    @torch.no_grad()
    def after_epoch(self, model: nn.Module) -> None:
        """Let the penalty of the least useful channels grow."""
        norms = self._squares(model).sqrt().to(self.strengths.device)
        for numbers in self._groups:
            own = norms[numbers]
            spread = own.max() - own.min()
            if self.share is not None:
                self.strengths[numbers[own.argsort()[: int(len(own) * self.share)]]] += self.growth
            elif spread > 0:
                self.strengths[numbers] += self.growth * (own.max() - own) / spread

    def state_dict(self) -> dict[str, Tensor]:
        """The lambdas."""
        return {"strengths": self.strengths}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the lambdas back."""
        self.strengths.copy_(state["strengths"])


class ScalePenalty:
    """l1 on the scales of batch and instance norms: ``R = strength * sum |gamma|`` over channels that may go.

    Network Slimming (Liu et al. 2017, arXiv 1708.06519, equation 1). A scale that reaches 0 silences its channel but
    for the shift behind it.

    Parameters
    ----------
    graph:
        The channel graph of the model that is trained.
    strength:
        The paper's lambda, 0 or more (there 1e-4 to 1e-5).

    Raises
    ------
    TuningError
        If `strength` is negative, or no norm with a scale stands on a channel that may go.
    """

    def __init__(self, graph: ChannelGraph, strength: float = 1e-4) -> None:
        _check(graph, strength=strength)
        self.strength = strength
        norms = {name for name, m in graph.trace.model.named_modules() if isinstance(m, _NormBase) and m.affine}
        scales = {f"{name}.weight" if name else "weight" for name in norms}
        self._places = [place for place in _places(graph) if place.tensor in scales]
        self._free = len(graph.removable)
        if not self._places:
            raise TuningError(
                "no batch or instance norm with a scale stands on a channel that may go; use GroupPenalty"
            )

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty, a scalar on the model's device."""
        parameters = dict(model.named_parameters())
        terms = [
            (parameters[p.tensor].abs() * (p.channels < self._free).to(parameters[p.tensor])).sum()
            for p in self._places
        ]
        return self.strength * torch.stack(terms).sum()


def _check(graph: ChannelGraph, **amounts: float) -> None:
    for name, amount in amounts.items():
        if not 0 <= amount < float("inf"):
            raise TuningError(f"{name}={amount!r}: expected a number, 0 or more")
    if not len(graph.removable):
        raise TuningError("no channel of this model may go, so there is none to penalise; see graph.pinned for why")


def _places(graph: ChannelGraph) -> Iterator[_Place]:
    """Every labelled axis of every parameter that holds a channel which may go."""
    structure, space = graph.structure, graph.structure.labels.space
    parameters = {name for name, _ in graph.trace.model.named_parameters()}
    numbers = torch.full((structure.count,), len(graph.removable))
    numbers[torch.from_numpy(graph.removable)] = torch.arange(len(graph.removable))
    for name, axis in space.places:
        if name not in parameters or name not in space.planes:
            continue
        channels = numbers[torch.from_numpy(structure.along(name, axis))]
        if bool((channels < len(graph.removable)).any()):
            yield _Place(name, axis, channels)


def _along(squares: Tensor, axis: int, size: int) -> Tensor:
    """Sums over all other axes; the second axis of a grouped convolution counts anew in each of its groups."""
    if squares.shape[axis] == size:
        others = [a for a in range(squares.ndim) if a != axis]
        return squares.sum(others) if others else squares
    groups = size // squares.shape[axis]
    return squares.reshape(groups, squares.shape[0] // groups, squares.shape[1], -1).sum((1, 3)).flatten()
