"""Where the time of a forward goes, layer by layer."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from surgeon.errors import InputError
from surgeon.exclusive import one_at_a_time
from surgeon.measure.timing import quiet
from surgeon.tracing import Inputs, copied_inputs

__all__ = ["layer_latency"]


@one_at_a_time
def layer_latency(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    rounds: int = 10,
    warmup: int = 2,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, float]]:
    """Seconds that each layer (module without children) takes in one eager forward: median over interleaved rounds.

    A layer that is called several times gets the sum of its calls. Reading the clock around each layer costs time of
    its own, on CUDA even more, where the device is waited for: the shares tell, not the sums.

    Parameters
    ----------
    models:
        Name and model; all on the device of `example_inputs`.
    rounds, warmup, threads, clock:
        As for :func:`surgeon.measure.latency`.

    Returns
    -------
    dict
        Model -> layer -> seconds, in the order in which the forward calls the layers.

    Raises
    ------
    InputError
        If there is no round.
    """
    if rounds < 1:
        raise InputError(f"rounds={rounds}: expected at least 1")
    inputs = Inputs.of(example_inputs)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    given = {name: copied_inputs(inputs) for name in models}
    with quiet(models, inputs, threads), torch.inference_mode():
        for number in range(warmup + rounds):
            for name, model in models.items():
                found = _one(model, given[name], clock)
                if number >= warmup:
                    samples[name].append(found)
    return {
        name: {layer: float(np.median([one.get(layer, 0.0) for one in found])) for layer in found[-1]}
        for name, found in samples.items()
    }


def _one(model: nn.Module, inputs: Inputs, clock: Callable[[], float]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    with _watched(model, seconds, clock):
        model(*inputs.args, **inputs.kwargs)
    return dict(seconds)


@contextlib.contextmanager
def _watched(model: nn.Module, seconds: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Hooks that read the clock before and after each layer; gone afterwards."""
    started: dict[str, float] = {}
    handles = []
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}

    def now() -> float:
        for device in devices:
            torch.cuda.synchronize(device)
        return clock()

    for name, part in model.named_modules():
        if part._modules or not name:
            continue

        def before(_module: nn.Module, _args: Any, name: str = name) -> None:
            started[name] = now()

        def after(_module: nn.Module, _args: Any, _out: Any, name: str = name) -> None:
            seconds[name] += now() - started[name]

        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
