"""How many weights of a model are there, and how many of them are zero."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from surgeon.finegrained.layers import find_weights
from surgeon.tracing import check_model

__all__ = ["NonZero", "nonzero"]


class NonZero(NamedTuple):
    """Weights of one layer that are not zero, of how many."""

    left: int
    weights: int

    @property
    def share(self) -> float:
        """The share of the layer's weights that is not zero."""
        return self.left / self.weights


def nonzero(model: nn.Module) -> dict[str, NonZero]:
    """The weights that are not zero in each convolution and linear layer, masked ones being zero; tied ones once.

    Raises
    ------
    ModelError
        If `model` is none.
    """
    weights, _ = find_weights(check_model(model))
    values = {weight.name: weight.value() for weight in weights}
    return {name: NonZero(int(value.count_nonzero()), value.numel()) for name, value in values.items()}
