"""Interleaved rounds: each times every model once, in an order that rotates."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.errors import InputError
from surgeon.exclusive import one_at_a_time
from surgeon.measure.backends import BACKENDS
from surgeon.measure.clocks import Call, Timer, calibrate, stopwatch_for
from surgeon.measure.conditions import Conditions
from surgeon.measure.results import Comparison, Latency
from surgeon.tracing import Inputs, as_before

_SAMPLE_SECONDS = 0.02
#: Fast models get at most so many rounds, to fill so many seconds.
_MOST_ROUNDS, _SECONDS = 120, 3.0


def rounds_for(seconds: float, least: int) -> int:
    """Rounds of so many seconds each: the median of a few milliseconds is as uncertain as they are few."""
    return max(least, min(_MOST_ROUNDS, round(_SECONDS / seconds))) if seconds else least


@one_at_a_time
def latency(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    rounds: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    dtype: str | None = None,
    layout: str | None = None,
    batch_size: int | None = None,
    backend: str = "eager",
    fold_bn: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Time one forward of each model on the same inputs, in eval and inference mode.

    The models, their modes and the number of threads are as before afterwards. On CUDA the device's own events are
    read. Whatever is done to the models before is done to all of them.

    Parameters
    ----------
    models:
        Name and model; all on the device of `example_inputs`.
    example_inputs:
        A tensor, a tuple of arguments, or :class:`surgeon.Inputs`.
    rounds:
        Timed rounds; each times every model once.
    warmup:
        Untimed forwards of each model before.
    threads:
        Number of intra-op CPU threads; None leaves it.
    dtype:
        ``"float32"``, ``"bfloat16"`` or ``"float16"``; None leaves the models as they are.
    layout:
        ``"contiguous"`` or ``"channels_last"``; None leaves it.
    batch_size:
        The first example of every tensor, so many times; None takes the inputs as they are.
    backend:
        ``"eager"``, ``"compile"`` (``torch.compile``) or ``"onnxruntime"``. What the others give is compared with the
        model's own forward; see :attr:`Comparison.differences`.
    fold_bn:
        Fold batch norms into the convolutions in front of them, in a copy that is checked.
    clock:
        Seconds; for CPU.
    progress:
        Called with ("measure", rounds done, rounds).

    Raises
    ------
    InputError
        If there is no model, no round, no tensor, no such condition, or a package that a back end needs isn't there.
    ModelError
        If folding would change what a model computes.
    """
    if not models or rounds < 1 or warmup < 0 or (threads is not None and threads < 1):
        raise InputError(
            f"latency needs models, rounds >= 1, warmup >= 0 and threads >= 1; got {len(models)} models, "
            f"rounds={rounds}, warmup={warmup}, threads={threads}"
        )
    conditions = Conditions(dtype, layout, batch_size, backend, fold_bn)
    conditions.check()
    inputs = conditions.inputs(Inputs.of(example_inputs))
    device = next(leaf.device for leaf in inputs.leaves() if isinstance(leaf, torch.Tensor))
    with quiet(models, inputs, threads):
        models = {name: conditions.model(model, inputs) for name, model in models.items()}
        with torch.inference_mode():
            calls, differences = _prepared(conditions, models, inputs)
            stopwatch = stopwatch_for(device, clock)
            counts = {name: calibrate(call, stopwatch, warmup, _SAMPLE_SECONDS) for name, call in calls.items()}
            timers = {name: Timer(call, stopwatch, counts[name]) for name, call in calls.items()}
            samples = interleave(timers, rounds, progress)
        used = torch.get_num_threads()
    latencies = tuple(Latency.of(name, values, counts[name], timers[name].system) for name, values in samples.items())
    told = {**conditions.to_dict(inputs), "versions": versions(backend)}
    return Comparison(latencies, samples, str(device), used, told, differences)


def _prepared(
    conditions: Conditions, models: Mapping[str, nn.Module], inputs: Inputs
) -> tuple[dict[str, Call], dict[str, float]]:
    """The call of each model, and how far its outputs are from the model's own."""
    calls: dict[str, Call] = {}
    differences: dict[str, float] = {}
    for name, model in models.items():
        calls[name], difference = conditions.run(model, inputs)
        if difference is not None:
            differences[name] = difference
    return calls, differences


def versions(backend: str = "eager") -> dict[str, str]:
    """Versions of what runs the models."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": str(torch.__version__)}
    for package in BACKENDS[backend].needs:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def interleave(
    timers: Mapping[str, Callable[[], float]],
    rounds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, tuple[float, ...]]:
    """Ask every timer once a round; the order rotates by one each round, so no model is always first."""
    names = list(timers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            samples[name].append(timers[name]())
        if progress is not None:
            progress("measure", number + 1, rounds)
    return {name: tuple(values) for name, values in samples.items()}


@contextlib.contextmanager
def quiet(models: Mapping[str, nn.Module], inputs: Inputs, threads: int | None) -> Iterator[None]:
    """Eval mode and a fixed number of threads; these and the models are as before afterwards."""
    before = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        for model in models.values():
            stack.enter_context(as_before(model, inputs))
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
