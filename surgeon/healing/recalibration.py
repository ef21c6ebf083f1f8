"""Running statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgeon.errors import HealingError
from surgeon.exclusive import one_at_a_time
from surgeon.processes import total
from surgeon.tracing import Inputs, in_mode


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Replace the running statistics of every batch norm by their plain average over `batches`, in place.

    Of several processes each has batches of its own, and all get the average over all of them.

    Only these layers are in train mode meanwhile; mode and momentum are as before afterwards. Norms that no batch
    reaches (auxiliary heads) keep what they have.

    Raises
    ------
    HealingError
        If a batch has but one value per channel at a norm: it has no variance.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    known = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    with in_mode(model, False):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True  # None: the cumulative average
            for inputs in batches:
                _run(model, inputs)
            _average_over_processes(norms)
        finally:
            for norm, momentum, before in zip(norms, momenta, known, strict=True):
                norm.momentum = momentum
                if not norm.num_batches_tracked:
                    norm.load_state_dict(before, strict=False)


def _average_over_processes(norms: list[_BatchNorm]) -> None:
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        own = int(norm.num_batches_tracked)
        count, mean, variance = total(norm.num_batches_tracked, norm.running_mean * own, norm.running_var * own)
        if int(count) > own:
            norm.running_mean.copy_(mean / count)
            norm.running_var.copy_(variance / count)
            norm.num_batches_tracked.copy_(count)


@one_at_a_time
def _run(model: nn.Module, inputs: Inputs) -> None:
    try:
        model(*inputs.args, **inputs.kwargs)
    except ValueError as problem:
        if "more than 1 value per channel" not in str(problem):
            raise
        raise HealingError(
            "a batch has but one value per channel at a batch norm, which can't be measured by it: pass larger "
            'batches, or level="lstsq", which needs no statistics'
        ) from problem
