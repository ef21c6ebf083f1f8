"""Devices, precision and processes, through ``accelerate``; it is loaded when training starts, not before."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from surgeon import processes
from surgeon.errors import TuningError

__all__ = ["PRECISIONS", "hardware", "place_of", "surroundings"]

#: What ``mixed_precision`` may be.
PRECISIONS = (None, "no", "bf16", "fp16")
#: By this ``accelerate launch --use_fsdp`` says what it says.
_SHARDING = "ACCELERATE_USE_FSDP"


@contextlib.contextmanager
def hardware(
    model: nn.Module, mixed_precision: str | None, device: str | torch.device | None
) -> Iterator[tuple[Any, torch.device]]:
    """An ``Accelerator`` of its own, and where to train; accelerate's shared state is as before afterwards.

    accelerate keeps one precision for the whole process and refuses a second one, so two runs in one program, or a
    run within a program that uses accelerate itself, would otherwise disturb each other.

    Raises
    ------
    TuningError
        If the precision needs another device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [AcceleratorState._shared_state, GradientState._shared_state]
    if not _several(PartialState):
        states.append(PartialState._shared_state)
    saved = [dict(state) for state in states]
    told = _unknown_to_accelerate()
    os.environ.update(told)
    sharding = os.environ.pop(_SHARDING, None)  # tuning.sharded's affair: accelerate's needs all prepared at once
    try:
        for state in states:
            state.clear()
        wanted = torch.device(device) if device is not None else None
        try:
            accelerator = Accelerator(mixed_precision=mixed_precision, cpu=_is_cpu(wanted))
        except ValueError as problem:
            raise TuningError(
                f"mixed_precision={mixed_precision!r} can't be had here ({problem}): leave it out, or give 'no'"
            ) from problem
        place = place_of(model, accelerator, wanted)
        if accelerator.mixed_precision == "fp16" and place.type == "cpu":
            raise TuningError("mixed_precision='fp16' needs a GPU, and this run is on the CPU: use 'bf16' or None")
        yield accelerator, place
    finally:
        for name in told:
            os.environ.pop(name, None)
        if sharding is not None:
            os.environ[_SHARDING] = sharding
        for state, content in zip(states, saved, strict=True):
            state.clear()
            state.update(content)


def place_of(model: nn.Module, accelerator: Any, wanted: torch.device | None) -> torch.device:
    """Where to train: as asked, else where the model is unless that is the CPU, else what accelerate found."""
    if wanted is not None:
        return wanted
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: torch.device = accelerator.device
    return found if accelerator.num_processes > 1 or own.type == "cpu" else own


def surroundings(accelerator: Any, device: torch.device, *, wrapped: bool, sharded: bool = False) -> dict[str, Any]:
    """What the last bits of a result depend on beside the data and the options: each of these rounds in its own way.

    Parameters
    ----------
    wrapped:
        Whether another module stands around the model that is trained: a compiled one computes in another order.
    sharded:
        Whether gradients are summed in shards.
    """
    on_cpu = device.type == "cpu"
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}" if on_cpu else _name(device)
    return {
        "torch": str(torch.__version__),
        "device": name,
        "threads": torch.get_num_threads() if on_cpu else None,
        "processes": f"{accelerator.num_processes}, sharded" if sharded else accelerator.num_processes,
        "compiled": wrapped,
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _unknown_to_accelerate() -> dict[str, str]:
    """What accelerate reads off the environment, where a program has joined its processes without telling it there."""
    if processes.count() == 1 or "WORLD_SIZE" in os.environ:
        return {}
    local = torch.cuda.current_device() if torch.cuda.is_available() else processes.rank()
    known = {"WORLD_SIZE": processes.count(), "RANK": processes.rank(), "LOCAL_RANK": local}
    # they are together already: nobody is called under this address
    return {**{name: str(value) for name, value in known.items()}, "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def _is_cpu(wanted: torch.device | None) -> bool:
    return wanted is not None and wanted.type == "cpu"


def _several(state: Any) -> bool:
    """Whether this is one of several processes, whose group must stay as it is."""
    return bool(state._shared_state) and state().num_processes > 1
