"""The model of a file before its numbers are read: its shapes are on the meta device, where they take no memory.

What a file says is compared with such a sketch before anything is allocated, and its forward, run at the file's widths
and on inputs of the file's shapes, takes neither memory nor time for them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from surgeon.checkpoint.header import Header
from surgeon.errors import CheckpointError, PlanError
from surgeon.planning import Plan
from surgeon.rewriting import rewrite
from surgeon.tracing import Inputs, in_mode, named_tensors
from surgeon.trial import replace_tensors, with_tensors

__all__ = ["bytes_of", "check_memory", "compare_dense", "cut_sketch", "fill_sketch"]


def compare_dense(path: str | os.PathLike[str], header: Header, dense: Mapping[str, Tensor]) -> None:
    """Check that a file can be what is left of this dense model: the same tensors, none of them larger.

    Raises
    ------
    CheckpointError
        With the first difference.
    """
    known = {name: header.tensors[header.aliases.get(name, name)] for name in (*header.tensors, *header.aliases)}
    for name in sorted(dense.keys() ^ known.keys()):
        told = f"of {header.class_name} is missing" if name in dense else f"doesn't belong to {header.class_name}"
        raise CheckpointError(f"{path}: tensor {name!r} {told}")
    for name, tensor in dense.items():
        shape = known[name][0]
        if len(shape) != tensor.ndim or any(size > whole for size, whole in zip(shape, tensor.shape, strict=True)):
            raise CheckpointError(
                f"{path}: {name} has shape {list(shape)}, expected a part of the dense {header.class_name}'s "
                f"{list(tensor.shape)}"
            )


def check_memory(path: str | os.PathLike[str], wanted: int) -> None:
    """Refuse what doesn't fit into the memory that is free now.

    Raises
    ------
    CheckpointError
        If it doesn't.
    """
    free = psutil.virtual_memory().available
    if wanted > free:
        raise CheckpointError(f"{path}: its model takes {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free here")


def cut_sketch(dense: nn.Module, plan: Plan, example_inputs: Any) -> nn.Module | None:
    """The cut model without numbers; None if its forward doesn't run without them.

    Integers stay: they may say where data goes.

    Raises
    ------
    PlanError
        If the plan doesn't fit the model as it is without numbers.
    """
    try:
        sketch = _without_numbers(dense)
        if not plan.removed:
            return sketch
        return rewrite(sketch, plan, _inputs(sketch, plan, example_inputs), inplace=True)
    except PlanError:
        raise
    except Exception:  # noqa: BLE001  # the forward is anybody's, and a device without numbers may stop it anywhere
        return None


def _without_numbers(model: nn.Module) -> nn.Module:
    floats = {n: t for n, t in named_tensors(model).items() if t.is_floating_point() or t.is_complex()}
    return with_tensors(model, {name: tensor.to("meta") for name, tensor in floats.items()}, {}, share=True)


def _inputs(model: nn.Module, plan: Plan, example_inputs: Any) -> Inputs:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    if example_inputs is not None:
        return Inputs.of(example_inputs).to("meta")
    return Inputs.from_spec(plan.inputs, device="meta").to(dtype=dtype)


def fill_sketch(model: nn.Module, stored: Mapping[str, Tensor]) -> bool:
    """Put the file's tensors, by their names in the state dict, into a model without numbers.

    Returns
    -------
    bool
        Whether that made it whole: it doesn't where a model keeps tensors that are not in its state dict.
    """
    first = {id(tensor): name for name, tensor in named_tensors(model).items()}
    state = model.state_dict(keep_vars=True)
    if any(id(tensor) not in first for tensor in state.values()):
        return False  # state that a hook makes up
    left = {n for n, t in named_tensors(model).items() if t.device.type == "meta"}
    if left - {first[id(tensor)] for tensor in state.values()}:
        return False
    if any(_is_missing(value) and id(value) not in first for value in _plain(model)):
        return False
    tensors = {first[id(tensor)]: _laid_out(tensor, stored[name]) for name, tensor in state.items()}
    with in_mode(model, False):  # some weights are computed when they are asked for, and change buffers in train mode
        replace_tensors(model, tensors, {})
    return True


@torch.no_grad()
def _laid_out(like: Tensor, numbers: Tensor) -> Tensor:
    """A copy of the numbers, laid out as the model's own tensor, in the precision that they are stored in."""
    return torch.empty_like(like, dtype=numbers.dtype, device="cpu", requires_grad=False).copy_(numbers)


def _plain(model: nn.Module) -> Iterator[Any]:
    """What modules hold besides parameters, buffers and modules."""
    for module in model.modules():
        registered = (module._parameters, module._buffers, module._modules)
        held = [value for value in vars(module).values() if all(value is not part for part in registered)]
        for value in held:
            yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]


def _is_missing(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def bytes_of(header: Header) -> int:
    """What the tensors of a file come to in memory."""
    return sum(math.prod(shape) * _SIZES.get(kind, 8) for shape, kind in header.tensors.values())


_SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip
