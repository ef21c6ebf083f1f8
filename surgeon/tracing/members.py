"""A model's modules and tensors by name, as torch names them.

``Module.named_modules`` hands every module up through a generator for each level above it, and a cut asks for the
modules thirty times. These walk once, in the same order, with the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor, nn

_T = TypeVar("_T", bound=Tensor)


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """``list(model.named_modules())``: a module that is held twice goes by its first name."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append((name, module))
        prefix = name and name + "."
        children = reversed(module._modules.items())
        waiting += [(prefix + key, child) for key, child in children if child is not None]
    return found


def modules(model: nn.Module) -> list[nn.Module]:
    """``list(model.modules())``."""
    return [module for _, module in named_modules(model)]


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """``list(model.named_parameters())``: a parameter that is held twice goes by its first name."""
    return list(_first((name, module._parameters) for name, module in named_modules(model)))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, each by its first name."""
    held = named_modules(model)
    found: dict[str, Tensor] = dict(_first((name, module._parameters) for name, module in held))
    found.update(_first((name, module._buffers) for name, module in held))
    return found


def _first(held: Iterable[tuple[str, Mapping[str, _T | None]]]) -> Iterator[tuple[str, _T]]:
    """Every tensor by the first of its names."""
    seen: set[int] = set()
    for name, tensors in held:
        prefix = name and name + "."
        for key, tensor in tensors.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield prefix + key, tensor
