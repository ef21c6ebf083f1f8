"""A model's own forward, run for real rather than recorded: what it writes to is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from surgeon.contents import tensors_in
from surgeon.exclusive import ONE_AT_A_TIME
from surgeon.tracing.guard import in_mode, put_back
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.members import modules


def results_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors in what one forward in eval mode returns, in a fixed order; it leaves nothing behind.

    They are copies: a forward may return what it keeps.
    """
    with running(model, inputs) as call, torch.no_grad():
        return [tensor.clone() for tensor in tensors_in(call())]


@contextlib.contextmanager
def running(model: nn.Module, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """The model's forward in eval mode, as a function of nothing that the body may call as often as it likes.

    It runs on copies of the inputs, made once; the model is as before afterwards, as :func:`as_before` has it.
    """
    own = copied_inputs(inputs)
    with ONE_AT_A_TIME, as_before(model, inputs):
        yield lambda: model(*own.args, **own.kwargs)


def copied_inputs(inputs: Inputs) -> Inputs:
    """Inputs that a forward may write to: copies of the tensors, one that is given twice still one."""
    made: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return made[id(tensor)]

    with torch.inference_mode(False):  # an exporter can't read what is made in it
        return inputs.map(copied)


@contextlib.contextmanager
def as_before(model: nn.Module, inputs: Inputs | None = None) -> Iterator[None]:
    """Run the body with the model in eval mode; what its forwards leave behind is put back.

    That is what :class:`Kept` knows of, the numbers in buffers, and the state of the generators of random numbers (also
    of the devices that `inputs` are on). Parameters aren't looked after: a copy of each would take as much memory as
    the model.
    """
    parts = modules(model)
    given = inputs.leaves() if inputs is not None else []
    held = [*(p for part in parts for p in part._parameters.values()), *given]
    with put_back(parts, (tensor for tensor in held if isinstance(tensor, Tensor))):
        buffers = _Buffers(parts)
        try:
            with in_mode(model, False):
                yield
        finally:
            buffers.restore()


class _Buffers:
    """The numbers in the buffers of modules, as they were when this was made."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        held = {id(buffer): buffer for part in parts for buffer in part._buffers.values() if _has_numbers(buffer)}
        self._saved = [(buffer, buffer.detach().clone()) for buffer in held.values()]

    def restore(self) -> None:
        """Put them back, where they changed: a graph of the caller's may have noted which version it read."""
        for buffer, numbers in self._saved:
            if not torch.equal(buffer, numbers):
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(numbers)


def _has_numbers(buffer: Tensor | None) -> TypeGuard[Tensor]:
    if buffer is None or isinstance(buffer, UninitializedBuffer):
        return False
    return buffer.layout is torch.strided and buffer.device.type != "meta"
