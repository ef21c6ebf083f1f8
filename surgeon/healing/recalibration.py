"""Running statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgeon.tracing import Inputs


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replace the running statistics of every batch norm by their plain average over `batches`, in place.

    Only these layers are in train mode meanwhile; mode and momentum are as before afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta, modes = [norm.momentum for norm in norms], {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the cumulative average
        for inputs in batches:
            model(*inputs.args, **inputs.kwargs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
