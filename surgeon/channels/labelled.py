"""Which tensors of a model carry labels: those whose places may belong to channels."""

from __future__ import annotations

import torch
from torch import fx

from surgeon.rules import POINTWISE
from surgeon.tracing import operator_name

#: Operators that take channel numbers as their last argument.
_INDEXING = frozenset({"index", "index_select"})
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


def _orders(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` picks places of another tensor by the numbers in `node`."""
    return operator_name(user) in _INDEXING and user.args[0] is not node and len(node.meta["shape"]) == 1


def _is_arithmetic(node: fx.Node) -> bool:
    return all(operator_name(user) in _PER_CHANNEL for user in node.users)
