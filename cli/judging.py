"""Images that judge or train a model: parts of a data set, with targets that fit the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from surgeon.data import Data, Split, open_data
from surgeon.errors import InputError

from .images import Batches, photographs, scores_of
from .subjects import warn_of_classes

if TYPE_CHECKING:
    from .subjects import Subject


@dataclass(frozen=True)
class Judges:
    """Batches to judge on and to rank on, and what they are, in words."""

    judge: Batches
    rank: Batches
    note: str


def judges(options: dict[str, Any], subject: Subject, outputs: Any, device: torch.device) -> Judges:
    """The images that ``--data``, ``--part`` and ``--samples`` mean.

    Where their classes are not the model's, what the model itself says of them are the targets: accuracy is then
    agreement with it.

    Raises
    ------
    InputError
        If there are none.
    """
    count, seed, size = options["samples"], options["seed"], options["batch_size"]
    classes = int(scores_of(outputs).shape[1])
    if options["data"] is None:
        pixels = photographs(count, subject.preprocess, seed).pixels
        found = _own(Batches(pixels, None, subject.preprocess, size, device), subject)
        return Judges(found, found, f"{count} crops of two photographs, agreement with the dense model")
    data = open_data(options["data"], options["data_root"])
    name, part = _part(data, options["part"])
    judging = _batches(part.drawn(count, seed), subject, size, device)
    ranking = judging if part is data.train else _batches(data.train.drawn(count, seed), subject, size, device)
    where = f"{len(judging.pixels):,} images of {data.name} ({name})"
    if len(data.classes) == classes:
        warn_of_classes(subject, data.classes)
        return Judges(judging, ranking, f"{where}, accuracy")
    told = f"{where}, agreement with the dense model: its {classes} classes are not the {len(data.classes)} of the data"
    return Judges(_own(judging, subject), _own(ranking, subject), told)


def _part(data: Data, name: str | None) -> tuple[str, Split]:
    wanted = name or ("val" if data.val is not None else "train")
    part: Split | None = getattr(data, wanted)
    if part is None:
        raise InputError(f"--part {wanted}: {data.name} has none; give train, or a folder {data.name}/{wanted}/")
    return wanted, part


def _batches(split: Split, subject: Subject, size: int, device: torch.device) -> Batches:
    loaded = split.loaded(subject.preprocess)
    assert loaded.pixels is not None
    return Batches(loaded.pixels, loaded.labels, subject.preprocess, size, device)


@torch.no_grad()
def _own(batches: Batches, subject: Subject) -> Batches:
    """The same with the model's own answers as targets."""
    answers = [scores_of(subject.model(images)).argmax(1).cpu() for images, _ in batches]
    return replace(batches, labels=torch.cat(answers))
