"""Each batch of a loader divided among the processes, so that together they train as one would."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from surgeon.processes import is_shared, reading, reads_by_index, seed_of

__all__ = ["Parts", "parts_of"]


class Parts(Iterable[tuple[Any, float]]):
    """One process's part of each batch, with the weight of its mean loss.

    The parts of one batch differ in size by one example at most; weights are such that the mean over the processes of
    the weighted losses is the mean over the batch. Where a batch has fewer examples than there are processes, some
    get its first one with the weight 0.

    Parameters
    ----------
    loader:
        A ``DataLoader`` that reads by index.
    rank, size:
        This process's number, and how many there are.
    seed:
        Of the order, where the loader has no generator of its own: as one process would draw it.
    """

    def __init__(self, loader: DataLoader[Any], rank: int, size: int, seed: int) -> None:
        self._weights: deque[float] = deque()
        self.base_dataloader = reading(loader, _Slices(loader, rank, size, seed, self._weights))

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        self._weights.clear()
        for batch in self.base_dataloader:
            yield batch, self._weights.popleft()


class _Slices(Sampler[list[int]]):
    """A part of every batch's indices; notes the weight of each."""

    def __init__(self, loader: DataLoader[Any], rank: int, size: int, seed: int, weights: deque[float]) -> None:
        self.batch_sampler, self._rank, self._size, self._weights = loader.batch_sampler, rank, size, weights
        self._seed = None if loader.generator is not None else seed

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._whole():
            start, stop = (len(indices) * part // self._size for part in (self._rank, self._rank + 1))
            self._weights.append((stop - start) * self._size / len(indices))
            yield list(indices[start:stop]) or list(indices[:1])

    def _whole(self) -> list[list[int]]:
        """The epoch's batches, in the order that one process has under this seed."""
        assert self.batch_sampler is not None
        if self._seed is None:
            return list(self.batch_sampler)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            torch.empty((), dtype=torch.int64).random_()  # what a loader draws for its workers comes first
            return list(self.batch_sampler)


def parts_of(loader: Iterable[Any], rank: int, size: int, seed: int, epoch: int) -> Iterable[tuple[Any, float]]:
    """What one of several processes trains on in an epoch, with weights; other iterables are taken as they come."""
    if size > 1 and not is_shared(loader) and reads_by_index(loader):
        return Parts(loader, rank, size, seed_of(seed, epoch))  # type: ignore[arg-type]  # it is a DataLoader
    return _Whole(loader)


class _Whole(Iterable[tuple[Any, float]]):
    """A loader as it is."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.base_dataloader = loader

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        return ((batch, 1.0) for batch in self.base_dataloader)
