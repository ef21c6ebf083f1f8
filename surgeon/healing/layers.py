"""Layer by layer through both models: collect rows, fit, write, go on with what was healed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.healing.calibration import HELD_OUT, Pair
from surgeon.healing.levels import FITTERS
from surgeon.healing.regression import Regression
from surgeon.healing.ridge import Tie
from surgeon.healing.sites import Site
from surgeon.processes import same, seed_of, total

#: Rows per layer: so many for each input, and no fewer than this.
_ROWS_PER_INPUT, _LEAST_ROWS = 20, 50_000
#: Of their inputs so many numbers are kept to ease a layer on; its moments take all rows.
_MOST_KEPT = 2**25


@dataclass(frozen=True)
class LayerHealing:
    """What became of one weight: mean squared distances from what is as good, on rows that nothing was learned from.

    Attributes
    ----------
    weight:
        Its name.
    sliced, shifted:
        As it was cut, and so with the intercept that fits best (where the layer has a place for one).
    healed:
        As it was accepted; never above the former, and at the levels ``"bias"`` to ``"lstsq"`` never above the latter.
        A regression is then fitted once more, on these rows as well.
    """

    weight: str
    sliced: float
    shifted: float
    healed: float


@dataclass
class _Open:
    """A weight whose calls haven't all been met yet."""

    regression: Regression
    first: int
    marks: list[Any]


class Healer:
    """Fits the layers behind a cut in the order in which they run.

    Parameters
    ----------
    pairs:
        The calibration batches.
    tensors:
        The small model's parameters and buffers, which are replaced one by one.
    level:
        An entry of :data:`FITTERS`.
    batches:
        How many calibration batches all processes have.
    ties:
        How weights may change that may not freely, by their names.
    """

    def __init__(
        self, pairs: list[Pair], tensors: dict[str, Tensor], level: str, seed: int, batches: int,
        ties: Mapping[str, Tie],
    ) -> None:  # fmt: skip
        self.changed: set[str] = set()
        self._pairs, self._tensors, self._fit, self._ties = pairs, tensors, FITTERS[level], ties
        self._seed, self._batches = seed, batches
        self._sites = pairs[0].sites
        self._calls: dict[Any, list[int]] = {}
        for number, site in enumerate(self._sites):
            self._calls.setdefault(site.key, []).append(number)

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> Iterator[LayerHealing]:
        """Heal one weight after another.

        A weight that is used several times is fitted to all its calls at once; what runs from the first of them on is
        then run again.
        """
        unfinished: dict[Any, _Open] = {}
        number, done = 0, set[Any]()
        while number < len(self._sites):
            site = self._sites[number]
            if site.key in done:
                number += 1
                continue
            # taken before the models arrive: it may be needed to arrive here once more
            marks = [pair.mark() for pair in self._pairs] if len(self._calls[site.key]) > 1 else []
            for pair in self._pairs:
                pair.arrive(number)
            if site.key not in unfinished:
                unfinished[site.key] = _Open(self._regression(number), number, marks)
            self._collect(number, unfinished[site.key].regression)
            number += 1
            if number - 1 == self._calls[site.key][-1]:
                met = unfinished.pop(site.key)
                done.add(site.key)
                yield self._solve(site, met.regression)
                if met.marks:
                    number = self._back(met, unfinished)

    def _back(self, met: _Open, unfinished: dict[Any, _Open]) -> int:
        """Go back to a weight's first call, or further: whatever else had rows from behind there begins again."""
        stale = [key for key in unfinished if any(call > met.first for call in self._calls[key])]
        first = min([unfinished[key] for key in stale] + [met], key=lambda entry: entry.first)
        for key in stale:
            del unfinished[key]
        for pair, mark in zip(self._pairs, first.marks, strict=True):
            pair.back(mark)
        return first.first

    def _regression(self, number: int) -> Regression:
        product = self._sites[number].product
        places = product.form.matrix(product.weight.index)
        groups, inputs, _ = places.shape
        tie = self._ties.get(product.weight.name)
        (count,) = total(torch.tensor([sum(pair.count(number) for pair in self._pairs if pair.number is not None)]))
        rows = int(count) * len(self._calls[self._sites[number].key])
        taken = min(rows, max(_ROWS_PER_INPUT * inputs, _LEAST_ROWS)) * groups * inputs
        return Regression(
            product.bias is not None or product.mean is not None,
            dual=rows < inputs and tie is None,
            dtype=self._tensors[product.weight.name].dtype,
            share=_MOST_KEPT / taken,
            tie=None if tie is None else tie.at(places),
        )

    def _collect(self, number: int, regression: Regression) -> None:
        site = self._sites[number]
        inputs = site.product.form.matrix(site.product.weight.index).shape[1]
        quota = max(_ROWS_PER_INPUT * inputs, _LEAST_ROWS) // (self._batches * len(self._calls[site.key])) + 1
        for pair in self._pairs:
            if pair.number is None:
                continue
            judges = self._batches > 1 and pair.number % HELD_OUT == min(self._batches, HELD_OUT) - 1
            seed = seed_of(self._seed, number, pair.number)
            for piece, (held, x, goal) in enumerate(pair.rows(number, quota, seed, judges=judges)):
                if held:
                    regression.hold_out(x, goal, pair.number)
                else:
                    regression.add(x, goal, seed_of(seed, piece), pair.number)

    def _solve(self, site: Site, regression: Regression) -> LayerHealing:
        product = site.product
        weight = product.form.matrix(product.weight.of(self._tensors)).double()
        sliced = regression.judged(weight, self._intercept(site, weight))
        found = list(self._fit(site, regression, self._pairs, weight)) if regression.count else []
        best = min([sliced, *found], key=lambda solution: solution.error)
        if best is not sliced:
            solution = regression.on_all_rows(weight, best)
            self._write(site, same(solution.weight), same(solution.intercept))
        shifted = found[0] if found and regression.centred else sliced  # what every level tries first
        return LayerHealing(product.weight.name, sliced.error, shifted.error, best.error)

    def _intercept(self, site: Site, weight: Tensor) -> Tensor:
        """The intercept that the layer has, ``(groups, outputs)``."""
        product, shape = site.product, (weight.shape[0], weight.shape[2])
        if product.bias is not None:
            return product.bias.of(self._tensors).to(weight).view(shape)
        if product.mean is not None:
            return (self._dense_mean(site) - product.mean.of(self._tensors).double()).view(shape)
        return weight.new_zeros(shape)

    def _dense_mean(self, site: Site) -> Tensor:
        found = self._pairs[0].dense_mean(site)
        assert found is not None
        return found

    def _write(self, site: Site, weight: Tensor, intercept: Tensor) -> None:
        product = site.product
        self._set(product.weight.name, product.form.matrix(product.weight.index), weight)
        if product.bias is not None:
            self._set(product.bias.name, product.bias.index, intercept)
        elif product.mean is not None:
            self._set(product.mean.name, product.mean.index, self._dense_mean(site) - intercept.reshape(-1))
        for pair in self._pairs:
            pair.small.refresh()

    def _set(self, name: str, places: Tensor, values: Tensor) -> None:
        tensor = self._tensors[name].detach().contiguous().clone()
        tensor.view(-1)[places.reshape(-1).to(tensor.device)] = values.reshape(-1).to(tensor)
        self._tensors[name] = tensor
        self.changed.add(name)
