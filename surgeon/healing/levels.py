"""The levels of healing: how one layer's weights are fitted anew. One entry of the table per level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from surgeon.healing.calibration import Pair
from surgeon.healing.regression import PENALTIES, Regression, Solution
from surgeon.healing.ridge import Ridge
from surgeon.healing.sites import Site
from surgeon.processes import total

#: Candidates for a layer's new weights ``(groups, inputs, outputs)``, given the sliced ones.
Fitter = Callable[[Site, Regression, list[Pair], Tensor], Iterator[Solution]]


def fit_intercept(site: Site, regression: Regression, pairs: list[Pair], weight: Tensor) -> Iterator[Solution]:  # noqa: ARG001
    """The weights as they were sliced; the mean of what is missing goes into the intercept."""
    if regression.centred:
        yield regression.shifted(weight)


def fit_least_squares(site: Site, regression: Regression, pairs: list[Pair], weight: Tensor) -> Iterator[Solution]:
    """Ridge regression on what the layer is given now; of its best penalty also towards whatever is as good."""
    yield from fit_intercept(site, regression, pairs, weight)
    for tie in regression.ways:
        found = list(regression.solved(weight, tie))
        yield from found
        eased = regression.eased(min(found, key=lambda solution: solution.error)) if found else None
        if eased is not None:
            yield eased


def fit_gram(site: Site, regression: Regression, pairs: list[Pair], weight: Tensor) -> Iterator[Solution]:
    """Removed channels as linear combinations of the kept ones, over all places alike: ``W + W_removed B``."""
    yield from fit_intercept(site, regression, pairs, weight)
    change = _compensation(site, pairs, weight)
    if change is not None:
        yield regression.shifted(weight + change)


#: The levels that fit layer by layer.
FITTERS: Mapping[str, Fitter] = {"bias": fit_intercept, "gram": fit_gram, "lstsq": fit_least_squares}


def _compensation(site: Site, pairs: list[Pair], weight: Tensor) -> Tensor | None:
    """What the kept channels' weights gain; None where the layer has groups or uses part of a parameter."""
    fitted, name = pairs[0].fitted, site.product.weight.name
    dense = fitted.graph.trace.tensors[name]
    axes = [sorted(plane.axes) for plane in fitted.graph.structure.labels.space.planes.get(name, ())]
    if len(weight) > 1 or axes[:2] != [[0], [1]] or site.product.weight.index.numel() != fitted.source(name).numel():
        return None
    inner = site.product.form.weight_axis
    kept, outputs = fitted.positions(name, inner), fitted.positions(name, 1 - inner)
    gone = torch.from_numpy(np.setdiff1d(np.arange(dense.shape[inner]), kept.numpy()))
    gram = _gram(pairs)
    ridge = Ridge.of(gram[kept][:, kept][None], PENALTIES[0]) if len(gram) == dense.shape[inner] else None
    if ridge is None or not len(gone):
        return None
    share = ridge.solve(gram[kept][:, gone][None])[0]  # (kept, gone)
    dense, outputs, gone = dense.detach().to(share), outputs.to(share.device), gone.to(share.device)
    lost = dense.index_select(1 - inner, outputs).index_select(inner, gone)
    gained = torch.tensordot(share, lost, dims=([1], [inner])).movedim(0, inner)
    return site.product.form.matrix(gained.reshape(-1)[site.product.weight.index])


def _gram(pairs: list[Pair]) -> Tensor:
    """Mean products of the dense layer's input channels, ``(channels, channels)``."""
    assert pairs[0].given is not None
    channels, device = pairs[0].given.shape[1], pairs[0].given.device
    products, count = torch.zeros(channels, channels, dtype=torch.float64, device=device), 0
    for pair in pairs:
        x = pair.given
        if pair.number is not None and x is not None:
            rows = x.movedim(1, -1).reshape(-1, channels).double()
            products, count = products + rows.mT @ rows, count + len(rows)
    products, counts = total(products, torch.tensor([count]))
    return products / counts.to(device)
