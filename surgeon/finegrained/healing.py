"""Masked and shared weights healed: what is left is fitted anew to what the dense model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from surgeon import healing
from surgeon.errors import HealingError
from surgeon.finegrained.layers import Weight, find_weights
from surgeon.finegrained.permanent import plain_copy
from surgeon.healing import LayerHealing, Tie
from surgeon.healing.ridge import places_of
from surgeon.planning import Plan
from surgeon.tracing import check_model, named_tensors, outside_inference_mode

__all__ = ["heal"]


@outside_inference_mode
def heal(
    dense: nn.Module,
    small: nn.Module,
    dataloader: Iterable[Any],
    level: str = "lstsq",
    *,
    plan: Plan | None = None,
    reassign: bool = True,
    inputs_of: Callable[[Any], Any] | None = None,
    seed: int = 0,
    on_layer: Callable[[LayerHealing], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Make a masked or shared model compute what the dense one computes as nearly as it can, from unlabelled inputs.

    Layer by layer, as :func:`surgeon.heal` does behind cut channels, by ridge regression among the weights that are
    left: what is masked stays zero (as Kwon et al. 2022, arXiv 2204.09656, section 4.3, refit what heads are left), and
    a layer that takes few values goes on taking as many. A layer is changed only if its error on held-out inputs falls.
    Masks and the sizes of codebooks stay as they are, and with them the sizes of files, within some percent.

    Parameters
    ----------
    dense:
        The model before :func:`sparsify` or :func:`share`; it may be masked or shared as well, less.
    small:
        The model after; changed in place.
    dataloader:
        Some hundred inputs in batches, or ``(inputs, targets)``, whose targets aren't looked at; memory holds them all.
    level:
        ``"lstsq"``, or less: ``"bias"`` (means go into biases or running means), ``"bn"`` (batch norms are measured
        anew), ``"none"``.
    plan:
        What the small model was cut by besides, if it was.
    reassign:
        Let shared weights go over to another one of their layer's values, too, where that brings the layer's output
        nearer (as Frantar et al. 2022, arXiv 2208.11580, do with given values): each has the one that serves best, not
        the nearest. With few values this is worth more than the rest. False: what shares a value goes on sharing it.
    inputs_of, seed, on_layer, progress:
        As in :func:`surgeon.heal`.

    Returns
    -------
    ``small``, healed.

    Raises
    ------
    HealingError
        For an unknown level, no data, a model without masks and codebooks, or one that isn't made of the dense one;
        `small` is untouched then.
    """
    model, whole = check_model(small), check_model(dense)
    tied = dict(_tied(model))
    if not tied:
        raise HealingError("no weight of the model is masked or shared: call sparsify or share first")
    plain = plain_copy(model)
    healing.heal(
        plain_copy(whole) if dict(_tied(whole)) else whole,
        plain,
        plan or Plan(type(whole).__name__, {}),
        dataloader,
        level,
        inputs_of=inputs_of,
        seed=seed,
        ties={name: _tie(weight, reassign) for name, weight in tied.items()},
        on_layer=on_layer,
        progress=progress,
    )
    _take(model, plain, tied)
    return small


def _tied(model: nn.Module) -> Iterator[tuple[str, Weight]]:
    """Masked and shared weights, by their names in a plain copy."""
    for weight in find_weights(model)[0]:
        place = weight.places[0]
        if weight.mask is not None or place.codebook is not None:
            yield f"{place.layer}.{place.name}".lstrip("."), weight


def _tie(weight: Weight, reassign: bool) -> Tie:
    book = weight.places[0].codebook
    if book is not None:
        return Tie(book.index, together=True, values=weight.value() if reassign else None)
    assert weight.mask is not None
    return Tie(weight.mask)


@torch.no_grad()
def _take(model: nn.Module, plain: nn.Module, tied: dict[str, Weight]) -> None:
    """Copy what a plain copy of the model has become into it; what is masked keeps the value behind its mask."""
    found = named_tensors(plain)
    for name, weight in tied.items():
        parameter, book, value = weight.places[0].parameter, weight.places[0].codebook, found.pop(name)
        assert parameter is not None
        mask = weight.mask
        if book is not None:
            if not torch.equal(value, weight.value()):
                book.index.copy_(places_of(value, book.index))
            values = book.right_inverse(value)
            parameter[: len(values)] = values  # a value that nobody has stays
        elif mask is not None:
            parameter.copy_(torch.where(mask, value, parameter))
    own = named_tensors(model)
    for name, value in found.items():
        own[name].copy_(value)
