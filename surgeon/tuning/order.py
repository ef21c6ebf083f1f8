"""What is drawn in an epoch follows from the seed and the epoch's number alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from surgeon.exclusive import ONE_AT_A_TIME
from surgeon.processes import seed_of

__all__ = ["own_randomness", "seed_epoch"]

#: Where loaders and samplers keep the things that draw.
_PARTS = ("sampler", "batch_sampler", "dataset", "base_dataloader")


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    with ONE_AT_A_TIME:
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the user's transforms may draw there
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_epoch(loader: Any, seed: int, epoch: int, process: int = 0) -> None:
    """Seed everything that an epoch may draw from; the loader's own generators are equal in all processes.

    A ``DataLoader`` draws its order and its workers' seeds from its generators, or else from torch's, and all are
    seeded here; samplers with ``set_epoch`` are told the epoch. Any other iterable is taken as it comes.
    """
    common = seed_of(seed, epoch)
    for part in _parts(loader):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(common)
        if callable(getattr(part, "set_epoch", None)):
            part.set_epoch(epoch)
    own = seed_of(seed, epoch, process) if process else common
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002


def _parts(loader: Any) -> list[Any]:
    """The loader, its samplers and its dataset, each once."""
    found: list[Any] = [loader]
    for part in found:
        inner = [getattr(part, name, None) for name in _PARTS]
        found += [p for p in inner if p is not None and all(p is not other for other in found)]
    return found
