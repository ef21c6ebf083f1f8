"""The exactness oracle: is a pruned model the dense one with the removed channels silenced?

It shares no code with surgeon's own verification and records nothing. It takes the user's dense model, silences
what was cut and runs the user's own forward of both. What was cut it reads from ``Fit.source(name)``: where each
element of the small tensor stood in the dense one.

Silencing sets every float parameter's and buffer's elements that are not in `source` to zero. That is exact because:

- a contraction sums over removed in-channels with weight zero (its removed out-channels don't matter);
- ``q @ k`` has no weight of its own, but q and k come from Linear layers (through a norm at most), so the removed rows
  are zero through their own weights and biases;
- a weighted sum over channels has zero weights there; recurrent layers keep a state of exactly zero;
- pointwise operators, pooling and batch norm keep channels apart, so what a removed channel holds never matters.

Statistics over channels need more, since a zero still counts in a mean: they run over kept channels only.

- ``F.layer_norm``, ``F.rms_norm`` and ``F.group_norm`` (so their modules too, and functional use) are intercepted; the
  mask is what `source` keeps of their weight. Test networks therefore always give these norms a weight.
- A module that takes such statistics by hand has a method ``silenced(x, mask)``, its own truth
  (`tests.blocks.base.Mixer`). The mask is that of its ``weight``; a module without one says in ``masked_by`` which
  parameter of the model makes its channels, and gets the mask of that one's first axis.
- Weight norm divides by the norm of a filter: a filter that goes as a whole keeps its direction (zero would be
  0 / 0) and loses its magnitude, one that loses in-channels has zeros there.

The small model's tensors are not assumed to be slices of the dense ones (the softmax scale may be folded into q).
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

TOLERANCE = 1e-9  # relative to the largest value of an output, float64

Source = Callable[[str], Tensor]


class OracleError(AssertionError):
    """The pruned model is not what it must be."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    `error` is the largest difference of any output relative to that output's largest value, `effect` the same between
    the dense model as it was and silenced (zero: the comparison can't tell), `removed` the number of elements cut.
    """

    error: float
    effect: float
    removed: int


class _KeptStatistics(TorchFunctionMode):
    """Norms over channels see the kept ones only; `masks` maps the id of a norm's weight to what is kept."""

    def __init__(self, masks: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masked = MASKED.get(func)
        if masked is None:
            return func(*args, **kwargs or {})
        return masked(self.masks, func, *args, **kwargs or {})


def _layer_norm(
    masks: Mapping[int, Tensor],
    func: Any,
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    mask = masks.get(id(weight))
    if mask is None or weight is None:
        return func(x, shape, weight, bias, eps)  # type: ignore[no-any-return]
    axes = tuple(range(-len(shape), 0))
    share = mask.to(x.dtype) / mask.sum()
    mean = (x * share).sum(axes, keepdim=True)
    variance = ((x - mean).square() * share).sum(axes, keepdim=True)
    # contiguous, as what it replaces: the user may view it
    y = ((x - mean) / (variance + eps).sqrt() * weight).contiguous()
    return y if bias is None else y + bias


def _rms_norm(
    masks: Mapping[int, Tensor],
    func: Any,
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    mask = masks.get(id(weight))
    if mask is None or weight is None:
        return func(x, shape, weight, eps)  # type: ignore[no-any-return]
    share = mask.to(x.dtype) / mask.sum()
    square = (x.square() * share).sum(tuple(range(-len(shape), 0)), keepdim=True)
    return (x / (square + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt() * weight).contiguous()


def _group_norm(
    masks: Mapping[int, Tensor],
    func: Any,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    mask = masks.get(id(weight))
    if mask is None or weight is None:
        return func(x, groups, weight, bias, eps)  # type: ignore[no-any-return]
    y = x.reshape(x.shape[0], groups, -1, x[0, 0].numel())
    # a group that is gone as a whole: any finite number will do, nobody reads it
    share = mask.view(1, groups, -1, 1).expand_as(y[:1]).to(x.dtype)
    share = share / share.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (y * share).sum((2, 3), keepdim=True)
    variance = ((y - mean).square() * share).sum((2, 3), keepdim=True)
    ones = (1,) * (x.ndim - 2)
    z = ((y - mean) / (variance + eps).sqrt()).view(x.shape) * weight.view(-1, *ones)
    return z if bias is None else z + bias.view(-1, *ones)


MASKED: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
}


def kept(tensor: Tensor, source: Tensor) -> Tensor:
    """A mask of `tensor`'s shape, true where `source` names an element."""
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[source.to(tensor.device)] = True
    return mask.view(tensor.shape)


def silence(dense: nn.Module, source: Source) -> tuple[nn.Module, dict[int, Tensor]]:
    """A float64 copy of `dense` with the cut elements silenced, and the masks of what may be a norm's weight."""
    model = _copied(dense)
    masks: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for name, tensor in _floats(model):
        mask = kept(tensor, source(name))
        if bool(mask.all()):
            continue
        masks[id(tensor)], named[name] = mask, mask.flatten(1).any(1) if mask.ndim > 1 else mask
        magnitude = _magnitude(model, name) if isinstance(tensor, nn.Parameter) else None
        if magnitude is not None:
            axes = tuple(axis for axis in range(mask.ndim) if magnitude.shape[axis] == 1)
            mask = mask | ~mask.sum(axes, keepdim=True).bool()
        with torch.no_grad():
            tensor.masked_fill_(~mask, 0.0)
    for module in model.modules():
        truth, maker = getattr(module, "silenced", None), getattr(module, "masked_by", None)
        seen = masks.get(id(getattr(module, "weight", None))) if maker is None else named.get(str(maker))
        if truth is not None and seen is not None:
            module.register_forward_hook(functools.partial(_replaced, truth, seen))
    return model, masks


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What can be silenced: float parameters and buffers by name."""
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def _copied(model: nn.Module) -> nn.Module:
    """A float64 copy in eval mode; a weight that a hook computes before each forward may hold a graph."""
    computed = [t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor)]
    return copy.deepcopy(model, {id(t): t.detach() for t in computed if not t.is_leaf}).double().eval()


def _magnitude(model: nn.Module, name: str) -> Tensor | None:
    """The magnitude of which the parameter `name` is the direction, where weight norm took a weight apart."""
    for direction, magnitude in (("parametrizations.weight.original1", "original0"), ("weight_v", "weight_g")):
        if name.endswith(direction):
            return model.get_parameter(name.removesuffix(direction.rpartition(".")[2]) + magnitude)
    return None


def _replaced(truth: Callable[[Tensor, Tensor], Tensor], mask: Tensor, _: nn.Module, args: Any, __: Any) -> Tensor:
    return truth(args[0], mask)


def compare(dense: nn.Module, small: nn.Module, source: Source, *args: Any, **kwargs: Any) -> Verdict:
    """Run the silenced dense model and the small one on ``(*args, **kwargs)`` (float64 where they are float).

    Each draws its random numbers from one seed.

    Raises
    ------
    OracleError
        If the outputs differ in structure, in shape, or by more than `TOLERANCE`.
    """
    cuts = _sizes(dense, small, source)
    model, masks = silence(dense, source)
    with torch.no_grad():
        before = _outputs(_seeded(_copied(dense), *args, **kwargs))
        with _KeptStatistics(masks):
            wanted = _outputs(_seeded(model, *args, **kwargs))
        got = _outputs(_seeded(_copied(small), *args, **kwargs))
    if got[1] != wanted[1]:
        raise OracleError(f"outputs have another structure: {got[1]}, expected {wanted[1]}")
    verdict = Verdict(_distance(wanted[0], got[0]), _distance(wanted[0], before[0]), cuts)
    if not verdict.error < TOLERANCE:
        raise OracleError(f"outputs differ by {verdict.error:.2e} of their scale ({cuts} elements cut)")
    return verdict


def _seeded(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(*args, **kwargs)


def _sizes(dense: nn.Module, small: nn.Module, source: Source) -> int:
    """How many elements are gone; every small tensor must be as large as its source, without repeats."""
    sizes = {name: tensor.numel() for name, tensor in small.named_parameters()}
    odd = sizes.keys() ^ dict(dense.named_parameters()).keys()
    if odd:
        raise OracleError(f"parameters renamed, lost, or no longer tied: {sorted(odd)}")
    removed = 0
    for name, tensor in dense.named_parameters():
        index = source(name)
        if sizes.get(name) != index.numel() or torch.bincount(index, minlength=1).max() > 1:
            raise OracleError(f"{name}: {sizes.get(name)} elements, source has {index.numel()}")
        removed += tensor.numel() - index.numel()
    return removed


def _outputs(value: Any) -> tuple[list[Tensor], Any]:
    leaves, structure = tree_flatten(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], structure


def _distance(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference of any output relative to its own scale; infinite if a shape differs.

    An output that is all zero must be so on both sides; one at least must say more than that.
    """
    worst, said = 0.0, False
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        scale = float(a.abs().max()) if a.numel() else 0.0
        if scale == 0.0 and b.any():
            return float("inf")
        if scale > 0.0:
            worst, said = max(worst, float((a - b).abs().max()) / scale), True
    if not said:
        raise OracleError("all outputs are zero: nothing can be said")
    return worst
