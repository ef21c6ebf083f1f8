"""Forward and backward as CUDA graphs: a small network's step waits for Python otherwise, not for the GPU.

A replayed pass launches the very kernels that the recorded one launched. Batches of another shape, and eval mode, run
as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Replayed", "replaying"]


def _autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    # without a cache: casts of weights must be part of what is replayed, since training changes the weights
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)


@contextlib.contextmanager
def replaying(model: nn.Module, sample: Tensor, precision: str) -> Iterator[None]:
    """In the body the model's training steps on batches shaped as the sample are replayed; buffers are kept."""
    plain, was = model.forward, model.training
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _autocast(precision):
        graphed: Any = torch.cuda.make_graphed_callables(model.train(), (sample,))
    recorded = graphed.forward
    for name, buffer in model.named_buffers():  # the passes before the recording were no training
        buffer.copy_(buffers[name])
    model.train(was)
    model.forward = lambda x: (recorded if x.shape == sample.shape else plain)(x)
    try:
        yield
    finally:
        del model.forward


class Replayed(nn.Module):
    """A teacher, recorded once in eval mode without gradients."""

    def __init__(self, model: nn.Module, sample: Tensor, precision: str) -> None:
        super().__init__()
        self.model, self._input, self._graph = model.eval(), sample.clone(), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), _autocast(precision):
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose their kernels and take their workspaces
                    model(self._input)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._output: Tensor = model(self._input)

    def forward(self, x: Tensor) -> Tensor:
        """The scores, good until the next call."""
        if x.shape != self._input.shape:
            scores: Tensor = self.model(x)
            return scores
        self._input.copy_(x)
        self._graph.replay()
        return self._output
