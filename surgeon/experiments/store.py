"""Where finished cells are kept, so that a comparison that was stopped goes on, and can be made larger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.experiments.grid import Key
from surgeon.experiments.results import Cell
from surgeon.files import write_beside

__all__ = ["Store"]

_FILE = "cells.json"


@dataclass(frozen=True)
class Store:
    """A folder for cells (None keeps nothing), and what they belong to (JSON-able)."""

    directory: Path | None
    about: Mapping[str, Any]

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
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            cells = [Cell.read(fields) for fields in saved["cells"]]
            belongs = saved["about"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise CheckpointError(f"{path}: damaged, or of another tool ({problem}); give another folder") from problem
        if belongs != json.loads(json.dumps(self.about)):
            raise CheckpointError(f"{path}: its cells belong to {belongs}, these to {self.about}; give another folder")
        return {cell.key: cell for cell in cells}

    def write(self, done: Mapping[Key, Cell]) -> None:
        """Keep the finished cells; the file is replaced whole."""
        if self.directory is None:
            return
        with write_beside(self.directory / _FILE) as temporary:
            text = json.dumps({"about": self.about, "cells": [asdict(cell) for cell in done.values()]}, indent=1)
            temporary.write_text(text, encoding="utf-8")
