"""What the data decides: how many places a mask picks, which boxes survive, which branch is taken.

A forward that is recorded again on other weights (the cut model, a silenced twin) would decide otherwise and couldn't
be compared call by call. So it is made to decide as the first recording did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from surgeon.tracing.detours import STEERING, Detour, Lines, Turning

#: Calls whose outcome has a size, or is a number, that depends on the data.
DECIDING = frozenset(
    {
        "nonzero",
        "nms",
        "_local_scalar_dense",
        "is_nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "multinomial",
    }
)
#: Calls that may be given masks.
_MASKED = frozenset({"index", "index_put"})
#: Types of an index that says of each place whether it is picked: a mask, which may span several axes.
MASKS = (torch.bool, torch.uint8)


def may_decide(func: OpOverload) -> bool:
    """Whether some calls of this operator steer what comes after them."""
    name = func.overloadpacket.__name__
    return name in DECIDING or name in _MASKED or _ranks(func)


def decides(func: OpOverload, args: Sequence[Any]) -> bool:
    """Whether the outcome of this call steers what comes after it."""
    name = func.overloadpacket.__name__
    return name in DECIDING or _ranks(func) or (name in _MASKED and any(map(_is_mask, args[1])))


def _ranks(func: OpOverload) -> bool:
    """Whether the call says where numbers stand that it finds: equal ones in another order are another answer."""
    name = func.overloadpacket.__name__
    return name in ("topk", "sort", "argmax", "argmin") or (name in ("max", "min") and func._overloadname == "dim")


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in MASKS


def _apply(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], decision: Any) -> Any:
    """The result of a call whose decision is known."""
    if func.overloadpacket.__name__ in _MASKED:
        return func(args[0], decision, *args[2:], **kwargs)
    if _ranks(func) and not func.overloadpacket.__name__.startswith("arg"):
        return _picked(func, args, kwargs, decision), decision
    return decision


def _picked(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], where: Tensor) -> Tensor:
    """The numbers that stand where they were found."""
    value, dim = _ranked(func, args, kwargs)
    if where.ndim < value.ndim:
        return torch.gather(value, dim, where.unsqueeze(dim)).squeeze(dim)
    return torch.gather(value, dim, where) if value.ndim else value


def _ranked(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, int]:
    """The numbers among which the call looks, and along which axis."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    dim = given.get("dim", -1)
    return given["self"], -1 if dim is None else dim


def _fits(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], decision: Any) -> bool:
    """Whether a given decision is about as many places as there are, but for the axis that is ranked."""
    if not _ranks(func) or not decision.ndim:
        return True
    value, dim = _ranked(func, args, kwargs)
    if decision.numel() and decision.device.type != "meta" and int(decision.max()) >= value.shape[dim]:
        return False
    sizes, places = list(value.shape), list(decision.shape)
    del sizes[dim]
    if len(places) > len(sizes):
        del places[dim]
    return sizes == places


def _decision(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What the data decides in this call."""
    if func.overloadpacket.__name__ in _MASKED:
        return _indices(args[1])
    result = func(*args, **kwargs)
    return result[1] if isinstance(result, tuple) and _ranks(func) else result


class Decisions:
    """Decisions in the order in which they are made: `given` ones are followed, others taken and kept.

    Attributes
    ----------
    taken:
        What was decided: the result of a call, or, of one that takes masks, the indices that they come to.
    lines:
        Where the data steers the forward.
    """

    def __init__(self, given: Sequence[tuple[str, Any]] | None = None) -> None:
        self._given: Iterator[tuple[str, Any]] | None = None if given is None else iter(given)
        self.taken: list[tuple[str, Any]] = []
        self.lines = Lines()
        self._turning: Turning | None = None

    @contextlib.contextmanager
    def on(self, detour: Detour) -> Iterator[None]:
        """Decide otherwise than the data while the body runs; if that comes to its end, these lines are known."""
        self._turning = turning = Turning(detour, len(self.taken))
        try:
            yield
        finally:
            self._turning = None
        self.lines.turn(turning.lines)

    def run(
        self, func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], *, from_data: bool, line: str
    ) -> tuple[Any, Any]:
        """The call's result, and the decision (None where the data has no say in it); `line` is the user's."""
        name = func.overloadpacket.__name__
        if not from_data and not (isinstance(args[0], Tensor) and args[0].device.type == "meta"):
            return func(*args, **kwargs), None
        decision = self._next(name, args[0].device)
        if decision is None or not _fits(func, args, kwargs, decision):
            decision = _decision(func, args, kwargs)
        if name in STEERING:
            self.lines.meet(line)
        if self._turning is not None:
            decision = self._turning.turned(name, args, decision, line)
        self.taken.append((name, decision))
        return _apply(func, args, kwargs, decision), decision

    def _next(self, name: str, device: torch.device) -> Any:
        """The given decision, on this device; None from the first on that is of another kind."""
        known, decision = next(self._given, ("", None)) if self._given is not None else ("", None)
        if known != name:
            self._given = None
            return None
        return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), decision)


def _indices(indices: Sequence[Any]) -> list[Any]:
    """Indices without masks."""
    found: list[Any] = []
    for index in indices:
        found += index.nonzero(as_tuple=True) if _is_mask(index) else [index]
    return found


def reads_places(node: fx.Node) -> bool:
    """Whether of a call that finds the largest numbers it is read where they stand, and not only how large they are."""
    target: Any = node.target
    return _ranks(target) and ("shape" in node.meta or any(user.args[1:] == (1,) for user in node.users))


def as_decided(node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The outcome of a deciding call in a replay: what was decided when it was recorded."""
    target: Any = node.target
    if _ranks(target) and not reads_places(node):
        return target(*args, **kwargs)
    return _apply(target, args, kwargs, node.meta["decision"])
