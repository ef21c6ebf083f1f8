"""Where a dense model came from, and building it again: the only name in a file that is ever followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from surgeon.errors import CheckpointError

__all__ = ["build_origin", "check_origin"]

#: Keyword arguments of torchvision's builders that a file may set, with the check each value must pass.
_KWARGS: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": lambda value: type(value) is int and 1 <= value <= 1_000_000,
    "image_size": lambda value: type(value) is int and 1 <= value <= 4096,
    "aux_logits": lambda value: type(value) is bool,
    "aux_loss": lambda value: type(value) is bool,
    "init_weights": lambda value: type(value) is bool,
    "transform_input": lambda value: type(value) is bool,
    "weights_backbone": lambda value: value is None,
}


def check_origin(origin: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The torchvision name and keyword arguments of an origin, if they are ones that may be followed.

    Raises
    ------
    CheckpointError
        For a name that torchvision doesn't list, or an argument that is not allowed.
    """
    from torchvision.models import list_models  # late: a second of import that only files with such an origin need

    name, kwargs = origin.get("torchvision"), origin.get("kwargs", {})
    if not isinstance(name, str) or name not in list_models():
        raise CheckpointError(f"origin {str(name)[:80]!r} is no torchvision model of this installation; pass factory=")
    if not isinstance(kwargs, dict):
        raise CheckpointError(f"the origin's kwargs are {type(kwargs).__name__}, expected an object")
    for key, value in kwargs.items():
        if key not in _KWARGS or not _KWARGS[key](value):
            raise CheckpointError(
                f"the origin sets {str(key)[:80]!r} to {str(value)[:80]!r}, which is not allowed; pass factory="
            )
    return name, kwargs


def build_origin(origin: Mapping[str, Any]) -> nn.Module:
    """Build the dense torchvision model of an origin, with random weights; nothing is downloaded.

    Raises
    ------
    CheckpointError
        As :func:`check_origin`, or if torchvision refuses the arguments.
    """
    from torchvision.models import get_model

    name, kwargs = check_origin(origin)
    try:
        model = get_model(name, weights=None, **kwargs)
    except (TypeError, ValueError) as problem:
        raise CheckpointError(f"torchvision can't build {name} with {kwargs}: {problem}") from problem
    assert isinstance(model, nn.Module)
    return model
