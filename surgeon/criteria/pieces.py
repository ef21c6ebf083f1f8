"""Batches in pieces of a few examples, so that fewer activations are held at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from surgeon.errors import ScoreError

__all__ = ["check_micro_batch", "pieces"]


def check_micro_batch(size: Any) -> None:
    """Refuse what is no number of examples.

    Raises
    ------
    ScoreError
        If it isn't.
    """
    if size is not None and (type(size) is not int or size < 1):
        raise ScoreError(f"micro_batch={size!r}: expected a positive whole number of examples, or None")


def pieces(batch: Any, size: int | None) -> Iterator[Any]:
    """The batch in pieces of at most `size` examples (axis 0 of every tensor in it); None: the batch itself.

    Raises
    ------
    ScoreError
        If its tensors don't hold equally many examples.
    """
    leaves, structure = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    if size is None or not tensors or len(tensors[0]) <= size:
        yield batch
        return
    other = next((tensor for tensor in tensors if len(tensor) != len(tensors[0])), None)
    if other is not None:
        raise ScoreError(
            f"a batch holds tensors of {tuple(tensors[0].shape)} and {tuple(other.shape)}, which can't be taken apart "
            "into examples: leave micro_batch out, or pass smaller batches"
        )
    for start in range(0, len(tensors[0]), size):
        some = [leaf[start : start + size] if isinstance(leaf, Tensor) and leaf.ndim else leaf for leaf in leaves]
        yield pytree.tree_unflatten(some, structure)
