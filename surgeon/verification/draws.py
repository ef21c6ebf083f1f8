"""Random numbers that a forward draws: both runs of a comparison get the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from surgeon.tracing import Call, operator_name

#: Operators whose result is drawn and depends on no number of theirs; as they are, and written in place.
_PURE = ("rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "normal",
         "normal_functional", "uniform", "exponential", "cauchy", "log_normal", "geometric")  # fmt: skip
_WRITTEN = ("normal_", "uniform_", "exponential_", "cauchy_", "log_normal_", "geometric_", "random_")


class Draws:
    """What the dense run drew, kept for the calls of the small one that draw the same.

    Noise belongs to no channel before it meets one. So along an axis that is shorter in the small run all places hold
    one number in both: then any of them are the kept ones.

    Parameters
    ----------
    partner:
        The small node of each dense one.
    """

    def __init__(self, partner: Mapping[fx.Node, fx.Node]) -> None:
        self._partner = partner
        self._drawn: dict[fx.Node, Tensor] = {}

    def dense(self, call: Call) -> Call:
        """`call` for the dense run, which goes first."""

        def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value, small = call(node, args, kwargs), self._partner.get(node)
            if small is None or not _draws(node) or not _shrinks(node, small):
                return value
            one = value
            for axis, size in enumerate(small.meta["shape"]):
                one = one.narrow(axis, 0, 1) if size < value.shape[axis] else one
            self._drawn[small] = one.expand(small.meta["shape"]).clone()
            return value.copy_(one.clone())

        return run

    def small(self, call: Call) -> Call:
        """`call` for the small run."""

        def run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            drawn = self._drawn.pop(node, None)
            if drawn is None:
                return call(node, args, kwargs)
            return args[0].copy_(drawn) if operator_name(node) in _WRITTEN else drawn

        return run


def _draws(node: fx.Node) -> bool:
    return operator_name(node) in (*_PURE, *_WRITTEN)


def _shrinks(node: fx.Node, small: fx.Node) -> bool:
    """Whether the small result is the dense one with fewer places; whole numbers may count those, so none may go."""
    ours, theirs = small.meta["shape"], node.meta["shape"]
    if len(ours) != len(theirs) or any(n > m for n, m in zip(ours, theirs, strict=True)):
        return False
    return ours == theirs or bool(node.meta["dtype"].is_floating_point)
