"""A twin of the weights: redrawn, so that no comparison is blind (zero heads, unit norms, tied values)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.tracing import Call, operator_name

_REAL_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX_KINDS = (torch.complex32, torch.complex64, torch.complex128)


def redraw(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Float64 (or complex128) values for every tensor of numbers: weights at fan-in scale, scales 0.5 to 1.5, no zeros.

    What is positive throughout (variances, norm and layer scales) stays positive. Constants keep their values.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _draw(tensor, generator).to(tensor.device)
        for name, tensor in tensors.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and not name.startswith("_constant_")
    }


def codes(graph: fx.Graph) -> set[str]:
    """Tensors whose numbers are made whole (signs, masks) before they are used: redrawn ones would all come to zero."""
    found: set[str] = set()
    for node in graph.nodes:
        if operator_name(node) == "_to_copy" and not _is_number(node) and _is_number(node.all_input_nodes[0]):
            sources = _sources(node)
            if all(source.op == "get_attr" for source in sources):
                found |= {str(source.target) for source in sources}
    return found


def _is_number(node: fx.Node) -> bool:
    kind = node.meta["dtype"]
    return bool(kind.is_floating_point or kind.is_complex)


def _sources(node: fx.Node) -> list[fx.Node]:
    """The weights and inputs that a value is made from."""
    seen = dict.fromkeys([node])
    queue = [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in seen:
                seen[source] = None
                queue.append(source)
    return [source for source in seen if not source.all_input_nodes and source is not node]


def _draw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_complex():
        return torch.complex(_draw(tensor.real, generator), _draw(tensor.imag, generator))
    positive = tensor.numel() > 0 and bool((tensor > 0).all())
    fan_in = max(tensor.numel() // tensor.shape[0], 1) if sum(size > 1 for size in tensor.shape) > 1 else 0
    if positive or not tensor.ndim:
        return (torch.rand(tensor.shape, dtype=torch.float64, generator=generator) + 0.5) / max(fan_in, 1)
    scale = 1 / math.sqrt(fan_in) if fan_in else 0.5
    return torch.randn(tensor.shape, dtype=torch.float64, generator=generator) * scale


def as_wide(kind: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """`dtype` in place of a floating type, the complex type of its width in place of a complex one; others stay."""
    if kind in _COMPLEX_KINDS:
        return dtype.to_complex()
    return dtype if kind in _REAL_KINDS else kind


def in_dtype(call: Call, dtype: torch.dtype) -> Call:
    """`call` with every floating type that the recording names replaced, so that nothing is rounded on the way.

    What a recording of shapes alone made on the meta device is made on the CPU.
    """

    def change(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "meta":
            return torch.device("cpu")
        return as_wide(value, dtype) if isinstance(value, torch.dtype) else value

    def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call(node, tuple(change(a) for a in args), {key: change(value) for key, value in kwargs.items()})

    return run


@contextlib.contextmanager
def by_default(dtype: torch.dtype) -> Iterator[None]:
    """Let what the forward makes without naming a type (``torch.zeros(n)``, a whole number halved) be of this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
