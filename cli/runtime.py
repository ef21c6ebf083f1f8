"""Devices, and the first forward of a model."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import surgeon
from surgeon.checkpoint import Header, check_origin, load, read_header
from surgeon.cost.tables import device_name
from surgeon.errors import CheckpointError, InputError
from surgeon.tracing import Inputs, check_model, in_mode

from .files import is_file

if TYPE_CHECKING:
    from .subjects import Subject

_ANY = "package.module:factory"
_MAKER = re.compile(r"[\w.]{1,80}:[\w.]{1,80}")


def pick_device(name: str, threads: int | None = None) -> torch.device:
    """The device of that name, tried out; "auto" is CUDA where there is one, else the CPU.

    `threads` says with how many the CPU computes from now on; None leaves it.

    Raises
    ------
    InputError
        If there is no such device here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
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
    example = made.normalise(pixels).to(device, _dtype_of(model) or torch.float32)
    return example, _outputs(subject.name, model, Inputs.of(example))


def _outputs(name: str, model: nn.Module, images: Inputs) -> Any:
    """What the model's forward returns for the images."""
    try:
        with torch.inference_mode(), in_mode(model, False):
            return model(*images.args, **images.kwargs)
    except Exception as problem:  # a forward is the user's code and may raise anything
        shape = tuple(images.leaves()[0].shape)
        told = (str(problem).splitlines() or [""])[0]
        raise InputError(
            f"{name}: its forward rejects images of shape {shape}: {type(problem).__name__}: {told}. "
            "Give the size it needs with --image-size, or use surgeon.prune in Python for other inputs"
        ) from problem


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def about(device: torch.device | None = None) -> dict[str, str]:
    """What a report says of the run: the device, the number of threads, versions, the command."""
    return {
        "device": device_name(device or torch.device("cpu")),
        "threads": str(torch.get_num_threads()),
        "versions": f"surgeon {surgeon.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "command": shlex.join(["surgeon", *sys.argv[1:]]),
    }


@dataclass(frozen=True)
class Opened:
    """What an argument MODEL_OR_FILE stands for: a model with inputs for it; `header` is a file's."""

    name: str
    model: nn.Module
    inputs: Inputs
    header: Header | None = None
    warnings: tuple[str, ...] = ()


def open_model(name: str, factory: str | None, image_size: int | None, *, weights: str | None) -> Opened:
    """The model that an argument MODEL_OR_FILE means, on the CPU.

    Parameters
    ----------
    factory:
        What `--factory` says, for a file.
    image_size:
        What `--image-size` says; None: as the model has it, or as the file remembers it.
    weights:
        As `--weights`, for a name; those of a factory stay.

    Raises
    ------
    SurgeonError, OSError
        If there is no such model, or the file can't be opened.
    """
    from .models import resolve

    if is_file(name):
        header, make = header_of(name, factory)
        model = load(name, make)
        return Opened(name, model, inputs_of(name, header, model, image_size), header)
    subject = resolve(name, weights, image_size=image_size)
    example, _ = try_forward(subject.model, subject, torch.device("cpu"))
    return Opened(name, subject.model, Inputs.of(example), warnings=subject.warnings)


def inputs_of(path: str, header: Header, model: nn.Module, image_size: int | None) -> Inputs:
    """What a file's model takes: as its plan remembers it, or images of another size.

    Raises
    ------
    InputError
        If it takes no images, or none of that size.
    """
    inputs = Inputs.from_spec(header.plan.inputs).to(dtype=_dtype_of(model))
    if image_size is None:
        return inputs
    leaves = inputs.leaves()
    if len(leaves) != 1 or not isinstance(leaves[0], torch.Tensor) or leaves[0].ndim != 4:
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
        raise InputError(f"--image-size {image_size}: {path} takes no images, but inputs of shape {shapes}")
    shape = (*leaves[0].shape[:2], image_size, image_size)
    images = Inputs.from_spec(inputs.map(lambda leaf: torch.empty(shape, dtype=leaf.dtype, device="meta")).spec())
    _outputs(path, model, images)
    return images


def header_of(path: str, factory: str | None) -> tuple[Header, Callable[[], nn.Module] | None]:
    """The header of a file, and what makes its dense model: None where the file's own origin is followed.

    Parameters
    ----------
    factory:
        As ``--factory``: makes the dense model, with as many outputs as the file has.

    Raises
    ------
    CheckpointError
        If the file is damaged, or there is no `factory` and the file's origin is not followed.
    OSError
        If it can't be read.
    """
    header = read_header(path)
    if factory is not None:
        return header, _maker(factory, _classes_of(header))
    try:
        if header.graph is None:
            check_origin(header.origin or {})
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: holds a {header.class_name} {_wanted(header)}") from problem
    return header, None


def _maker(name: str, classes: int | None) -> Callable[[], nn.Module]:
    from .models import resolve

    return lambda: resolve(name, "none", classes=classes, option="--factory").model


def _classes_of(header: Header) -> int | None:
    """How many outputs the dense model was made with, if that was said and some tensor of the file has as many rows."""
    kwargs = (header.origin or {}).get("kwargs")
    count = kwargs.get("num_classes") if isinstance(kwargs, dict) else None
    rows = {shape[0] for shape, _ in header.tensors.values() if shape}
    return count if type(count) is int and count in rows else None


def _wanted(header: Header) -> str:
    """Where a file's model is from, and what to give for it."""
    told = {name: value for name, value in (header.origin or {}).items() if name not in ("preprocess", "classes")}
    maker = maker_named_in(told)
    if maker != _ANY:
        return f"that {maker} made; a file makes no code run by itself: give --factory {maker}"
    origin = json.dumps(told)[:200] if told else "unknown"
    return f"whose origin ({origin}) is not followed; give --factory {_ANY}, a callable that makes the dense model"


def maker_named_in(origin: Mapping[str, Any]) -> str:
    """What an origin says made the model, for the user to judge; never followed by itself."""
    told = f"timm:{origin['timm']}" if "timm" in origin else str(origin.get("factory"))
    return told if _MAKER.fullmatch(told) else _ANY
