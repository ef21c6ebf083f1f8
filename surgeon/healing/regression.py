"""Ridge regression of one layer: from what the cut layer is given to what the dense one makes of what it was given.

The penalty is on the change: ``W' = W + (Cxx + lambda I)^-1 (Cxy - Cxx W)``, so that without data the sliced weights
``W`` stay. Moments are centred, streamed and float64; where there are fewer rows than inputs, the equivalent ``n x n``
form is solved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

#: Penalties that are tried, in units of the mean variance of the inputs; the held-out rows choose.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_MOST_TRIES = 8


@dataclass(frozen=True)
class Solution:
    """Weights ``(groups, inputs, outputs)`` and intercepts ``(groups, outputs)``; `error` on held-out rows."""

    weight: Tensor
    intercept: Tensor
    error: float
    penalty: float | None = None


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
    """

    centred: bool
    dual: bool
    dtype: torch.dtype = torch.float64
    count: int = 0
    _means: tuple[Tensor, Tensor] | None = None
    _moments: tuple[Tensor, Tensor] | None = None
    _rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _held: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in rows ``x`` (groups, rows, inputs) and what they should give, ``y`` (groups, rows, outputs)."""
        if not x.shape[1]:
            return
        x, y = x.double(), y.double()
        if self.dual:
            self._rows.append((x, y))
        self._merge(x, y)

    def hold_out(self, x: Tensor, y: Tensor) -> None:
        """Rows that only judge."""
        if x.shape[1]:
            self._held.append((x.float(), y.float()))

    def _merge(self, x: Tensor, y: Tensor) -> None:
        """Pairwise merging of means and centred moments (Chan, Golub & LeVeque 1979, section 3)."""
        count, total = x.shape[1], self.count + x.shape[1]
        means = (x.mean(1), y.mean(1)) if self.centred else (x.new_zeros(x.shape[::2]), y.new_zeros(y.shape[::2]))
        known = self._means or means
        shift = means[0] - known[0], means[1] - known[1]
        if not self.dual:  # which keeps the rows themselves
            left, right = x - means[0][:, None], y - means[1][:, None]
            across = [torch.einsum("gi,gj->gij", shift[0], part) * (self.count * count / total) for part in shift]
            inner, outer = left.mT @ left + across[0], left.mT @ right + across[1]
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
        for x, y in self._held:
            self.add(x, y)
        return self._at(weight.double(), chosen.penalty) or chosen

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
        """How far these are off: mean squared error on the held-out rows."""
        weight, intercept = weight.to(self.dtype), intercept.to(self.dtype)
        total, count = 0.0, 0
        for x, y in self._held:
            wrong = y - (x @ weight.to(x.dtype) + intercept[:, None].to(x.dtype))
            total, count = total + float(wrong.double().square().sum()), count + y.numel()
        return Solution(weight, intercept, total / max(count, 1))


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
