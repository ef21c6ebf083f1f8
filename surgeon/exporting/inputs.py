"""How many examples a model takes, and inputs of another number of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgeon.tracing import Inputs, results_of

__all__ = ["Sizes", "other_size", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """`example`: how many examples the inputs hold; `free`: whether the model takes other numbers of them as well."""

    example: int
    free: bool


def sizes_of(model: nn.Module, inputs: Inputs, *, probe: bool = True) -> Sizes:
    """Read the batch size off the inputs' first axes; with `probe`, try another one."""
    counts = {t.shape[0] if t.ndim else 0 for t in inputs.leaves() if isinstance(t, Tensor)}
    if len(counts) != 1 or 0 in counts:
        return Sizes(max(counts), free=False)
    (count,) = counts
    return Sizes(count, free=probe and _runs(model, other_size(inputs, count + 1), count + 1))


def _runs(model: nn.Module, inputs: Inputs, count: int) -> bool:
    """Whether the forward gives results of so many examples."""
    try:
        leaves = results_of(model, inputs)
    except Exception:  # noqa: BLE001  # the user's own forward may refuse in any way
        return False
    return bool(leaves) and all(leaf.ndim and leaf.shape[0] == count for leaf in leaves)


def other_size(inputs: Inputs, count: int) -> Inputs:
    """The examples again and again until there are `count`, each a little weaker than the one before."""

    def resized(tensor: Tensor) -> Tensor:
        more = tensor[torch.arange(count, device=tensor.device) % len(tensor)]
        if not tensor.is_floating_point():
            return more
        return more * torch.linspace(1, 0.5, count, device=tensor.device, dtype=tensor.dtype).view(
            -1, *[1] * (more.ndim - 1)
        )

    return inputs.map(resized)
