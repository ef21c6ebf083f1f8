"""Where a dense model came from, and building it again: the only names in a file that are ever followed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from surgeon import models as zoo
from surgeon.errors import CheckpointError, SelectionError

__all__ = ["build_origin", "check_origin", "is_followed"]

#: Keyword arguments of the builders that a file may set, with the check each value must pass.
_KWARGS: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": lambda value: type(value) is int and 1 <= value <= 1_000_000,
    "image_size": lambda value: type(value) is int and 1 <= value <= 4096,
    "aux_logits": lambda value: type(value) is bool,
    "aux_loss": lambda value: type(value) is bool,
    "init_weights": lambda value: type(value) is bool,
    "transform_input": lambda value: type(value) is bool,
    "weights_backbone": lambda value: value is None,
}


def is_followed(origin: Mapping[str, Any]) -> bool:
    """Whether an origin names a model of torchvision's or of :mod:`surgeon.models`."""
    return "torchvision" in origin or "surgeon" in origin


def check_origin(origin: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and keyword arguments of an origin, if they are ones that may be followed.

    Raises
    ------
    CheckpointError
        For a name that neither torchvision nor the zoo lists, or an argument that is not allowed.
    """
    name, kwargs = origin.get("surgeon", origin.get("torchvision")), origin.get("kwargs", {})
    if not isinstance(name, str) or not _is_known(name, own="surgeon" in origin):
        raise CheckpointError(
            f"origin {str(name)[:80]!r} is no {_place(origin)} model of this installation; pass factory="
        )
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"the origin's kwargs are {type(kwargs).__name__}, expected an object")
    for key, value in kwargs.items():
        if key not in _KWARGS or not _KWARGS[key](value):
            raise CheckpointError(
                f"the origin sets {str(key)[:80]!r} to {str(value)[:80]!r}, which is not allowed; pass factory="
            )
    return name, kwargs


def _place(origin: Mapping[str, Any]) -> str:
    return "surgeon.models" if "surgeon" in origin else "torchvision"


def _is_known(name: str, *, own: bool) -> bool:
    from torchvision.models import list_models  # late: a second of import that only files with such an origin need

    if not own:
        return name in list_models()
    try:
        zoo.find(name)
    except SelectionError:
        return False
    return True


def build_origin(origin: Mapping[str, Any], *, numbers: bool = True) -> nn.Module:
    """Build the dense model of an origin, with random weights; nothing is downloaded.

    Parameters
    ----------
    numbers:
        Without them, what is left to be filled (layers' weights) stands on the meta device and takes no memory.

    Raises
    ------
    CheckpointError
        As :func:`check_origin`, or if the builder refuses the arguments.
    """
    name, kwargs = check_origin(origin)
    make = functools.partial(zoo.build, name) if "surgeon" in origin else _torchvision(name)
    try:
        model = make(**kwargs) if numbers else _unfilled(make, kwargs)
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"{_place(origin)} can't build {name} with {kwargs}: {problem}") from problem
    assert isinstance(model, nn.Module)
    return model


def _torchvision(name: str) -> Callable[..., Any]:
    """The builder, told to download nothing."""
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    nothing = {key: None for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters}
    return lambda **kwargs: builder(**{**nothing, **kwargs})


def _unfilled(make: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        with _Unfilled():
            return make(**kwargs)
    except RuntimeError:  # some constructors run what they have built, to see its sizes
        return make(**kwargs)


class _Unfilled(TorchFunctionMode):
    """What ``torch.empty`` makes stands on the meta device; numbers that a constructor works out are there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
