"""The criterion table: one function per criterion; nothing else has to change for another one."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.criteria.filters import average, channel_bytes, channel_macs, filters, scales, total
from surgeon.criteria.gradients import Floats, Statistic
from surgeon.criteria.reconstruction import removal_costs
from surgeon.criteria.registry import Request, as_is, criterion

# ---------------------------------------------------------------- from gradients

ABSOLUTE = Statistic(lambda found: found.gates.abs().sum(0))
SQUARE = Statistic(lambda found: found.gates.square().sum(0))
SQUARED_SUM = Statistic(lambda found: found.gates.sum(0).square(), per_batch=True)
SQUARED_WEIGHTS = Statistic(lambda found: found.weights.square(), per_batch=True, weights=True)


@criterion("taylor", ABSOLUTE)
def taylor(request: Request) -> Floats:
    """Mean over the examples of ``abs(g[n, c])``: Molchanov et al. 2017 (arXiv 1611.06440), equation 8.

    The absolute value is taken per example, before the mean, so examples don't cancel.
    """
    return request.means[ABSOLUTE]


@criterion("taylor-gate", SQUARED_SUM, normaliser=as_is)
def taylor_gate(request: Request) -> Floats:
    """Mean over the batches of ``(sum over n of g[n, c]) ** 2``: Molchanov et al. 2019 (arXiv 1906.10771), section 3.

    They put gates behind BatchNorm, one for all layers that share a channel; ours stand at the channel's readers. The
    loss is summed over the batch, so a shorter last batch counts for less. Depends on the batch size: one example a
    batch gives ``fisher``. Compared across layers as it is, as in the paper.
    """
    return request.means[SQUARED_SUM]


@criterion("taylor-weight", SQUARED_WEIGHTS, normaliser=as_is)
def taylor_weight(request: Request) -> Floats:
    """Mean over the batches of ``(sum over w of w * dL/dw) ** 2``: Molchanov et al. 2019, section 3.

    Of their two readings the joint one: the sum over a filter's weights, and over all coupled filters, is inside the
    square. L is summed over the batch. Biases and norms don't count.
    """
    return request.means[SQUARED_WEIGHTS]


@criterion("fisher", SQUARE, normaliser=as_is)
def fisher(request: Request) -> Floats:
    """Mean over the examples of ``g[n, c] ** 2``: Theis et al. 2018 (arXiv 1801.05787).

    g is summed over all readers of the coupled channel before it is squared (Liu et al. 2021, arXiv 2108.00708).
    """
    return request.means[SQUARE]


@criterion("fisher-mac", SQUARE, normaliser=as_is)
def fisher_mac(request: Request) -> Floats:
    """``fisher`` per MAC that goes with the channel (Liu et al. 2021, section 3); one that saves none counts 1."""
    return request.means[SQUARE] / np.maximum(channel_macs(request.graph), 1)


@criterion("fisher-memory", SQUARE, normaliser=as_is)
def fisher_memory(request: Request) -> Floats:
    """``fisher`` per byte of activation that goes with the channel (Liu et al. 2021, section 3).

    Counted are the results of convolutions and matrix products that hold the channel, on the example inputs.
    """
    return request.means[SQUARE] / np.maximum(channel_bytes(request.graph), 1)


# ---------------------------------------------------------------- from weights


def _norm(rows: Tensor, order: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, order, dim=1, dtype=torch.float64)
    return norms


@criterion("magnitude")
def magnitude(request: Request) -> Floats:
    """Root mean square of the filter's weights (l2), averaged over the filters of a coupled channel."""
    return average(
        request.graph, filters(request.graph, request.weights), lambda rows: _norm(rows, 2) / math.sqrt(rows.shape[1])
    )


@criterion("magnitude-l1")
def magnitude_l1(request: Request) -> Floats:
    """Mean absolute weight of the filter (Li et al. 2017, section 3.1), averaged over coupled filters."""
    return average(request.graph, filters(request.graph, request.weights), lambda rows: _norm(rows, 1) / rows.shape[1])


@criterion("magnitude-group")
def magnitude_group(request: Request) -> Floats:
    """The l2 norm of all weights that go with the channel: Fang et al. 2023 (arXiv 2301.12900), section 3.

    The filters that make it and the slices of the weights that read it, over all coupled layers; no biases or norms.
    """
    return np.sqrt(
        total(
            request.graph, filters(request.graph, request.weights, readers=True), lambda rows: _norm(rows, 2).square()
        )
    )


@criterion("bn-scale", normaliser=as_is)
def bn_scale(request: Request) -> Floats:
    """Absolute scale (gamma) of the norm behind the filter: Liu et al. 2017 (arXiv 1708.06519), section 3.

    The mean over the norms that the channel passes through; batch, group, instance, layer and RMS norms alike.
    Compared across layers as it is. Channels that pass no norm have the root mean square of their weights for a scale,
    times the factor that gives them the mean of all gammas (1 if there are none): they compete on equal terms.
    """
    graph = request.graph
    scored = average(graph, scales(graph, request.weights), lambda rows: rows.double().abs().mean(1))
    bare = total(graph, scales(graph, request.weights), lambda rows: torch.ones(len(rows))) == 0
    normed = graph.removable[~bare[graph.removable]]
    usual = float(scored[normed].mean()) if len(normed) else 1.0
    weights = magnitude(request)
    for group in graph.groups:
        own = group.numbers[bare[group.numbers]]
        if len(own):
            mean = float(weights[own].mean())
            scored[own] = usual * weights[own] / mean if mean > 0 else usual
    return scored


@criterion("fpgm")
def fpgm(request: Request) -> Floats:
    """Sum of the filter's distances to the other filters of its layer: He et al. 2019 (arXiv 1811.00250), section 3.3.

    The filters nearest to the layer's geometric median can be replaced by the others. Averaged over coupled layers.
    """
    return average(request.graph, filters(request.graph, request.weights), _distances)


def _distances(rows: Tensor, width: int = 4096) -> Tensor:
    """Sum of each row's euclidean distances to all rows, ``(n,)``; `width` columns at a time, to spare memory."""
    squares = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, width, dim=1):
        part = part.double()
        squares += torch.cdist(part, part).square()
    return squares.sqrt().sum(1)


@criterion("lamp", normaliser=as_is)
def lamp(request: Request) -> Floats:
    """Squared l2 norm over that of all channels that are not smaller: Lee et al. 2021 (arXiv 2010.07611), section 3.

    ``w[u] ** 2 / (sum over v >= u of w[v] ** 2)`` in ascending order within the layers that lose channels together
    (for most, one group); w is the norm of a channel's filters, coupled ones together. The last one scores 1. Made to
    be compared across layers as it is.
    """
    squares = total(request.graph, filters(request.graph, request.weights), lambda rows: _norm(rows, 2).square())
    scored = np.zeros_like(squares)
    for bundle in request.graph.bundles:
        numbers = np.concatenate([group.numbers for group in bundle.groups])
        order = numbers[np.argsort(squares[numbers], kind="stable")]
        left = np.cumsum(squares[order][::-1])[::-1]
        scored[order] = np.divide(squares[order], left, out=np.zeros_like(left), where=left > 0)
        scored[order[-1]] = 1.0
    return scored


# ---------------------------------------------------------------- from what the readers are given


@criterion("obs", needs_data=True, normaliser=as_is)
def obs(request: Request) -> Floats:
    """What the removal adds to the readers' relative squared error once they are fitted anew: see `reconstruction`.

    Looks at no labels. Made for healing by least squares, which fits them so.
    """
    return _reconstruction(request)


@criterion("obs-mac", needs_data=True, normaliser=as_is)
def obs_mac(request: Request) -> Floats:
    """``obs`` per MAC that goes with the channel; one that saves none counts 1."""
    return _reconstruction(request) / np.maximum(channel_macs(request.graph), 1)


#: Of the mixtures below, the share of ``obs`` and the power of the MACs, where nothing better is known.
SHARE, POWER = 0.6, 1.5


@criterion("auto", SQUARE, needs_data=True, normaliser=as_is)
def auto(request: Request) -> Floats:
    """``obs`` and ``fisher``, a weighted geometric mean, per MAC to the power of 1.5.

    The one says what the readers can't make up for, the other what the loss makes of it. :func:`surgeon.prune` tries
    several powers, and weights of coupled channels (`surgeon.automatic`), and takes the way whose small model comes
    nearest to the dense one.
    """
    return mixture(request.graph, _reconstruction(request), request.means[SQUARE], POWER)


def mixture(graph: ChannelGraph, removal: Floats, squares: Floats, power: float) -> Floats:
    """``removal ** 0.6 * squares ** 0.4 / MACs ** power``; scores of ``obs`` and of ``fisher``."""
    return removal**SHARE * squares ** (1 - SHARE) / np.maximum(channel_macs(graph), 1) ** power


def _reconstruction(request: Request) -> Floats:
    assert request.batches is not None
    return removal_costs(request.graph, request.batches, request.micro_batch, request.inputs_of)


# ---------------------------------------------------------------- the control


@criterion("random")
def random(request: Request) -> Floats:
    """Uniform numbers: the control that every criterion must beat."""
    return np.random.default_rng(request.seed).random(request.graph.structure.count)
