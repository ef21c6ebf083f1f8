"""Labelled images of the model's own classes, for the commands that train between cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surgeon.data import Data, Preprocess, batches, open_data
from surgeon.errors import InputError

from .images import Batches
from .training_options import augment_of

#: Training images that rank the filters.
_RANKED = 256


def open_labelled(options: Mapping[str, Any], work: str) -> Data:
    """The data of ``--data``, with images held out to choose by; `work` is what needs them, for the message.

    Raises
    ------
    InputError
        Without ``--data``.
    """
    if options["data"] is None:
        raise InputError(f"{work} needs labelled images: give --data DIR (DIR/CLASS/*.jpg), digits or cifar10")
    data = open_data(options["data"], options["data_root"]).checked()
    return data.with_validation(options["val_share"], options["seed"])


@dataclass(frozen=True)
class Loaders:
    """Batches to train on, to choose by, to judge by in the end (None without test images), and to rank filters on."""

    train: Any
    val: Any
    test: Any
    rank: Batches

    @classmethod
    def of(cls, options: Mapping[str, Any], data: Data, made: Preprocess, device: torch.device) -> Loaders:
        """Of data with held-out images, as the model's own preprocessing makes them."""
        size, workers = options["train_batch_size"], options["workers"]
        rank = data.train.drawn(options["samples"] or _RANKED, options["seed"]).loaded(made)
        assert rank.pixels is not None
        assert data.val is not None
        return cls(
            train=batches(data.train, made, size, augment_of(options), workers=workers),
            val=batches(data.val, made, size, workers=workers),
            test=None if data.test is None else batches(data.test, made, size, workers=workers),
            rank=Batches(rank.pixels, rank.labels, made, options["batch_size"], device),
        )
