"""Arguments and targets of a graph as JSON: an allow-list in both directions, so that a file names nothing else."""

from __future__ import annotations

import functools
import keyword
import math
import operator
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

__all__ = ["ATTRIBUTES", "GETATTR", "Unknown", "check_name", "decode", "encode", "find_function", "methods", "name_of"]

#: What of a tensor a graph may ask for.
ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "is_cuda", "data", "itemsize"}
)
#: Makers of tensors; torch lists them with functions that read files, so they are named one by one.
_MAKERS = frozenset({"zeros", "ones", "full", "empty", "rand", "randn", "arange", "linspace", "eye", "_assert"})
#: Names in operator that call or change what they are given.
_NO_OPERATORS = frozenset({"attrgetter", "itemgetter", "methodcaller", "call", "setitem", "delitem"})
#: Helpers in torch.nn.functional, and methods that hand out memory or call back.
_HELPERS = ("_", "has_torch_function", "handle_torch_function", "boolean_dispatch", "assert_int_or_pair")
_NO_METHODS = frozenset(
    {"apply_", "map_", "map2_", "backward", "numpy", "set_", "share_memory_", "data_ptr", "const_data_ptr",
     "module_load", "record_stream", "pin_memory", "retain_grad", "resize", "resize_", "resize_as", "resize_as_",
     "resize_as_sparse_", "sparse_resize_", "sparse_resize_and_clear_", "to_mkldnn"}
)  # fmt: skip
#: Operators that take packed bytes at their word, and numbers that grow beyond all bounds.
_NO_FUNCTIONS = (
    "torch.fbgemm_", "torch.quantized_", "torch.miopen_", "torch.q_", "torch.choose_qparams", "torch.fused_moving",
    "torch.batch_norm_", "torch.quantize_", "torch.int_repr", "math.factorial", "math.comb", "math.perm",
)  # fmt: skip
#: Functions of torchvision's models that fx leaves as one call.
_TORCHVISION = {
    "torchvision.models.swin_transformer": (
        "shifted_window_attention", "_get_relative_position_bias", "_patch_merging_pad",
    ),
    "torchvision.models.maxvit": ("_get_relative_position_bias",),
}  # fmt: skip
_LARGEST = 2**63
#: May be called with one of :data:`ATTRIBUTES`, and is never an argument: who could pass it on could ask for anything.
GETATTR = "builtins.getattr"
_CONSTANTS = (torch.dtype, torch.memory_format, torch.layout)


class Unknown(Exception):
    """Something that a file may not hold."""


@functools.cache
def _overridable() -> Mapping[Any, frozenset[str]]:
    found = torch.overrides.get_overridable_functions()
    return {space: frozenset(f.__name__ for f in found.get(space, ())) for space in (torch, F, torch.Tensor)}


@functools.cache
def methods() -> frozenset[str]:
    """Methods of tensors that compute."""
    found = {n for n in _overridable()[torch.Tensor] if not n.startswith(("_", "register_")) and "storage" not in n}
    return frozenset(found - _NO_METHODS)


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Every function that a graph may call, by its name."""
    found: dict[str, Any] = {GETATTR: getattr}
    spaces: list[tuple[str, Any, Any]] = [
        ("operator", operator, [n for n in operator.__all__ if n not in _NO_OPERATORS]),
        ("math", math, [n for n in dir(math) if not n.startswith("_")]),
        ("torch", torch, _overridable()[torch] | _MAKERS),
        (
            "torch.nn.functional",
            F,
            [n for n in dir(F) if not n.startswith(_HELPERS)],
        ),
        *_torchvision(),
    ]
    for name, space, allowed in spaces:
        for function in allowed:
            value = getattr(space, function, None)
            if isinstance(value, types.FunctionType | types.BuiltinFunctionType) and not _foreign(value):
                found[f"{name}.{function}"] = value
    return {name: value for name, value in found.items() if not name.startswith(_NO_FUNCTIONS)}


def _foreign(value: Any) -> bool:
    """Whether a namespace only imported it: torch.nn.functional holds helpers that are no operators."""
    home = getattr(value, "__module__", None) or "torch"
    return home.partition(".")[0] not in ("torch", "torchvision", "_operator", "operator", "math", "builtins")


def _torchvision() -> list[tuple[str, Any, Any]]:
    import importlib

    from torchvision import ops

    models = [(name, importlib.import_module(name), names) for name, names in _TORCHVISION.items()]
    return [("torchvision.ops", ops, [n for n in ops.__all__ if n.islower()]), *models]


def find_function(name: Any) -> Callable[..., Any]:
    """The function of that name, if a graph may call it."""
    if not isinstance(name, str) or name not in _functions():
        raise Unknown(f"function {str(name)[:80]!r} is none that a file may name")
    return _functions()[name]


@functools.cache
def _names() -> dict[int, str]:
    return {id(function): name for name, function in reversed(_functions().items())}


def name_of(function: Any) -> str:
    """The name under which a file may hold a function."""
    if id(function) not in _names():
        told = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"
        raise Unknown(f"function {told} can't be written into a file")
    return _names()[id(function)]


def check_name(name: Any, *, dotted: bool = False) -> str:
    """A name that becomes part of the graph's code."""
    parts = name.split(".") if isinstance(name, str) and dotted else [name]
    for part in parts:
        if not isinstance(part, str) or not part.isascii() or not (part.isidentifier() or (dotted and part.isdigit())):
            raise Unknown(f"{str(name)[:80]!r} is no name")
        if keyword.iskeyword(part) or part.startswith("__"):
            raise Unknown(f"{str(name)[:80]!r} is no name")
    return str(name)


def encode(value: Any) -> Any:
    """`value` as JSON; containers and what JSON doesn't know become an object with one key."""
    if value is None or isinstance(value, bool | str) or (type(value) is int and abs(value) < _LARGEST):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple | list):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(item) for item in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    return _encoded_constant(value)


def _encoded_constant(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, _CONSTANTS):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is ...:
        return {"ellipsis": None}
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return {"function": name_of(value)}
    raise Unknown(f"a {type(value).__name__} can't be written into a file")


def decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    """What :func:`encode` was given; `nodes` are those that may be referred to."""
    if not isinstance(value, dict):
        if isinstance(value, list) or (type(value) is int and abs(value) >= _LARGEST):
            raise Unknown(f"{str(value)[:80]} is no argument")
        return value
    if len(value) != 1:
        raise Unknown(f"{str(value)[:80]} is no argument")
    ((kind, content),) = value.items()
    if kind == "node":
        if not isinstance(content, str) or content not in nodes:
            raise Unknown(f"node {str(content)[:80]!r} isn't there, or comes later")
        return nodes[content]
    if kind in ("list", "tuple", "slice") and isinstance(content, list):
        items = [decode(item, nodes) for item in content]
        return slice(*items) if kind == "slice" else items if kind == "list" else tuple(items)
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(item, nodes) for key, item in content.items()}
    return _decoded_constant(kind, content)


def _decoded_constant(kind: str, content: Any) -> Any:
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind == "torch" and isinstance(content, str):
        found = getattr(torch, content, None)
        if isinstance(found, _CONSTANTS):
            return found
    if kind == "device" and isinstance(content, str):
        return torch.device(content)
    if kind == "ellipsis":
        return ...
    if kind == "function" and content != GETATTR:
        return find_function(content)
    raise Unknown(f"{str({kind: content})[:80]} is no argument")


def find_class(name: Any) -> type[nn.Module]:
    """The class of torch's own layers of that name."""
    found = _EXTRA.get(name) or getattr(nn, name, None) if isinstance(name, str) and name.isidentifier() else None
    if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.modules."):
        return found
    raise Unknown(f"{str(name)[:80]!r} is no layer of torch.nn")


_EXTRA: dict[str, Any] = {
    "NonDynamicallyQuantizableLinear": nn.modules.linear.NonDynamicallyQuantizableLinear,
}
