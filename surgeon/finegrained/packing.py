"""Compact files: surgeon's own checkpoint, with tensors of many zeros or few values stored by those."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.checkpoint import load, read_header, save
from surgeon.checkpoint.coding import bits_of
from surgeon.errors import CheckpointError
from surgeon.finegrained.codebooks import share_weight
from surgeon.finegrained.layers import Weight, find_weights
from surgeon.finegrained.masks import mask_weight
from surgeon.finegrained.permanent import plain_copy
from surgeon.planning import Plan
from surgeon.tracing import Inputs, check_model

__all__ = ["pack", "unpack"]


def pack(
    path: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan | None = None,
    origin: Mapping[str, Any] | None = None,
    *,
    example_inputs: Any = None,
) -> None:
    """Write a masked or shared model as a compact file, from which the same weights come back to the bit.

    It is a file as :func:`surgeon.save` writes it, so :func:`surgeon.load` opens it (the weights are plain then), and
    :func:`unpack` does with masks and codebooks in place. `model` stays as it is.

    Parameters
    ----------
    path:
        Where to write; an existing file is replaced whole or not at all.
    model:
        The model.
    plan:
        What :func:`surgeon.prune` cut; None if nothing was.
    origin:
        As in :func:`surgeon.save`.
    example_inputs:
        What its forward takes, for ``surgeon inspect`` and ``surgeon bench``, where there is no plan that says it.

    Raises
    ------
    CheckpointError
        If a parameter holds NaN, or as :func:`surgeon.save`.
    OSError
        If the file can't be written.
    """
    module = check_model(model)
    for name, parameter in module.named_parameters():
        if bool(parameter.detach().isnan().any()):
            raise CheckpointError(f"{name} holds NaN, which no file should keep; load weights that are finite")
    inputs = None if example_inputs is None else Inputs.of(example_inputs).spec()
    forms = {name: form for weight in find_weights(module)[0] if (form := _form(weight)) for name in _names(weight)}
    plain = plain_copy(module)
    save(path, plain, plan or Plan(type(plain).__name__, {}, inputs), origin, compact=forms)


def _form(weight: Weight) -> str | None:
    """How a weight must be stored to come back as it is; None if any way will do."""
    if weight.mask is not None:
        return "sparse"
    return "shared" if weight.places[0].codebook is not None else None


def unpack(
    path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None, *, example_inputs: Any = None
) -> nn.Module:
    """Open a file that :func:`pack` wrote, on the CPU, with masks and codebooks in place, ready to train.

    A weight that had a mask or a codebook has it again; one that is exactly zero counts as masked. Plain ones that were
    smaller by their zeros or values get one too.

    Parameters
    ----------
    path, factory, example_inputs:
        As in :func:`surgeon.load`.

    Raises
    ------
    CheckpointError
        If the file is damaged or forged, or belongs to another model.
    OSError
        If it can't be read.
    """
    model = load(path, factory, example_inputs=example_inputs)
    coded = read_header(path).coded
    for weight in find_weights(model)[0]:
        kinds = {coded[name].kind for name in _names(weight) if name in coded}
        if kinds == {"sparse"}:
            mask_weight(model, weight, bits_of(weight.value()) != 0)
        elif kinds == {"shared"}:
            _look_up(weight)
    return model


def _names(weight: Weight) -> list[str]:
    return [f"{place.layer}.{place.name}".removeprefix(".") for place in weight.places]


def _look_up(weight: Weight) -> None:
    bits = bits_of(weight.value())
    values, symbols = torch.unique(bits[bits != 0], return_inverse=True)
    index = torch.zeros(bits.shape, dtype=torch.int32)
    index[bits != 0] = symbols.int() + 1
    share_weight(weight, index, values.view(weight.value().dtype))
