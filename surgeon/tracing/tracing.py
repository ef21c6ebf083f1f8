"""Trace a model: by shapes alone where nothing in its forward asks for numbers, else by one real forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.exclusive import ONE_AT_A_TIME
from surgeon.tracing.copying import copied
from surgeon.tracing.guard import check_model
from surgeon.tracing.indices import is_place
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.members import named_tensors
from surgeon.tracing.recording import Trace, Unfinished, record, record_once

_PLAIN = frozenset({Tensor, nn.Parameter})


def trace(model: nn.Module, example_inputs: Any, *, real: bool = False, explore: bool = True) -> Trace:
    """Run `model` once in eval mode and record every ATen call.

    The model is as before afterwards (mode, buffers, RNG, hooks), also when its forward raises.

    Parameters
    ----------
    model:
        Any eager module, on any device, in any floating-point type.
    example_inputs:
        A tensor, a tuple of arguments, or :class:`Inputs`.
    real:
        Run on the model's own device. Else shapes are all that is computed, and places to read at (a copy without other
        numbers runs on the meta device), unless the forward asks for numbers, can't run so, or might run otherwise.
    explore:
        Where the data steers the forward and layers stay unreached, record passes that go other ways.

    Raises
    ------
    ModelError
        For what can't be traced: a ScriptModule, a quantised or lazily initialised model.
    InputError
        If `example_inputs` holds no tensor.
    Exception
        Whatever the model's own forward raises comes through as it is.
    """
    module, inputs = check_model(model), Inputs.of(example_inputs)
    found = None if real else _by_shapes(module, inputs)
    if found is not None:
        return found
    try:
        return record(module, inputs, explore=explore)
    except Unfinished as stop:
        error = stop.__cause__
        assert error is not None
        raise error from None


def _by_shapes(model: nn.Module, inputs: Inputs) -> Trace | None:
    """What a real forward's recording would be; None where numbers have a say in it, or might."""
    tensors = named_tensors(model)
    given = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
    device = _only_device([*tensors.values(), *given])
    kind = _only_kind(tensors.values(), given)
    if device is None or kind is None or torch.is_autocast_enabled(device.type):
        return None
    empty = {name: _without_numbers(tensor) for name, tensor in tensors.items()}
    try:
        with ONE_AT_A_TIME:
            found = record_once(copied(model, empty, share=True), inputs.to("meta"), blind=True)
    except Exception:  # noqa: BLE001  # what the user's forward raises without numbers says nothing about it
        return None
    if not _holds_for_real(found, kind):
        return None
    _name_device(found, device)
    known = {name: tensors[name].detach() for name in found.tensors}
    return replace(found, model=model, inputs=inputs, tensors=known, by_shapes=True)


def _without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of that shape; one of whole numbers may say where to look, and stays."""
    whole = not (_is_number(tensor) or tensor.dtype is torch.bool)
    return tensor.to("cpu") if whole else torch.empty_like(tensor, device="meta")


def _only_device(tensors: Iterable[Tensor]) -> torch.device | None:
    """The device that all of these are on, as plain strided tensors; None for several, and for the meta device."""
    devices: set[torch.device] = set()
    for tensor in tensors:
        if type(tensor) not in _PLAIN or tensor.layout is not torch.strided or tensor.is_inference():
            return None
        devices.add(tensor.device)
    device = devices.pop() if len(devices) == 1 else None
    return None if device is None or device.type == "meta" else device


def _only_kind(tensors: Iterable[Tensor], given: Iterable[Tensor]) -> torch.dtype | None:
    """The type of all numbers; None for several, and where an input holds none.

    Whole numbers in an input say where to look, which may be out of range; kernels that compute nothing don't ask
    whether types go together. Both are for the real forward to find.
    """
    kinds = {tensor.dtype for tensor in tensors if _is_number(tensor)} | {tensor.dtype for tensor in given}
    return kinds.pop() if len(kinds) == 1 and all(map(_is_number, given)) else None


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _holds_for_real(found: Trace, kind: torch.dtype) -> bool:
    """Whether a real forward would be recorded alike: no call's result depends on numbers or on memory."""
    for node in found.graph.nodes:
        if any(isinstance(value, torch.device) for value in node.args) or node.target in _BY_MEMORY:
            return False
        if node.meta.get("dtype", kind) not in (kind, torch.bool) and not _says_where(node):
            return False
    return True


def _name_device(found: Trace, device: torch.device) -> None:
    """Let calls that name the meta device name the model's own."""
    for node in found.graph.nodes:
        if node.kwargs.get("device") == _META:
            node.kwargs = {**node.kwargs, "device": device}


def _says_where(node: fx.Node) -> bool:
    """Whether a value was computed for real, and serves to make others of that kind or says where to read."""
    return "known" in node.meta and all("known" in user.meta or is_place(user, node) for user in node.users)


_META = torch.device("meta")
#: Their strides are those of memory, which may lie otherwise for real.
_BY_MEMORY = frozenset({torch.ops.aten.as_strided.default})
