"""Weight sharing: each layer's weights take one of k values, which are then trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.errors import SelectionError
from surgeon.finegrained.amounts import Amount, per_weight
from surgeon.finegrained.clustering import cluster
from surgeon.finegrained.codebooks import share_weight, unshare
from surgeon.finegrained.layers import LeftWhole, Weight, check_finite, find_weights
from surgeon.finegrained.masks import forget, unmask
from surgeon.finegrained.permanent import plain_copy
from surgeon.planning.selection import select_layers
from surgeon.tracing import check_model, outside_inference_mode

__all__ = ["LayerSharing", "Sharing", "SweepRow", "share", "sweep"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerSharing:
    """One weight tensor whose values are shared.

    Attributes
    ----------
    name, kind:
        The layer, and ``"conv"`` or ``"linear"``.
    weights, zeros:
        How many there are, and how many of them are zero and stay so.
    values:
        How many values the others share.
    bits:
        Of one weight before.
    error:
        Root mean square change of the weights over their root mean square.
    exact:
        Whether no other values would change them less, see :func:`~surgeon.finegrained.clustering.cluster`.
    """

    name: str
    kind: str
    weights: int
    zeros: int
    values: int
    bits: int
    error: float
    exact: bool

    @property
    def size_before(self) -> float:
        """Bits of the weights as they were."""
        return self.weights * self.bits

    @property
    def size(self) -> float:
        """Bits of the indices and of the codebook: ``n log2 k + k bits``, where zero is one of the k."""
        levels = self.values + bool(self.zeros)
        return self.weights * math.log2(levels) + levels * self.bits


@dataclass(frozen=True)
class Sharing:
    """What :func:`share` did: a row per weight tensor (tied ones have one), and what was left whole and why."""

    layers: tuple[LayerSharing, ...]
    left_whole: tuple[LeftWhole, ...]

    @property
    def rate(self) -> float:
        """Compression of these layers' weights: ``n bits / (n log2 k + k bits)`` (Han et al. 2015, section 3).

        That is before entropy coding, which makes the file smaller still.
        """
        return sum(layer.size_before for layer in self.layers) / sum(layer.size for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON can hold."""
        return {"rate": self.rate} | asdict(self)


@dataclass(frozen=True)
class SweepRow:
    """One k of a sweep: the compression rate by the formula, and what `metric` said of the model."""

    k: int
    rate: float
    metric: float


@outside_inference_mode
def share(
    model: nn.Module,
    k: int | Mapping[str, int] = 16,
    *,
    ignored_layers: Iterable[Any] = (),
    progress: Progress | None = None,
) -> Sharing:
    """Let the weights of each convolution and linear layer take k values only, in place (Han et al. 2015, section 3).

    The values are the optimum of one-dimensional k-means. Zeros are kept apart: they stay zero and count for none of
    the k, so a masked model stays masked (its masks are made permanent). Each layer's values are then one parameter,
    its *codebook*; the gradient of a value is the sum over the weights that share it. :func:`surgeon.tune` or any other
    loop trains it, with an optimizer that is made afterwards (shapes have changed). That saves size, not time;
    :func:`pack` writes the small file.

    Parameters
    ----------
    model:
        Any module, also one that :func:`surgeon.prune` has cut or :func:`sparsify` has masked.
    k:
        Values per layer. A mapping has one for each kind (``"conv"``, ``"linear"``) or layer (name or glob); the first
        key that fits counts, and other layers stay.
    ignored_layers:
        Modules, names or globs that stay as they are.
    progress:
        Called as ``progress("share", layers done, layers in all)``.

    Returns
    -------
    Sharing
        Values, zeros and error of each layer, and the compression rate.

    Raises
    ------
    BudgetError
        If a k is no whole number from 1 to 255.
    SelectionError
        If a layer doesn't exist, or there is none to share in.
    ScoreError
        If weights are not finite.

    References
    ----------
    Han, Mao & Dally 2015, "Deep Compression" (arXiv 1510.00149), section 3.
    """
    module = check_model(model)
    asked = Amount.of(k=k)
    weights, left = find_weights(module, ignored_layers)
    chosen = [(w, int(v.value)) for w, v in zip(weights, per_weight(weights, asked), strict=True) if v is not None]
    if not chosen:
        raise SelectionError("no layer has weights to share; surgeon shares those of convolutions and linear layers")
    check_finite(weight for weight, _ in chosen)
    rows = []
    for number, (weight, values) in enumerate(chosen):
        if progress is not None:
            progress("share", number, len(chosen))
        rows.append(_share(weight, values))
    if progress is not None:
        progress("share", len(chosen), len(chosen))
    forget(module)
    return Sharing(tuple(rows), tuple(left))


def _share(weight: Weight, k: int) -> LayerSharing:
    value = weight.value().clone()
    flat = value.flatten().double().cpu().numpy()
    there = np.flatnonzero(flat)
    index = torch.zeros(len(flat), dtype=torch.int32)
    centres, exact = np.zeros(0), True
    if len(there):
        found = cluster(flat[there], k)
        centres, exact = found.centres, found.exact
        index[torch.from_numpy(there)] = torch.from_numpy(found.index + 1).int()
    codebook = torch.from_numpy(centres).to(value)
    unmask(weight)
    unshare(weight)
    share_weight(weight, index.view(value.shape).to(value.device), codebook)
    change = (weight.value() - value).double().square().sum().sqrt() / value.double().square().sum().sqrt()
    return LayerSharing(
        weight.name, weight.kind, len(flat), len(flat) - len(there), len(centres), 8 * value.itemsize,
        float(change) if len(there) else 0.0, exact,
    )  # fmt: skip


def sweep(
    model: nn.Module,
    ks: Sequence[int],
    metric: Callable[[nn.Module], float],
    *,
    ignored_layers: Iterable[Any] = (),
    progress: Progress | None = None,
) -> list[SweepRow]:
    """Try several k, each on a copy of the model that is not trained, which stays as it is.

    Parameters
    ----------
    ks:
        Values per layer to try.
    metric:
        ``metric(model)`` of the model in the mode that it is in, such as its accuracy.
    ignored_layers:
        As in :func:`share`.
    progress:
        Called as ``progress("sweep", done, total)``.

    Raises
    ------
    BudgetError, SelectionError, ScoreError
        As :func:`share`.
    """
    rows = []
    ignored = select_layers(check_model(model), ignored_layers)
    for number, k in enumerate(ks):
        if progress is not None:
            progress("sweep", number, len(ks))
        trial = plain_copy(model)
        rate = share(trial, k, ignored_layers=ignored).rate
        rows.append(SweepRow(k, rate, float(metric(trial))))
    if progress is not None:
        progress("sweep", len(ks), len(ks))
    return rows
