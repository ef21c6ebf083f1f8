"""One-dimensional k-means: the k values that are nearest to many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ckmeans import ckmeans
from numpy.typing import NDArray

__all__ = ["Clusters", "cluster"]

Floats = NDArray[np.float64]
#: Entries of the exact method's tables (16 bytes each): more numbers than fit are solved from a sample.
_MOST_ENTRIES = 2**27


@dataclass(frozen=True)
class Clusters:
    """Values shared by numbers.

    Attributes
    ----------
    centres:
        ``(k,)`` ascending, distinct; fewer than were asked for where the numbers have fewer distinct values.
    index:
        ``(n,)`` the centre of each number.
    exact:
        Whether no other centres have a smaller sum of squared distances.
    """

    centres: Floats
    index: NDArray[np.int64]
    exact: bool


def cluster(numbers: Floats, k: int) -> Clusters:
    """The k values with the least sum of squared distances to the numbers ``(n,)``.

    The optimum, by dynamic programming in O(k n log n) time and 16 k n bytes (Wang & Song 2011, "Ckmeans.1d.dp", with
    the speed-up of Song & Zhong 2020). Where that is more than 2 GiB, the optimum for evenly spaced order statistics is
    improved on all numbers until nothing changes (Lloyd 1982): near it, but not proven.
    """
    order = np.argsort(numbers, kind="stable")
    rising = numbers[order]
    distinct = np.concatenate([[True], np.diff(rising) > 0])
    exact = int(distinct.sum()) <= k or k * len(numbers) <= _MOST_ENTRIES
    if int(distinct.sum()) <= k:
        starts = np.flatnonzero(distinct)
    elif exact:
        starts = _optimum(rising, k)
    else:
        starts = _nearly(rising, k)
    counts = np.diff(starts, append=len(rising))
    index = np.empty(len(rising), dtype=np.int64)
    index[order] = np.repeat(np.arange(len(starts)), counts)
    return Clusters(_means(rising, starts), index, exact)


def _optimum(rising: Floats, k: int) -> NDArray[np.int64]:
    """Where each cluster starts among ascending numbers."""
    sizes = [len(part) for part in ckmeans(rising, k)]
    return np.cumsum([0, *sizes[:-1]])


def _nearly(rising: Floats, k: int) -> NDArray[np.int64]:
    stride = -(-k * len(rising) // _MOST_ENTRIES)
    sample = rising[stride // 2 :: stride]
    centres = _means(sample, _optimum(sample, k))
    starts = np.zeros(0, dtype=np.int64)
    while True:
        found = np.unique(np.concatenate([[0], np.searchsorted(rising, (centres[1:] + centres[:-1]) / 2)]))
        found = found[found < len(rising)]
        if np.array_equal(found, starts):
            return starts
        starts, centres = found, _means(rising, found)


def _means(rising: Floats, starts: NDArray[np.int64]) -> Floats:
    """Mean of each cluster; never outside of it, though sums are rounded."""
    ends = np.append(starts[1:], len(rising)) - 1
    means: Floats = np.add.reduceat(rising, starts) / np.diff(starts, append=len(rising))
    return np.clip(means, rising[starts], rising[ends], out=means)
