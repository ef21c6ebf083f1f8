"""Devices, and the first forward of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from surgeon.errors import InputError
from surgeon.tracing import check_model

if TYPE_CHECKING:
    from .models import Subject


def pick_device(name: str) -> torch.device:
    """The device of that name, tried out; "auto" is CUDA where there is one, else the CPU.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        first = str(problem).splitlines()[0]
        raise InputError(
            f"--device {name} can't be used here ({first}); give cpu, or cuda where there is one"
        ) from problem
    if device.type == "meta":
        raise InputError("--device meta holds no numbers; give cpu, or cuda where there is one")
    return device


def try_forward(model: nn.Module, subject: Subject, device: torch.device) -> tuple[torch.Tensor, Any]:
    """Example inputs of shape (1, C, H, W) on which the model's forward runs, and what it returns for them.

    Raises
    ------
    ModelError
        If the model is of a kind that can't be traced.
    InputError
        If it rejects them; the model's own message is in the error.
    """
    check_model(model)
    made = subject.preprocess
    pixels = torch.randint(0, 256, (1, made.channels, made.size, made.size), generator=torch.Generator().manual_seed(0))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    example = made.normalise(pixels).to(device, dtype)
    try:
        with torch.inference_mode():
            outputs = model(example)
    except Exception as problem:  # a forward is the user's code and may raise anything
        shape = tuple(example.shape)
        told = (str(problem).splitlines() or [""])[0]
        raise InputError(
            f"{subject.name}: its forward rejects images of shape {shape}: {type(problem).__name__}: {told}. "
            "Give the size it needs with --image-size, or use surgeon.prune in Python for other inputs"
        ) from problem
    return example, outputs


def is_file(name: str) -> bool:
    """Whether an argument MODEL_OR_FILE means a pruned file."""
    return Path(name).is_file() or name.endswith(".safetensors")


def factory_of(name: str | None) -> Callable[[], nn.Module] | None:
    """The callable behind ``--factory package.module:factory``."""
    from .models import import_factory

    return None if name is None else import_factory(name)
