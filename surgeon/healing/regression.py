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
from surgeon.healing.ridge import Ridge, Tie
from surgeon.processes import rows_of_all, total
from surgeon.products import Moments

#: Penalties that are tried, in units of the mean variance of the inputs; the held-out rows choose.
PENALTIES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
#: Rounds of majorisation, each with Nesterov's step ahead; fewer once it is near.
_ROUNDS, _MORE_ROUNDS = 8, 3
#: Means of pixels and the like often lie just between two float32 numbers, where the last bit of a sum, and so the
#: order in which it was taken, would say which it is. A hair further it can't.
_OFF_THE_GRID = 1 + 1e-9


@dataclass(frozen=True)
class Solution:
    """Weights ``(groups, inputs, outputs)`` and intercepts ``(groups, outputs)``; `error` on held-out rows.

    Of a regression `penalty`, what held its changes (`tie`), and the `rounds` of majorisation that it took.
    """

    weight: Tensor
    intercept: Tensor
    error: float
    penalty: float | None = None
    rounds: int = 0
    tie: Tie | None = None


@dataclass
class Regression:
    """One problem per group of a layer; of several processes each has some of its rows, and all solve it alike.

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
    tie:
        How the weights may change, where that isn't freely; not for a dual one.
    """

    centred: bool
    dual: bool
    dtype: torch.dtype = torch.float64
    share: float = 1.0
    tie: Tie | None = None
    _opened: int = 0
    _rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _open: list[tuple[Tensor, Goal]] = field(default_factory=list)
    _open_of: list[int] = field(default_factory=list)
    _held: list[tuple[Tensor, Goal]] = field(default_factory=list)
    _held_of: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._own = Moments(self.centred, with_products=not self.dual)  # a dual one keeps the rows themselves
        self._all: Moments | None = None

    def add(self, x: Tensor, goal: Goal, seed: int | None = None, batch: int = 0) -> None:
        """Take in rows ``x`` (groups, rows, inputs) and what they should give (groups, rows, outputs).

        `seed`: of which of them are kept to ease on; default: how many there were before. `batch`: what they are a
        piece of; its rows are worked with as one, in whatever pieces they come and whichever process has them.
        """
        if not x.shape[1]:
            return
        if goal.least is not None and not self.dual:
            self._opened += x.shape[1]
            some = _some(x.shape[1], self.share, len(self._open) if seed is None else seed).to(x.device)
            self._open_of.append(batch)
            self._open.append((x[:, some].float(), goal.map(lambda part: part[:, some].float())))
        if self.dual:
            self._rows.append((x.double(), goal.wanted.double()))
        self._own.add(x.to(self._working), goal.wanted.to(self._working))
        self._all = None

    @property
    def moments(self) -> Moments:
        """Of the rows of all processes."""
        if self._all is None:
            self._all = self._own.over_processes()
        return self._all

    @property
    def count(self) -> int:
        """How many rows all processes have."""
        return self.moments.count

    @property
    def _working(self) -> torch.dtype:
        """What products of centred pieces are worked out in; their sums are float64."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def hold_out(self, x: Tensor, goal: Goal, batch: int = 0) -> None:
        """Keep these rows to judge by; the fit doesn't see them."""
        if x.shape[1]:
            self._held_of.append(batch)
            self._held.append((x.float(), goal.map(Tensor.float)))

    @property
    def _means(self) -> tuple[Tensor, Tensor]:
        means = self.moments.means
        assert means is not None
        return means

    def shifted(self, weight: Tensor) -> Solution:
        """The same weights with the intercept that fits them best."""
        means = self._means
        weight = weight.to(self.dtype).double()
        intercept = means[1] - torch.einsum("gi,gio->go", means[0], weight)
        return self.judged(weight, intercept)

    @property
    def ways(self) -> tuple[Tie | None, ...]:
        """What changes may be held by."""
        return (None,) if self.tie is None else self.tie.ways

    def solved(self, weight: Tensor, tie: Tie | None = None) -> Iterator[Solution]:
        """A solution for each penalty, starting from the sliced weights."""
        weight = weight.double()
        yield from (found for found in (self._at(weight, penalty, tie) for penalty in PENALTIES) if found is not None)

    def on_all_rows(self, weight: Tensor, chosen: Solution) -> Solution:
        """The chosen solution; if it has a penalty, with it once more, on the rows that judged as well."""
        if chosen.penalty is None:
            return chosen
        for (x, goal), batch in zip(self._held, self._held_of, strict=True):
            self.add(x, goal, batch=batch)
        self._all = None  # also where this process had none of them
        found = self._at(weight.double(), chosen.penalty, chosen.tie)
        if found is not None and chosen.rounds:
            found = self.eased(found, chosen)
        return chosen if found is None or found.error > chosen.error else found

    def eased(self, linear: Solution, near: Solution | None = None) -> Solution | None:
        """From a regression's solution to where its rows have what they should, or what is as good.

        `near`: a solution that isn't far from there.
        """
        if linear.penalty is None:
            return None
        easing = self._easing(linear.penalty, None if linear.tie is None else linear.tie.held(linear.weight))
        if easing is None:
            return None
        base = linear.weight.double(), linear.intercept.double()
        now = last = base if near is None else (near.weight.double(), near.intercept.double())
        rounds = _ROUNDS if near is None else _MORE_ROUNDS
        for turn in range(rounds):
            weight, intercept = (a + (a - b) * (turn / (turn + 3)) for a, b in zip(now, last, strict=True))
            mean, across = easing.off(weight, intercept)
            change = easing.ridge.solve(across)
            shift = mean - torch.einsum("gi,gio->go", self._means[0], change)
            last, now = now, (base[0] + change, base[1] + shift * self.centred)
        return replace(self.judged(*now), penalty=linear.penalty, rounds=rounds, tie=linear.tie)

    def _easing(self, penalty: float, tie: Tie | None) -> _Easing | None:
        """The rows that may give anything in an interval, centred; None where there are none.

        What is majorised must not vary more than what majorises it: of a sample, its own moments count.
        """
        kept, opened = (int(n) for n in total(torch.tensor([sum(x.shape[1] for x, _ in self._open), self._opened]))[0])
        moments = self.moments
        if not kept or moments.products is None:
            return None
        middle, part, sampled = self._means[0], opened / moments.count, self.share < 1
        if sampled:
            sums = sum((x.double().sum(1) for x, _ in self._open), start=torch.zeros_like(middle))
            middle = total(sums)[0] / kept * self.centred
        middle = (middle[:, None] * _OFF_THE_GRID).float()
        rows = [(x.sub_(middle), goal) for x, goal in self._open_by_batch()]
        inner = moments.products[0] / moments.count
        if sampled:
            own = sum(((x.mT @ x).double() for x, _ in rows), start=torch.zeros_like(inner))
            inner = inner * (1 - part) + total(own)[0] * (part / kept)
        ridge = Ridge.of(inner, penalty, tie=tie)
        return None if ridge is None else _Easing(rows, middle, part, ridge, kept, self.centred)

    def _open_by_batch(self) -> Iterator[tuple[Tensor, Goal]]:
        """Copies of the rows that may give anything in an interval, those of each batch together."""
        for batch in dict.fromkeys(self._open_of):
            pieces = [piece for piece, of in zip(self._open, self._open_of, strict=True) if of == batch]
            yield torch.cat([x for x, _ in pieces], 1), Goal.joined([goal for _, goal in pieces])

    def _at(self, weight: Tensor, penalty: float, tie: Tie | None) -> Solution | None:
        change = self._dual_change(weight, penalty) if self.dual else self._primal_change(weight, penalty, tie)
        return None if change is None else replace(self.shifted(weight + change), penalty=penalty, tie=tie)

    def _primal_change(self, weight: Tensor, penalty: float, tie: Tie | None) -> Tensor | None:
        assert self.moments.products is not None
        inner, outer = (products / self.count for products in self.moments.products)
        ridge = Ridge.of(inner, penalty, tie=tie)
        return None if ridge is None else ridge.solve(outer - inner @ weight)

    def _dual_change(self, weight: Tensor, penalty: float) -> Tensor | None:
        x, y = self._all_rows()
        gram = x @ x.mT / self.count
        ridge = Ridge.of(gram, penalty, x.square().mean((1, 2)))
        return None if ridge is None else x.mT @ ridge.solve((y - x @ weight) / self.count)

    def _all_rows(self) -> list[Tensor]:
        """Inputs and targets of all processes, centred."""
        found = []
        for index, mean in enumerate(self._means):
            none = mean.new_zeros(mean.shape[0], 0, mean.shape[1])
            own = torch.cat([none, *(rows[index] for rows in self._rows)], 1)
            found.append(rows_of_all(own) - mean[:, None])
        return found

    def judged(self, weight: Tensor, intercept: Tensor) -> Solution:
        """How far these are off: mean squared distance from what is as good, on the held-out rows."""
        weight, intercept = weight.to(self.dtype), intercept.to(self.dtype)
        error, count = 0.0, 0
        for x, goal in self._held:
            given = x @ weight.to(x.dtype) + intercept[:, None].to(x.dtype)
            wrong = goal.nearest(given) - given
            error, count = error + float(wrong.double().square().sum()), count + given.numel()
        (sums,) = total(torch.tensor([error, count], dtype=torch.float64))
        return Solution(weight, intercept, float(sums[0] / sums[1].clamp_min(1)))


@dataclass(frozen=True)
class _Easing:
    """The rows that may give anything in an interval.

    Attributes
    ----------
    rows:
        Those of this process: inputs less `middle`, and goals.
    part:
        Their part of all rows.
    ridge:
        What majorises them.
    count:
        How many rows all processes have here.
    """

    rows: list[tuple[Tensor, Goal]]
    middle: Tensor
    part: float
    ridge: Ridge
    count: int
    centred: bool

    def off(self, weight: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:
        """How far these are from what is as good as the targets: the mean, and the mean product with the inputs."""
        mean, across = torch.zeros_like(intercept), torch.zeros_like(weight)
        start = (intercept[:, None] + self.middle.double() @ weight).float()
        for x, goal in self.rows:
            off = (goal.nearest(x @ weight.float() + start) - goal.wanted) * self.part
            mean, across = mean + off.sum(1).double(), across + (x.mT @ off).double()
        sums = total(mean, across)
        return sums[0] * (self.centred / self.count), sums[1] / self.count


def _some(count: int, share: float, seed: int) -> Tensor:
    """Numbers below `count`: all, or a share of them drawn at random."""
    if share >= 1:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: max(round(count * share), 1)]
