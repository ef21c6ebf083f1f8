"""The same random numbers for the dense and the cut model: what a forward draws must not tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from surgeon.tracing import Call, operator_name

#: Draws that take of their first operand its shape alone; others compute with what it holds.
_SHAPED = frozenset(
    {"rand_like", "randn_like", "randint_like", "normal_functional", "uniform", "exponential", "geometric", "cauchy",
     "log_normal"}
)  # fmt: skip


class SharedDraws:
    """Runs the draws of two recordings alike.

    Along an axis that the cut makes shorter all places get the same number, so it doesn't matter which of them are
    left: they come from one distribution, and no weight belongs to any.

    Parameters
    ----------
    pairs:
        The small node of each dense one.
    """

    def __init__(self, pairs: Mapping[fx.Node, fx.Node]) -> None:
        drawing = [(one, other) for one, other in pairs.items() if _is_draw(one) and _is_draw(other)]
        self._common: dict[fx.Node, tuple[int, tuple[int, ...]]] = {}
        for number, (dense, small) in enumerate(drawing):
            sizes = zip(dense.meta["shape"], small.meta["shape"], strict=True)
            shape = tuple(one if one == other else 1 for one, other in sizes)
            self._common[dense] = self._common[small] = number, shape

    def sharing(self, call: Call) -> Call:
        """`call`, but for draws."""

        def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if node not in self._common:
                return call(node, args, kwargs)
            number, shape = self._common[node]
            with torch.random.fork_rng(devices=_devices()):
                torch.manual_seed(number)
                return _drawn(node, args, kwargs, shape)

        return run


def _is_draw(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and "shape" in node.meta


def _devices() -> list[int]:
    begun = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return list(range(torch.cuda.device_count())) if begun else []


def _drawn(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """The call on fewer places, its numbers repeated along the axes that are of size 1 in `shape`."""
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    if "size" in names:
        at = names.index("size")
        return target(*args[:at], shape, *args[at + 1 :], **kwargs).expand(args[at]).clone()
    if operator_name(node) in _SHAPED:
        whole = args[0].shape
        fewer = args[0].as_strided(shape, [0] * len(shape)).clone()
        return target(fewer, *args[1:], **kwargs).expand(whole).clone()
    if operator_name(node) == "normal":
        mean, deviation = args
        one = mean if isinstance(mean, Tensor) else deviation
        return mean + deviation * torch.randn(shape, dtype=one.dtype, device=one.device)
    return target(*args, **kwargs)
