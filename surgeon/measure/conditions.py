"""Under what conditions models are timed: the same batch, number type, memory layout and folding for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.agreement import distance
from surgeon.errors import InputError
from surgeon.folding import fold_batch_norms
from surgeon.measure.backends import Run, find_backend
from surgeon.tracing import Inputs, copied, copied_inputs, results_of

#: Number types that a model can be timed in.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
#: How the axes of images lie in memory.
LAYOUTS: Mapping[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format, "channels_last": torch.channels_last,
}  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What is done to every model and to the inputs alike before they are timed; None leaves it as it is.

    Attributes
    ----------
    dtype:
        One of :data:`DTYPES`.
    layout:
        One of :data:`LAYOUTS`.
    batch_size:
        The first example of every tensor, so many times.
    backend:
        One of :data:`surgeon.measure.BACKENDS`.
    fold_bn:
        Batch norms go into the convolutions in front of them.
    """

    dtype: str | None = None
    layout: str | None = None
    batch_size: int | None = None
    backend: str = "eager"
    fold_bn: bool = False

    def check(self) -> None:
        """Refuse what isn't known, before any work.

        Raises
        ------
        InputError
            It names the choices.
        """
        for name, value, known in (("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS)):
            if value is not None and value not in known:
                raise InputError(f"{name}={value!r}: expected one of {', '.join(known)}")
        if self.batch_size is not None and (type(self.batch_size) is not int or self.batch_size < 1):
            raise InputError(f"batch_size={self.batch_size!r}: expected a positive whole number")
        find_backend(self.backend)

    def inputs(self, inputs: Inputs) -> Inputs:
        """The inputs under these conditions."""
        if self.batch_size is not None:
            inputs = batched(inputs, self.batch_size)
        if self.dtype is not None:
            inputs = inputs.to(dtype=DTYPES[self.dtype])
        return inputs.map(self._laid_out)

    def model(self, model: nn.Module, inputs: Inputs) -> nn.Module:
        """The model under these conditions, a copy where something changes; `inputs` are already so."""
        if self.fold_bn:
            model = fold_batch_norms(model, inputs.to(dtype=_dtype_of(model)))
        elif self.dtype is not None or self.layout is not None:
            model = copied(model, {})
        if self.dtype is not None:
            model = model.to(dtype=DTYPES[self.dtype])
        if self.layout is not None:
            model = model.to(memory_format=LAYOUTS[self.layout])
        return model.eval()

    def run(self, model: nn.Module, inputs: Inputs) -> tuple[Run, float | None]:
        """The call to time, and how far what it gives is from the model's own forward (None: it is that forward).

        Each model gets inputs of its own: what another one writes there is nothing to it.
        """
        backend = find_backend(self.backend)
        run = backend.prepare(model, copied_inputs(inputs))
        return run, None if backend.exact else distance(results_of(model, inputs), run())

    def to_dict(self, inputs: Inputs) -> dict[str, Any]:
        """JSON-able; what was left as it was is read off the inputs."""
        tensors = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
        floats = [t for t in tensors if t.is_floating_point()] or tensors
        first = floats[0]
        last = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
        return {
            "backend": self.backend,
            "dtype": str(first.dtype).removeprefix("torch."),
            "layout": self.layout or ("channels_last" if last else "contiguous"),
            "batch_size": first.shape[0] if first.ndim else 1,
            "fold_bn": self.fold_bn,
        }

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if self.layout is None or tensor.ndim != 4:
            return tensor
        return tensor.contiguous(memory_format=LAYOUTS[self.layout])


def batched(inputs: Inputs, batch: int) -> Inputs:
    """The first example of every tensor, `batch` times."""
    return inputs.map(lambda t: t[:1].repeat(batch, *[1] * (t.ndim - 1)) if t.ndim else t)


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
