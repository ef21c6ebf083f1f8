"""Masks and codebooks taken off: the weights stay as they are, and are plain parameters again."""

from __future__ import annotations

from torch import nn

from surgeon.finegrained.codebooks import unshare
from surgeon.finegrained.layers import find_weights
from surgeon.finegrained.masks import forget, unmask
from surgeon.tracing import check_model, copied

__all__ = ["make_permanent", "plain_copy"]


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy without masks and codebooks, whose weights are what the model computes with."""
    result = copied(check_model(model), {})
    make_permanent(result)
    return result


def make_permanent(model: nn.Module) -> None:
    """Take the masks and codebooks of `model` off, in place: its weights stay as they are, as plain parameters again.

    Parameters stay the same objects; those of shared layers change their shape. Masks that ``torch.nn.utils.prune`` has
    put on other tensors (biases, other layers) stay.
    """
    module = check_model(model)
    weights, _ = find_weights(module)
    for weight in weights:
        unmask(weight)
        unshare(weight)
    forget(module)
