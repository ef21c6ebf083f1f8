"""Healing: recover accuracy after a cut without labels and without training.

Layer by layer, in the order in which they run, each layer behind what was cut is fitted anew: what it is given comes
from the cut and so far healed model, what it should give from the dense one (as He et al. 2017, arXiv 1707.06168,
section 3, fit layers in turn; here the target also makes up for what a shortcut is off by, and in front of an
activation such as ReLU whatever has the same effect is as good as it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.errors import HealingError
from surgeon.exclusive import one_at_a_time
from surgeon.healing.calibration import example_of, read_batches, read_inputs
from surgeon.healing.layers import Healer, LayerHealing
from surgeon.healing.levels import FITTERS
from surgeon.healing.recalibration import recalibrate
from surgeon.healing.ridge import Tie
from surgeon.healing.settling import settle_norms
from surgeon.planning import Plan
from surgeon.processes import Own, own_batches, together
from surgeon.tracing import Inputs, check_model, named_tensors, outside_inference_mode, unwrap

__all__ = ["LEVELS", "LayerHealing", "Tie", "heal", "settle"]

#: From nothing to most.
LEVELS = ("none", "bn", *FITTERS)
#: Levels after which the batch norms are measured anew; behind a regression that would make it worse.
_MEASURED = ("bn", "bias", "gram")


@outside_inference_mode
@together("healing")
@one_at_a_time
def heal(
    dense: nn.Module,
    small: nn.Module,
    plan: Plan,
    dataloader: Iterable[Any],
    level: str = "lstsq",
    *,
    inputs_of: Callable[[Any], Any] | None = None,
    seed: int = 0,
    ties: Mapping[str, Tie] | None = None,
    on_layer: Callable[[LayerHealing], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Make `small` compute what `dense` computes as nearly as it can, from a few hundred inputs; changes it in place.

    Parameters
    ----------
    dense, small, plan:
        The model before the cut, after it, and the plan that it was cut by.
    dataloader:
        Batches of inputs, or ``(inputs, targets)``, whose targets aren't looked at. Held in memory are all of them;
        of both models, for every batch, the values that are still of use at the layer that is being healed (its
        operand, shortcuts around it; of a weight that is used several times, also those at its first use); and of
        that layer its moments (inputs x inputs, float64), the rows that judge it, and a small piece of the others; in
        front of a ReLU up to 2**25 numbers of these (128 MiB, and a copy).
    level:
        ``"bn"``: batch norms are measured anew. ``"bias"``: the mean of what is missing goes into biases, or, where a
        layer has none, into the running mean of the norm behind it; then ``bn``. ``"gram"``: removed channels become
        linear combinations of kept ones, place by place; then ``bn``. ``"lstsq"``: ridge regression of each layer;
        call :func:`surgeon.settle` then before you train. ``"none"``: nothing.
    inputs_of:
        What the model takes of a batch, where it isn't the batch itself or its first part.
    seed:
        Which places of large feature maps are looked at.
    ties:
        Weights of the small model that were changed in place, by their names, and how they may change further; of
        models with masks and codebooks, :func:`surgeon.finegrained.heal` knows them.
    on_layer:
        Called with the outcome of each layer.
    progress:
        Called as ``progress("heal", done, total)``.

    Returns
    -------
    ``small``, healed. A layer is changed only if its error on held-out inputs falls; it is then fitted once more on
    all inputs.

    Raises
    ------
    HealingError
        For an unknown level, no data, or a small model that isn't what the plan makes of the dense one; `small` is
        untouched then.
    """
    if level not in LEVELS:
        raise HealingError(f"level={level!r}: expected one of {', '.join(LEVELS)}")
    model, other = check_model(dense), unwrap(small)
    if level == "none":
        return small
    batches = Own((number, read_inputs(batch, plan, inputs_of)) for number, batch in own_batches(dataloader))
    if not batches.of_all:
        raise HealingError("the dataloader gave no batch; pass one that yields inputs, or (inputs, targets)")
    with _untouched_if_it_fails(other):
        if level in FITTERS:
            _fit_layers(model, other, plan, batches, level, seed, ties or {}, on_layer, progress)
        if level in _MEASURED:
            recalibrate(other, _on_its_device(other, batches))
    return small


@outside_inference_mode
@together("settling")
def settle(model: nn.Module, dataloader: Iterable[Any], *, inputs_of: Callable[[Any], Any] | None = None) -> nn.Module:
    """Make a healed model compute in train mode what it computes in eval mode: call it before training goes on.

    A regression (``level="lstsq"``) fits a layer for the statistics that the norm behind it has from the dense model.
    What the layer gives now varies less, since what can't be predicted is missing, and in train mode a batch norm blows
    it up again, errors and all. So each gets the statistics of what reaches it, and a scale and shift with which it
    computes what it did. In eval mode nothing changes. Heal first: a model that is settled is healed no more, for its
    norms are no longer the dense model's.

    Parameters
    ----------
    model:
        A healed model; changed in place.
    dataloader, inputs_of:
        As in :func:`surgeon.heal`; batches as large as those of the training to come serve best.

    Returns
    -------
    ``model``. Left as they are: norms that share their scale, that are of low precision, or whose class uses scale and
    shift in a way of its own.

    Raises
    ------
    HealingError
        If there is no data.
    """
    module = check_model(model)
    batches = Own((n, read_inputs(batch, Plan("", {}), inputs_of)) for n, batch in own_batches(dataloader))
    if not batches.of_all:
        raise HealingError("the dataloader gave no batch; pass one that yields inputs, or (inputs, targets)")
    settle_norms(module, _on_its_device(module, batches))
    return model


def _on_its_device(model: nn.Module, batches: Own[Inputs]) -> list[Inputs]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return [inputs.to(device) for _, inputs in batches]


@contextlib.contextmanager
def _untouched_if_it_fails(model: nn.Module) -> Iterator[None]:
    before = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in named_tensors(model).items():
                tensor.copy_(before[name])
        raise


def _fit_layers(
    dense: nn.Module, small: nn.Module, plan: Plan, batches: Own[Inputs], level: str, seed: int,
    ties: Mapping[str, Tie], on_layer: Callable[[LayerHealing], None] | None,
    progress: Callable[[str, int, int], None] | None,
) -> None:  # fmt: skip
    example = example_of(plan, batches)  # all of several processes ask, whether they need it or not
    pairs, tensors = read_batches(dense, small, plan, batches or [(None, example)], ties)
    with torch.no_grad():
        healer = Healer(pairs, tensors, level, seed, batches.of_all, ties)
        for number, row in enumerate(healer.run(), 1):
            if on_layer is not None:
                on_layer(row)
            if progress is not None:
                progress("heal", number, len(healer))
        for name, own in named_tensors(small).items():
            if name in healer.changed:
                own.copy_(tensors[name])
