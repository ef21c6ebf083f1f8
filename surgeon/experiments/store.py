"""Where finished cells are kept, so that a comparison that was stopped goes on, and can be made larger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.experiments.grid import Key
from surgeon.experiments.results import Cell
from surgeon.jsonfiles import read_file, write_file
from surgeon.tuning.record import Asked

__all__ = ["Store"]

_FILE = "cells.json"


@dataclass(frozen=True)
class _Saved:
    """What the file holds."""

    asked: Asked
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Store:
    """A folder for cells (None keeps nothing), and what makes them comparable with others."""

    directory: Path | None
    asked: Asked

    def read(self) -> dict[Key, Cell]:
        """The cells that are finished.

        Raises
        ------
        CheckpointError
            If the file is damaged, or of another comparison.
        """
        if self.directory is None:
            return {}
        path = self.directory / _FILE
        if not path.exists():
            self.write({})
            return {}
        saved: _Saved = read_file(path, _Saved, "give another folder")
        if found := saved.asked.apart(self.asked):
            then, now = found
            raise CheckpointError(f"{path}: its cells belong to {then}, these to {now}; give another folder")
        return {cell.key: cell for cell in saved.cells}

    def write(self, done: Mapping[Key, Cell]) -> None:
        """Keep the finished cells; the file is replaced whole."""
        if self.directory is None:
            return
        write_file(self.directory / _FILE, _Saved(self.asked, tuple(done.values())))
