"""Means and centred products of rows, streamed, and merged over batches and over processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgeon.processes import count as processes
from surgeon.processes import gathered, total

__all__ = ["Moments"]


@dataclass
class Moments:
    """Of rows ``x`` (groups, rows, inputs) and what they should give, ``y`` (groups, rows, outputs).

    Attributes
    ----------
    centred:
        Whether products are taken around the means; else around the origin, and there are no means.
    with_products:
        Whether there are products.
    count:
        How many rows.
    means, products:
        ``(groups, inputs)`` and ``(groups, outputs)``; ``x^T x`` and ``x^T y``, summed over the rows. None before the
        first row.
    """

    centred: bool
    with_products: bool = True
    count: int = 0
    means: tuple[Tensor, Tensor] | None = None
    products: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Pairwise merging of means and centred moments (Chan, Golub & LeVeque 1979, section 3)."""
        count, rows = x.shape[1], self.count + x.shape[1]
        middles = (x.mean(1), y.mean(1)) if self.centred else (x.new_zeros(x.shape[::2]), y.new_zeros(y.shape[::2]))
        means = middles[0].double(), middles[1].double()
        known = self.means or means
        shift = means[0] - known[0], means[1] - known[1]
        if self.with_products:
            left, right = x - middles[0][:, None], y - middles[1][:, None]
            across = [torch.einsum("gi,gj->gij", shift[0], part) * (self.count * count / rows) for part in shift]
            inner, outer = (left.mT @ left).double() + across[0], (left.mT @ right).double() + across[1]
            if self.products is not None:
                inner, outer = inner.add_(self.products[0]), outer.add_(self.products[1])
            self.products = inner, outer
        self.means = known[0] + shift[0] * (count / rows), known[1] + shift[1] * (count / rows)
        self.count = rows

    def over_processes(self) -> Moments:
        """Those of the rows of all processes; the same bits in each."""
        if processes() == 1:
            return self
        sizes = [None if self.means is None else [list(mean.shape) for mean in self.means]]
        shapes = next((found for (found,) in gathered(sizes) if found is not None), None)
        if shapes is None:
            return self
        own = self.means or (torch.zeros(shapes[0]).double(), torch.zeros(shapes[1]).double())
        number, *sums = total(torch.tensor([self.count]), *(mean * self.count for mean in own))
        rows = int(number)
        means = sums[0] / rows, sums[1] / rows
        return replace(self, count=rows, means=means, products=self._products_around(own, means))

    def _products_around(
        self, own: tuple[Tensor, Tensor], means: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """The sums over all processes of products around their common means."""
        if not self.with_products:
            return None
        shift = own[0] - means[0], own[1] - means[1]
        around = [torch.einsum("gi,gj->gij", shift[0], part) * self.count for part in shift]
        if self.products is not None:
            around = [part + known for part, known in zip(around, self.products, strict=True)]
        inner, outer = total(*around)
        return inner, outer
