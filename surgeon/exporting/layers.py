"""A layer of torch.nn as the call that makes it: ``nn.Conv2d(3, 37, 3, padding=1, bias=False)``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from surgeon.errors import ExportError

__all__ = ["constructor"]

_PLAIN = (bool, int, float, str, tuple, type(None))
_SKIPPED = frozenset({"self", "device", "dtype", "_weight", "_freeze"})


def constructor(name: str, layer: nn.Module) -> str:
    """The call that makes a layer with tensors and attributes like these.

    Raises
    ------
    ExportError
        If no call does.
    """
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind:
        raise ExportError(f"{name} is a {kind.__name__}, no layer of torch.nn: export it as onnx or pt2")
    given = dict(_arguments(layer))
    try:
        made = kind(**given)
    except Exception as problem:  # the layer may hold what its constructor never gave it
        raise ExportError(f"{name}: no call of nn.{kind.__name__} makes it: {problem}") from problem
    if _facts(made) != _facts(layer):
        raise ExportError(f"{name}: no call of nn.{kind.__name__} makes a layer like it: export it as onnx or pt2")
    return f"nn.{kind.__name__}({', '.join(_written(kind, given))})"


def _arguments(layer: nn.Module) -> Any:
    """Arguments that differ from the constructor's defaults, read off the attributes of the same names."""
    for name, parameter in _parameters(type(layer)).items():
        value = _value(layer, name, parameter.default)
        if value is not parameter.empty and (parameter.default is parameter.empty or value != parameter.default):
            yield name, value


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The constructor's parameters, of which recurrent layers say nothing themselves."""
    base = nn.RNNBase if issubclass(kind, nn.RNNBase) else kind
    skipped = _SKIPPED | ({"mode"} if base is nn.RNNBase else set())
    return {n: p for n, p in inspect.signature(base.__init__).parameters.items() if n not in skipped}


def _value(layer: nn.Module, name: str, default: Any) -> Any:
    if name == "bias" and isinstance(layer, nn.MultiheadAttention):
        return layer.in_proj_bias is not None
    if name == "add_bias_kv":
        return getattr(layer, "bias_k", None) is not None
    if name == "bias" and not isinstance(getattr(layer, "bias", None), bool):
        return layer._parameters.get("bias") is not None
    return _short(name, getattr(layer, name, default))


def _short(name: str, value: Any) -> Any:
    """3 for (3, 3), which layers take alike; but not where the length of the tuple says how many axes there are."""
    alike = isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1 and name != "normalized_shape"
    return value[0] if alike else value


def _written(kind: type[nn.Module], given: dict[str, Any]) -> Any:
    """Required arguments by position, the others by name."""
    by_place = True
    for name, parameter in _parameters(kind).items():
        if name not in given:
            by_place = by_place and parameter.default is parameter.empty
            continue
        by_place = by_place and parameter.default is parameter.empty
        yield repr(given[name]) if by_place else f"{name}={given[name]!r}"


def _facts(layer: nn.Module) -> dict[str, Any]:
    """What steers the layer's forward: its plain attributes and the shapes of its tensors."""
    plain = {name: _short(name, value) for name, value in vars(layer).items() if isinstance(value, _PLAIN)}
    del plain["training"]
    shapes: dict[str, Any] = {n: tuple(t.shape) for n, t in layer.state_dict(keep_vars=True).items()}
    return {**plain, "tensors": shapes, "buffers": sorted(layer._non_persistent_buffers_set)}


def empty(tensor: torch.Tensor) -> str:
    """The call that makes a tensor of the same shape and type."""
    kind = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.zeros({tuple(tensor.shape)}{kind})"
