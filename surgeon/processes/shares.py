"""Whose batches are whose, and what is drawn alike whoever draws it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from surgeon.processes.exchange import same, total
from surgeon.processes.members import count, first, rank

Item = TypeVar("Item")


class Own(Sequence[tuple[int, Item]], Generic[Item]):
    """Batches of this process, each with its number among those of all; `of_all` is how many all have."""

    def __init__(self, batches: Iterable[tuple[int, Item]]) -> None:
        self._batches = list(batches)
        (counts,) = total(torch.tensor([len(self._batches)]))
        self.of_all = int(counts)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        return self._batches[index]


def length(batches: Iterable[Any]) -> int | None:
    """How many batches there are; None where nobody knows: in a generator, or a loader of an endless stream."""
    if isinstance(batches, Own):
        return batches.of_all
    try:
        return len(batches)  # type: ignore[arg-type]  # what has no length raises, also where there is a __len__
    except (TypeError, NotImplementedError):
        return None


def kept(batches: Iterable[Any]) -> Own[Any]:
    """The share of this process, to be gone through several times."""
    return batches if isinstance(batches, Own) else Own(own_batches(batches))


def repeatable(batches: Iterable[Any]) -> Iterable[Any]:
    """Batches that can be gone through again: what runs out is kept."""
    return kept(batches) if isinstance(batches, Iterator) else batches


def own_batches(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Batches of this process, each with its number among those of all.

    Every n-th of what all iterate alike; all of what is this process's alone already (a ``DistributedSampler``, a
    loader that accelerate has prepared). A ``DataLoader`` loads no others, and shuffles as the first process does.
    """
    size, own = count(), rank()
    if isinstance(batches, Own):
        yield from batches
    elif size == 1:
        yield from enumerate(batches)
    elif is_shared(batches):
        yield from ((index * size + own, batch) for index, batch in enumerate(batches))
    else:
        yield from zip(itertools.count(own, size), _every(batches, own, size), strict=False)


def is_shared(batches: Any) -> bool:
    """Whether the processes have different batches already."""
    samplers = (getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    prepared = type(batches).__module__.startswith("accelerate.")
    return prepared or any(isinstance(sampler, DistributedSampler) for sampler in samplers)


def _every(batches: Iterable[Any], own: int, size: int) -> Iterator[Any]:
    if not isinstance(batches, DataLoader):
        return itertools.islice(batches, own, None, size)
    if not reads_by_index(batches):
        return _in_common_order(itertools.islice(batches, own, None, size))
    return _in_common_order(reading(batches, _Every(batches.batch_sampler, own, size)))


def reads_by_index(loader: Any) -> bool:
    """Whether a loader's batches are lists of indices, of which a process can leave some out."""
    plain = type(loader) is DataLoader and loader.batch_sampler is not None
    return plain and not isinstance(loader.dataset, IterableDataset)


def reading(loader: DataLoader[Any], sampler: Iterable[list[int]]) -> DataLoader[Any]:
    """A loader of other batches of the same data."""
    return DataLoader(
        loader.dataset, batch_sampler=sampler, num_workers=loader.num_workers, collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory, timeout=loader.timeout, worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context, generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )  # fmt: skip


class _Every(Sampler[list[int]]):
    """Every n-th batch."""

    def __init__(self, batches: Any, own: int, size: int) -> None:
        self.batch_sampler, self._own, self._size = batches, own, size

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batch_sampler), self._own, None, self._size)


def _in_common_order(batches: Iterable[Any]) -> Iterator[Any]:
    """Begin with the random numbers of the first process, which the order is drawn from; then go on with one's own."""
    before = torch.get_rng_state()
    torch.set_rng_state(same(before))
    left = iter(batches)
    head = list(itertools.islice(left, 1))
    if not first():
        torch.set_rng_state(before)
    return itertools.chain(head, left)


def seed_of(*parts: int | str) -> int:
    """A seed below 2^63 for what is drawn at some place: the same whoever draws there, unlike its neighbours'."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
