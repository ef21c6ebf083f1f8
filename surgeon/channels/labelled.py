"""Which tensors of a model carry labels: those whose places may belong to channels."""

from __future__ import annotations

import torch
from torch import fx

from surgeon.rules import POINTWISE
from surgeon.tracing import operator_name

#: Operators that take channel numbers as their last argument.
_INDEXING = frozenset({"index", "index_select"})
#: Operators that leave every number at its place.
_PLACE_BY_PLACE = frozenset({"clone", "alias", "detach", "_to_copy", *POINTWISE})
#: What a tensor of whole numbers may go through when it holds one number for each channel.
_PER_CHANNEL = frozenset({"view", "unsqueeze", "reshape", "expand", "_to_copy", *POINTWISE})


def is_labelled(node: fx.Node) -> bool:
    """Whether the parameter or buffer that this node stands for gets labels.

    All real and complex ones do, and masks. Whole numbers may mean anything (positions in a table, lengths, bits): they
    do where they only put channels into another order, or stand in arithmetic.
    """
    dtype = node.meta["dtype"]
    if str(node.target).startswith("_constant_"):
        return False
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        return True
    return bool(node.users) and (all(_orders(user, node) for user in node.users) or _is_arithmetic(node))


def is_kernel(node: fx.Node) -> bool:
    """Whether a tensor only ever ends as a convolution's weight, as it is or after arithmetic place by place.

    Its places along the spatial axes stay then: they need no labels, with which they would only hold what meets them.
    """
    found, waiting = {node}, [node]
    while waiting:
        value = waiting.pop()
        onward = [user for user in value.users if not _is_weight_of(value, user)]
        if not value.users or not all(_is_place_by_place(user, node) for user in onward):
            return False
        waiting += [user for user in onward if user not in found]
        found.update(onward)
    return True


def _is_weight_of(node: fx.Node, user: fx.Node) -> bool:
    return operator_name(user) == "convolution" and user.args[1] is node and user.args[0] is not node


def _is_place_by_place(user: fx.Node, node: fx.Node) -> bool:
    return operator_name(user) in _PLACE_BY_PLACE and user.meta["shape"] == node.meta["shape"]


def _orders(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` picks places of another tensor by the numbers in `node`."""
    return operator_name(user) in _INDEXING and user.args[0] is not node and len(node.meta["shape"]) == 1


def _is_arithmetic(node: fx.Node) -> bool:
    return all(operator_name(user) in _PER_CHANNEL for user in node.users)
