"""What holds for all calls of an operator, as far as a recording has to know."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch._ops import OpOverload

from surgeon.tracing.decisions import may_decide
from surgeon.tracing.indices import INDEX_OPERATORS

_aten = torch.ops.aten
_DROPOUTS = frozenset({_aten.native_dropout, _aten.bernoulli, _aten.bernoulli_})


class Traits(NamedTuple):
    """What a recording has to know of an operator.

    Attributes
    ----------
    writes_first:
        It changes its first operand (others write statistics or noise beside a result of their own).
    drops:
        It draws places to drop.
    is_random:
        It draws numbers.
    may_decide:
        Some calls steer what comes after them.
    reads_indices:
        Its integer operands say where data goes.
    rewritten:
        Some calls are recorded as another operator's (:func:`plain_form`).
    """

    writes_first: bool
    drops: bool
    is_random: bool
    may_decide: bool
    reads_indices: bool
    rewritten: bool


@functools.cache
def traits_of(func: OpOverload) -> Traits:
    """The traits of an operator, worked out once."""
    arguments, name = func._schema.arguments, func.overloadpacket.__name__
    alias = arguments[0].alias_info if arguments else None
    in_place, drawn = func._schema.is_mutable and name.endswith("_"), "generator" in func._overloadname
    rewritten = func is _aten.copy.default or in_place or drawn
    drops, is_random = func.overloadpacket in _DROPOUTS, torch.Tag.nondeterministic_seeded in func.tags
    writes = alias is not None and alias.is_write
    return Traits(writes, drops, is_random, may_decide(func), name in INDEX_OPERATORS, rewritten)


def undrawn(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], node_args: Any, node_kwargs: dict[str, Any]
) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any], Any, dict[str, Any]]:
    """Dropout that keeps every place: a recording draws nothing."""
    packet = func.overloadpacket
    if packet is _aten.native_dropout:
        return func, (args[0], 0.0, True), kwargs, (node_args[0], 0.0, True), node_kwargs
    if packet is _aten.bernoulli:
        return _aten.ones_like.default, args[:1], {}, node_args[:1], {}
    return _aten.fill_.Scalar, (args[0], 1), {}, (node_args[0], 1), {}  # in place: where writes aren't taken apart
