"""What a command works on: a model, where it came from, and what the user should know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.data import Data, Preprocess
from surgeon.errors import ModelError
from surgeon.planning import Plan

from .output import warn


@dataclass(frozen=True)
class Subject:
    """A model that a command works on.

    Attributes
    ----------
    model:
        The dense model, on the CPU, in eval mode.
    name:
        What the user called it.
    origin:
        What the file's header will say about it.
    preprocess:
        How its images are made.
    weights:
        Where its weights come from, in words.
    warnings:
        What the report must repeat.
    cuts:
        What has been cut from the dense model before, where the model comes from a file.
    make:
        Makes the dense model of a file whose origin is not followed.
    compact:
        Whether the file holds masked or shared weights; they are plain ones in `model`.
    random:
        Whether the weights are drawn, and no training made them; None: only the user's factory knows.
    """

    model: nn.Module
    name: str
    origin: dict[str, Any]
    preprocess: Preprocess
    weights: str
    warnings: tuple[str, ...] = field(default=())
    cuts: Plan | None = None
    make: Callable[[], nn.Module] | None = None
    compact: bool = False
    random: bool | None = False


def check_classes(subject: Subject, data: Data, outputs: Any) -> None:
    """Refuse a model whose `outputs`, ``(N, classes)``, tell another number of classes apart than the data has.

    Raises
    ------
    ModelError
        If they do.
    """
    if tuple(getattr(outputs, "shape", ()))[1:] != (len(data.classes),):
        raise ModelError(
            f"{subject.name} hasn't one output for each of the {len(data.classes)} classes of {data.name}; give it a "
            "head for them first: surgeon train --model ... --weights ..."
        )


def warn_of_classes(subject: Subject, classes: Sequence[str]) -> None:
    """Labels are numbers: where as many classes have other names than in training, their order may be another."""
    known = subject.origin.get("classes")
    if isinstance(known, list) and len(known) == len(classes) and known != list(classes):
        told = [", ".join(map(str, names[:4])) + (", ..." if len(names) > 4 else "") for names in (classes, known)]
        warn(f"classes: {told[0]}; {subject.name} was trained on {told[1]}; the former count as these, in this order")


def warn_of_masks(subject: Subject) -> None:
    """A cut gives plain weights."""
    if subject.compact:
        warn(f"{subject.name}: its masks and shared values end here; cut first, then sparsify and share what is left")
