"""The moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from surgeon.tracing import named_tensors

__all__ = ["Average", "copy_into", "snapshot"]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the numbers of a :func:`snapshot` back, in place."""
    for name, tensor in named_tensors(model).items():
        tensor.copy_(tensors[name])


class Average:
    """Exponential moving average: ``e = d e + (1 - d) w`` after every step (Polyak & Juditsky 1992).

    The n-th step uses ``d = min(decay, (1 + n) / (10 + n))``, so that short runs don't stay near their first weights.
    What isn't a floating-point parameter (running statistics, counters) is copied.

    Parameters
    ----------
    model:
        Whose weights to average.
    decay:
        Above 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = snapshot(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights after a step into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in named_tensors(model).items():
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run the body with the averaged weights in the model."""
        own = snapshot(model)
        copy_into(model, self.tensors)
        try:
            yield
        finally:
            copy_into(model, own)
