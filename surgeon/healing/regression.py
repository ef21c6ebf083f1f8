"""Ridge regression of one layer: from what the cut layer is given to what the dense one makes of what it was given.

The penalty is on the change: ``W' = W + (Cxx + lambda I)^-1 (Cxy - Cxx W)``, so that without data the sliced weights
``W`` stay. Moments are centred, streamed and float64; where there are fewer rows than inputs, the equivalent ``n x n``
form is solved.

Where anything below a ReLU's zero is as good as the target (after Zhang et al. 2015, arXiv 1505.06798), the squared
distance from what is as good is minimised: a convex function of the weights, majorised at any of them by least squares
towards the nearest values that are as good. All of these problems share one Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from surgeon.healing.outlook import Goal

#: Penalties that are tried, in units of the mean variance of the inputs; the held-out rows choose.
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
_MOST_TRIES = 8
#: Rounds of majorisation, each with Nesterov's step ahead; fewer once it is near.
_ROUNDS, _MORE_ROUNDS = 8, 3


@dataclass(frozen=True)
class Solution:
    """Weights ``(groups, inputs, outputs)`` and intercepts ``(groups, outputs)``; `error` on held-out rows.

    `penalty` and the `rounds` of majorisation that it took, of a regression.
    """

    weight: Tensor
    intercept: Tensor
    error: float
    penalty: float | None = None
    rounds: int = 0


@dataclass
class Regression:
    """One problem per group of a layer.

    Parameters
    ----------
    centred:
        Whether the layer has a place for an intercept; else the regression goes through the origin.
    dual:
        Keep the rows themselves: there will be fewer of them than inputs.
    dtype:
        The layer's own: weights are judged as they will be written.
    share:
        Of the rows that may give anything in an interval so many are kept, to ease on.
    """

    centred: bool
    dual: bool
    dtype: torch.dtype = torch.float64
    share: float = 1.0
    count: int = 0
    _opened: int = 0
    _means: tuple[Tensor, Tensor] | None = None
    _moments: tuple[Tensor, Tensor] | None = None
    _rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _open: list[tuple[Tensor, Goal]] = field(default_factory=list)
    _held: list[tuple[Tensor, Goal]] = field(default_factory=list)

    def add(self, x: Tensor, goal: Goal) -> None:
        """Take in rows ``x`` (groups, rows, inputs) and what they should give (groups, rows, outputs)."""
        if not x.shape[1]:
            return
        if goal.least is not None and not self.dual:
            self._opened += x.shape[1]
            some = _some(x.shape[1], self.share, len(self._open)).to(x.device)
            self._open.append((x[:, some].float(), goal.map(lambda part: part[:, some].float())))
        if self.dual:
            self._rows.append((x.double(), goal.wanted.double()))
        self._merge(x.to(self._working), goal.wanted.to(self._working))

    @property
    def _working(self) -> torch.dtype:
        """What products of centred pieces are worked out in; their sums are float64."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def hold_out(self, x: Tensor, goal: Goal) -> None:
        """Rows that only judge."""
        if x.shape[1]:
            self._held.append((x.float(), goal.map(Tensor.float)))

    def _merge(self, x: Tensor, y: Tensor) -> None:
        """Pairwise merging of means and centred moments (Chan, Golub & LeVeque 1979, section 3)."""
        count, total = x.shape[1], self.count + x.shape[1]
        middles = (x.mean(1), y.mean(1)) if self.centred else (x.new_zeros(x.shape[::2]), y.new_zeros(y.shape[::2]))
        means = middles[0].double(), middles[1].double()
        known = self._means or means
        shift = means[0] - known[0], means[1] - known[1]
        if not self.dual:  # which keeps the rows themselves
            left, right = x - middles[0][:, None], y - middles[1][:, None]
            across = [torch.einsum("gi,gj->gij", shift[0], part) * (self.count * count / total) for part in shift]
            inner, outer = (left.mT @ left).double() + across[0], (left.mT @ right).double() + across[1]
            self._moments = (
                (inner, outer) if self._moments is None else (inner + self._moments[0], outer + self._moments[1])
            )
        self._means = known[0] + shift[0] * (count / total), known[1] + shift[1] * (count / total)
        self.count = total

    def shifted(self, weight: Tensor) -> Solution:
        """The same weights with the intercept that fits them best."""
        assert self._means is not None
        weight = weight.to(self.dtype).double()
        intercept = self._means[1] - torch.einsum("gi,gio->go", self._means[0], weight)
        return self.judged(weight, intercept)

    def solved(self, weight: Tensor) -> Iterator[Solution]:
        """A solution for each penalty, starting from the sliced weights."""
        weight = weight.double()
        yield from (found for found in (self._at(weight, penalty) for penalty in PENALTIES) if found is not None)

    def on_all_rows(self, weight: Tensor, chosen: Solution) -> Solution:
        """The chosen solution; if it has a penalty, with it once more, on the rows that judged as well."""
        if chosen.penalty is None:
            return chosen
        for x, goal in self._held:
            self.add(x, goal)
        found = self._at(weight.double(), chosen.penalty)
        if found is not None and chosen.rounds:
            found = self.eased(found, chosen)
        return chosen if found is None or found.error > chosen.error else found

    def eased(self, linear: Solution, near: Solution | None = None) -> Solution | None:
        """From a regression's solution to where its rows have what they should, or what is as good.

        `near`: a solution that isn't far from there.
        """
        if not self._open or self._means is None or linear.penalty is None:
            return None
        x, middle, goal, part, factor = self._ease(linear.penalty)
        if factor is None:
            return None
        base = linear.weight.double(), linear.intercept.double()
        now = last = base if near is None else (near.weight.double(), near.intercept.double())
        rounds = _ROUNDS if near is None else _MORE_ROUNDS
        for turn in range(rounds):
            weight, intercept = (a + (a - b) * (turn / (turn + 3)) for a, b in zip(now, last, strict=True))
            given = x @ weight.float() + (intercept[:, None] + middle.double() @ weight).float()
            off = (goal.nearest(given) - goal.wanted) * part
            mean = off.mean(1) * self.centred
            across = x.mT @ (off - mean[:, None] if self.share < 1 else off)
            change = torch.cholesky_solve(across.double() / x.shape[1], factor)
            shift = mean.double() - torch.einsum("gi,gio->go", self._means[0], change)
            last, now = now, (base[0] + change, base[1] + shift * self.centred)
        return replace(self.judged(*now), penalty=linear.penalty, rounds=rounds)

    def _ease(self, penalty: float) -> tuple[Tensor, Tensor, Goal, float, Tensor | None]:
        """The rows that may give anything in an interval, centred, and where; their part of all; the factor for them.

        What is majorised must not vary more than what majorises it: of a sample, its own moments count.
        """
        assert self._means is not None
        assert self._moments is not None
        x = torch.cat([rows for rows, _ in self._open], 1)
        goal = Goal.joined([goal for _, goal in self._open])
        middle, part = self._means[0].to(x)[:, None], self._opened / self.count
        if self.share < 1:
            middle = x.mean(1, keepdim=True) * self.centred
        x -= middle
        inner = self._moments[0] / self.count
        if self.share < 1:
            inner = inner * (1 - part) + (x.mT @ x).double() * (part / x.shape[1])
        return x, middle, goal, part, ridge_factor(inner, penalty)

    def _at(self, weight: Tensor, penalty: float) -> Solution | None:
        change = self._dual_change(weight, penalty) if self.dual else self._primal_change(weight, penalty)
        return None if change is None else replace(self.shifted(weight + change), penalty=penalty)

    def _primal_change(self, weight: Tensor, penalty: float) -> Tensor | None:
        assert self._moments is not None
        inner, outer = self._moments[0] / self.count, self._moments[1] / self.count
        factor = ridge_factor(inner, penalty)
        return None if factor is None else torch.cholesky_solve(outer - inner @ weight, factor)

    def _dual_change(self, weight: Tensor, penalty: float) -> Tensor | None:
        assert self._means is not None
        x = torch.cat([rows for rows, _ in self._rows], 1) - self._means[0][:, None]
        y = torch.cat([rows for _, rows in self._rows], 1) - self._means[1][:, None]
        gram = x @ x.mT / self.count
        factor = ridge_factor(gram, penalty, x.square().mean((1, 2)))
        return None if factor is None else x.mT @ torch.cholesky_solve((y - x @ weight) / self.count, factor)

    def judged(self, weight: Tensor, intercept: Tensor) -> Solution:
        """How far these are off: mean squared distance from what is as good, on the held-out rows."""
        weight, intercept = weight.to(self.dtype), intercept.to(self.dtype)
        total, count = 0.0, 0
        for x, goal in self._held:
            given = x @ weight.to(x.dtype) + intercept[:, None].to(x.dtype)
            wrong = goal.nearest(given) - given
            total, count = total + float(wrong.double().square().sum()), count + given.numel()
        return Solution(weight, intercept, total / max(count, 1))


def _some(count: int, share: float, seed: int) -> Tensor:
    """Numbers below `count`: all, or a share of them drawn at random."""
    if share >= 1:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: max(round(count * share), 1)]


def ridge_factor(matrix: Tensor, penalty: float, scale: Tensor | None = None) -> Tensor | None:
    """The Cholesky factor of ``matrix + lambda I``; ten times lambda where it isn't positive definite."""
    scale = matrix.diagonal(dim1=1, dim2=2).mean(1) if scale is None else scale
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    ridge = (penalty * scale).clamp_min(torch.finfo(matrix.dtype).tiny ** 0.5)[:, None, None]
    for _ in range(_MOST_TRIES):
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(matrix + ridge * eye)
        if not bool(info.any()):
            return factor
        ridge = ridge * 10
    return None
