"""Batch norms that compute the same in train mode as in eval mode, once what they are given has changed.

A regression fits a layer for the statistics that the norm behind it has from the dense model. Those of what the layer
gives now are others: what can't be predicted is missing from it, so it varies less. In eval mode that is as it should
be. In train mode the norm would blow it up to its old size, errors and all, and training would begin from another model
than the healed one, often a useless one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgeon.agreement import distance
from surgeon.exclusive import one_at_a_time
from surgeon.processes import total
from surgeon.tracing import Inputs, in_mode

#: How far a norm may come from what it computed before, relative to its largest number.
_TOLERANCE = 1e-4
#: Images of a batch that a norm is tried on.
_TRIED = 4


@torch.no_grad()
def settle_norms(model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Give each batch norm the statistics of what reaches it, and scale and shift so that it computes what it did.

    In place; of several processes each has batches of its own. Left as they are: norms without scale and shift, or with
    some that others have as well; those of low precision, which would round; those that no batch reaches, or with one
    value per channel; and classes of norms that use scale and shift in a way of their own.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    users = Counter(id(tensor) for module in model.modules() for tensor in _tensors(module))
    settling = [_Settling(norm) for norm in norms if _is_plain(norm, users)]
    with in_mode(model, False):
        with ExitStack() as hooks:
            for each in settling:
                hooks.callback(each.norm.register_forward_pre_hook(each, with_kwargs=True).remove)
            for inputs in batches:
                _run(model, inputs)
        for each in settling:
            each.done()


def _tensors(module: nn.Module) -> list[Tensor | None]:
    return [*module._parameters.values(), *module._buffers.values()]


def _is_plain(norm: _BatchNorm, users: Counter[int]) -> bool:
    state = [getattr(norm, "_parameters", {}).get(name) for name in ("weight", "bias")]
    state += [norm.running_mean, norm.running_var]
    return all(t is not None and t.dtype in (torch.float32, torch.float64) and users[id(t)] == 1 for t in state)


class _Settling:
    """A norm, what has reached it, and what it is to become."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.state = [cast(Tensor, t) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        self.seen = torch.zeros(())
        self.means, self.variances = (torch.zeros_like(self.state[-1], dtype=torch.float64) for _ in range(2))
        self.tried: Tensor | None = None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at what reaches the norm (as a hook)."""
        given = args[0] if args else kwargs["input"]
        if given.numel() < 2 * given.shape[1]:
            return
        axes = [axis for axis in range(given.ndim) if axis != 1]
        variance, mean = torch.var_mean(given.to(torch.promote_types(given.dtype, torch.float32)), axes)
        self.seen += 1
        self.means += mean
        self.variances += variance
        if self.tried is None:
            self.tried = given[:_TRIED].clone()

    def done(self) -> None:
        """Change the norm, unless it turns out to compute something else then."""
        seen, means, variances = total(self.seen, self.means, self.variances)
        if not seen or not (means.isfinite() & variances.isfinite()).all():
            return
        before = [tensor.clone() for tensor in self.state]
        expected = self._result()
        self._take(means / seen, variances / seen)
        (differing,) = total(torch.tensor(float(self._differs(expected))))
        if differing:
            for tensor, old in zip(self.state, before, strict=True):
                tensor.copy_(old)

    def _take(self, mean: Tensor, variance: Tensor) -> None:
        weight, bias, old_mean, old_variance = self.state
        slope = weight.double() / (old_variance.double() + self.norm.eps).sqrt()
        bias.copy_(bias.double() + slope * (mean - old_mean.double()))
        weight.copy_(slope * (variance + self.norm.eps).sqrt())
        old_mean.copy_(mean)
        old_variance.copy_(variance)

    def _result(self) -> Any:
        return None if self.tried is None else self.norm(self.tried)

    def _differs(self, expected: Any) -> bool:
        return self.tried is not None and distance(expected, self._result()) > _TOLERANCE


@one_at_a_time
def _run(model: nn.Module, inputs: Inputs) -> None:
    model(*inputs.args, **inputs.kwargs)
