"""Measures what each cut leaves, and keeps what is measured, so that a sweep that was stopped goes on."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.errors import CheckpointError, SelectionError
from surgeon.jsonfiles import as_read, changed, read_file, write_file
from surgeon.processes import first
from surgeon.sweeps.results import Point
from surgeon.tuning import Validation, evaluate
from surgeon.tuning.objectives import Objective

__all__ = ["FILE", "Judge", "check_any", "matching"]

#: Name of the file in the folder.
FILE = "points.json"


@dataclass(frozen=True)
class _Row:
    """A point, and the curve that it is on."""

    name: str
    point: Point


@dataclass(frozen=True)
class _Saved:
    """What the file holds."""

    asked: dict[str, Any]
    points: tuple[_Row, ...]


@dataclass
class Judge:
    """Measures models on the judging data, counts them, and keeps the points of each curve in a file.

    Attributes
    ----------
    directory:
        Where; None keeps nothing.
    points:
        What is measured by now, by the curve's name and the ratio.
    """

    loader: Iterable[Any]
    objective: Objective
    progress: Callable[[str, int, int], None]
    directory: Path | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    points: dict[tuple[str, float], Point] = field(default_factory=dict)
    done: int = 0
    total: int = 0

    def __call__(self, model: nn.Module) -> Validation:
        """Loss and accuracy of a model."""
        return evaluate(model, self.loader, self.objective)

    def step(self, count: int = 1) -> None:
        """So many more cuts are done with."""
        self.done += count
        self.progress("sweep", self.done, self.total)

    def point(self, name: str, ratio: float, measure: Callable[[], Point]) -> Point:
        """The point of a curve: measured, unless an earlier run has done so."""
        key = (name, ratio)
        if key not in self.points:
            self.points[key] = measure()
            self._write()
        self.step()
        return self.points[key]

    def goes_on(self, asked: Mapping[str, Any]) -> None:
        """Take up what was measured before, if the same was asked for.

        Raises
        ------
        CheckpointError
            If the folder holds another sweep, or the file is damaged.
        """
        self.asked = as_read(asked)
        if self.directory is None:
            return
        path = self.directory / FILE
        if not path.exists():
            return
        saved: _Saved = read_file(path, _Saved, "give another folder")
        for name in changed(saved.asked, self.asked):
            raise CheckpointError(
                f"{path}: its sweep has {name}={saved.asked.get(name)!r}, this one {self.asked.get(name)!r}; go on "
                "with the same model, data and options, or give another folder"
            )
        self.points = {(row.name, row.point.ratio): row.point for row in saved.points}

    def _write(self) -> None:
        if self.directory is None or not first():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        rows = tuple(_Row(name, point) for (name, _), point in self.points.items())
        write_file(self.directory / FILE, _Saved(dict(self.asked), rows))


def matching(names: Sequence[str], layers: Sequence[str]) -> bool:
    """Whether one of the names fits one of the globs."""
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in layers)


def check_any(found: Sequence[Any], layers: Sequence[str]) -> None:
    """Refuse globs that fit nothing.

    Raises
    ------
    SelectionError
        If nothing was found.
    """
    if not found:
        raise SelectionError(
            f"layers={list(layers)}: no layer that can be swept has such a name; leave them out to sweep all"
        )
