"""A model's modules and tensors by name, as torch names them.

``Module.named_modules`` hands every module up through a generator for each level above it, and a cut asks for the
modules thirty times. These walk once, in the same order, with the same names.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


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
    held = ((n, m._parameters.items()) for n, m in named_modules(model))
    return list(_first(held))  # type: ignore[arg-type]  # parameters, as they are held


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, each by its first name."""
    held = named_modules(model)
    found = dict(_first((n, m._parameters.items()) for n, m in held))
    found.update(_first((n, m._buffers.items()) for n, m in held))
    return found


def _first(held: Iterator[tuple[str, object]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, items in held:
        prefix = name and name + "."
        for key, tensor in items:  # type: ignore[attr-defined]  # the items of a dict
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield prefix + key, tensor
