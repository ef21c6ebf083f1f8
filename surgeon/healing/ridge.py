"""Ridge problems: one Cholesky factor for many targets, and weights that may not change freely."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Ridge", "Tie", "places_of"]

_MOST_TRIES = 8
#: Conjugate gradients: steps at most, and the residual, as a share of the first, at which they end.
_STEPS, _NEAR = 100, 1e-8
#: How often weights go over to other values, each time with the values fitted again behind it.
_TURNS = 3
#: How far apart, as a share of the largest, numbers of one value may have become.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Tie:
    """How the numbers of a weight may change: those where `index` is 0 not at all.

    Attributes
    ----------
    index:
        Whole numbers of the weight's shape.
    together:
        Whether those with the same index change by the same; else each by itself.
    values:
        The weight's own numbers, where those that change together may also go over to another index's number.
    """

    index: Tensor
    together: bool = False
    values: Tensor | None = None

    def at(self, places: Tensor) -> Tie:
        """Of these elements of the weight alone, by their flat numbers: what has others elsewhere stays as it is."""
        index = self.index.reshape(-1)[places.to(self.index.device)]
        whole = places.numel() == self.index.numel() or not self.together
        if not whole:
            return Tie(torch.zeros_like(index), self.together)
        values = None if self.values is None else self.values.reshape(-1)[places.to(self.values.device)]
        return Tie(index, self.together, values)

    @property
    def ways(self) -> tuple[Tie, ...]:
        """Staying at its index and going over are both worth a try: the latter's least is one of many."""
        return (self,) if self.values is None else (replace(self, values=None), self)

    def held(self, weight: Tensor) -> Tie:
        """Each at the value that it has in `weight`, having gone over or not."""
        if self.values is None:
            return self
        return Tie(places_of(weight.reshape(self.index.shape), self.index), self.together)

    def nearest(self, change: Tensor) -> Tensor:
        """The change that is allowed and nearest to one, ``(groups, inputs, outputs)``."""
        if not self.together:
            return torch.where(self.index != 0, change, 0.0)
        means = self.means(change)
        means[0] = 0.0
        return means[self.index.reshape(-1).long()].view_as(change)

    def means(self, numbers: Tensor) -> Tensor:
        """The mean over each index."""
        places = self.index.reshape(-1).long()
        counts = places.bincount().clamp_min(1)
        sums = torch.zeros(len(counts), dtype=numbers.dtype, device=numbers.device)
        return sums.index_add_(0, places, numbers.reshape(-1)) / counts

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Products of changes, one for each problem that can be solved by itself."""
        found = (left * right).sum(1, keepdim=True)
        return found.sum((0, 2), keepdim=True) if self.together else found


@dataclass(frozen=True)
class Ridge:
    """``matrix`` (groups, inputs, inputs) with its penalty on the diagonal, positive definite, and its factor."""

    matrix: Tensor
    factor: Tensor
    tie: Tie | None = None

    @classmethod
    def of(cls, matrix: Tensor, penalty: float, scale: Tensor | None = None, tie: Tie | None = None) -> Ridge | None:
        """With ``penalty * scale`` on the diagonal; ten times that where it isn't positive definite.

        `scale`: for each group; default: the mean of the diagonal.
        """
        scale = matrix.diagonal(dim1=1, dim2=2).mean(1) if scale is None else scale
        eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        ridge = (penalty * scale).clamp_min(torch.finfo(matrix.dtype).tiny ** 0.5)[:, None, None]
        for _ in range(_MOST_TRIES):
            whole = matrix + ridge * eye
            factor, info = torch.linalg.cholesky_ex(whole)
            if not bool(info.any()):
                return cls(whole, factor, tie)
            ridge = ridge * 10
        return None

    def solve(self, wanted: Tensor) -> Tensor:
        """The change of the weights ``(groups, inputs, outputs)`` with these products; the nearest that is allowed."""
        if self.tie is None:
            return torch.cholesky_solve(wanted, self.factor)
        change, tie = self._within(self.tie, wanted), self.tie
        for _ in range(_TURNS if tie.values is not None else 0):
            change, tie = self._gone_over(tie, change, wanted)
            change = change + self._within(tie, wanted - self.matrix @ change)
        return change

    def _gone_over(self, tie: Tie, change: Tensor, wanted: Tensor) -> tuple[Tensor, Tie]:
        """Each weight at that of the values that is best for its output while the others stay, input by input.

        Coordinate descent on what the ridge minimises, as layer-wise quantisation does (Frantar et al. 2022, arXiv
        2208.11580, section 3), with values that are the layer's own. A weight at index 0 stays there.
        """
        assert tie.values is not None
        base, index = tie.values.to(change).view_as(change), tie.index.long().view_as(change).clone()
        numbers = tie.means(base + change)
        numbers[tie.index.reshape(-1).long().bincount() == 0] = torch.inf  # nobody has it
        numbers[0] = torch.inf
        change = torch.where(index > 0, numbers[index] - base, change)
        slope, scale = self.matrix @ change - wanted, self.matrix.diagonal(dim1=1, dim2=2)
        for row in range(change.shape[1]):
            best = base[:, row] + change[:, row] - slope[:, row] / scale[:, row, None]
            place = (best[..., None] - numbers).abs().argmin(-1)
            place = torch.where(index[:, row] > 0, place, 0)
            step = torch.where(place > 0, numbers[place] - base[:, row] - change[:, row], 0.0)
            slope += self.matrix[:, :, row, None] * step[:, None]
            change[:, row] += step
            index[:, row] = place
        return change, replace(tie, index=index.view_as(tie.index))

    def _within(self, tie: Tie, wanted: Tensor) -> Tensor:
        """Conjugate gradients among the changes that are allowed (Shewchuk 1994, appendix B3)."""
        scale = self.matrix.diagonal(dim1=1, dim2=2)[..., None]
        change, left = torch.zeros_like(wanted), tie.nearest(wanted)
        step = eased = tie.nearest(left / scale)
        size = first = tie.dot(left, eased)
        for _ in range(_STEPS):
            if bool((size <= _NEAR**2 * first).all()):
                break
            along = tie.nearest(self.matrix @ step)
            part = _ratio(size, tie.dot(step, along))
            change, left = change + part * step, left - part * along
            eased = tie.nearest(left / scale)
            known, size = size, tie.dot(left, eased)
            step = eased + _ratio(size, known) * step
        return change


def places_of(numbers: Tensor, index: Tensor) -> Tensor:
    """Which of few values each number is, counted from 1; where `index` is 0, 0.

    Numbers of one value differ by rounding, those of two values by more.
    """
    levels, places = torch.unique(numbers[index != 0].double(), return_inverse=True)
    steps = levels.diff(prepend=levels[:1]) > _ROUNDING * levels.abs().max() if levels.numel() else levels
    known = torch.zeros_like(index)
    known[index != 0] = (1 + steps.cumsum(0))[places].to(index.dtype)
    return known


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, 1.0), 0.0)
