"""The last few of what would otherwise be kept for every shape that a batch can have."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["Recent"]

Value = TypeVar("Value")

#: A recording holds a graph with all of its facts; images of sizes of their own, or sentences of all lengths, would
#: fill the memory with them.
_MOST = 16


class Recent(Generic[Value]):
    """Values by key; only those that were asked for last are kept."""

    def __init__(self) -> None:
        self._kept: dict[Any, Value] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Any) -> Value | None:
        """The value, or None if there is none any more."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._kept[key] = found
        return found

    def keep(self, key: Any, value: Value) -> None:
        """Remember it, and forget the one that was not asked for the longest."""
        self._kept[key] = value
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
