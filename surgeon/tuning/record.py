"""The record of a run in steps: what it was asked, and a row for each step that is finished, in one JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, TuningError
from surgeon.jsonfiles import as_read, changed, read_file, write_file
from surgeon.tuning.evaluation import Validation
from surgeon.tuning.recipe import Epoch, check_history

__all__ = ["FILE", "Asked", "Step", "plain", "read_rows", "write_rows"]

#: Name of the file in the folder.
FILE = "run.json"
_ADVICE = "give another directory"
#: Options that say where it is computed, and in what pieces.
_WHERE = ("device", "sharded", "micro_batch")


@dataclass(frozen=True)
class Step:
    """One cut and its training (`notes` as in ``Tuned``); MACs (not FLOPs) and the like are those after the cut.

    `widths` are the out-channels of every layer that makes some; `cut` is what validation says between cut and training
    (None without a validation loader, or with a metric instead of its loss).
    """

    number: int
    filters: int
    macs: int
    params: int
    history: tuple[Epoch, ...]
    best_epoch: int
    notes: tuple[str, ...] = ()
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cut: Validation | None = None

    def __post_init__(self) -> None:
        check_history(self.history, self.best_epoch)


@dataclass(frozen=True)
class Asked:
    """What makes a run the one it is: its `options`, and what its caller says it is `about`, such as the data."""

    options: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, Any], about: Mapping[str, Any] | None) -> Asked:
        """As it is read again.

        Raises
        ------
        TuningError
            If JSON has no word for a part of `about`.
        """
        try:
            return cls(as_read(dict(options)), as_read(dict(about or {})))
        except (TypeError, ValueError) as problem:
            kinds = {name: type(value).__name__ for name, value in (about or {}).items()}
            raise TuningError(f"about holds {kinds}: expected text, numbers, lists and tables of them") from problem

    def apart(self, other: Asked) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What either has where they differ, by name; None where they are the same.

        What they are about comes first: of other data or another model the options may differ as a consequence.
        """
        for ours, theirs in ((self.about, other.about), (self.options, other.options)):
            if names := changed(ours, theirs):
                return {name: ours.get(name) for name in names}, {name: theirs.get(name) for name in names}
        return None


@dataclass(frozen=True)
class _Record:
    """What the file holds."""

    asked: Asked
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if [step.number for step in self.steps] != list(range(1, len(self.steps) + 1)):
            raise ValueError("its steps aren't numbered from 1 on")


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments in which two runs can be compared: values that JSON has, but for where and how."""
    return {name: value for name, value in arguments.items() if _is_plain(value) and name not in _WHERE}


def _is_plain(value: Any) -> bool:
    one = str | int | float | None
    return all(isinstance(v, one) for v in value) if isinstance(value, list | tuple) else isinstance(value, one)


def read_rows(folder: Path, asked: Asked) -> list[Step]:
    """The steps that are finished.

    Raises
    ------
    CheckpointError
        If the folder's run was asked something else, or its record is damaged.
    """
    path = folder / FILE
    if not path.exists():
        write_rows(folder, asked, [])
        return []
    record: _Record = read_file(path, _Record, _ADVICE)
    if found := record.asked.apart(asked):
        then, now = found
        raise CheckpointError(f"{path}: its run was asked {then}, this one {now}; ask the same again, or {_ADVICE}")
    return list(record.steps)


def write_rows(folder: Path, asked: Asked, rows: list[Step]) -> None:
    """Write the record beside and rename it."""
    write_file(folder / FILE, _Record(asked, tuple(rows)), indent=2)
