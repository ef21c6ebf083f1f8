"""The record of a run in steps: what it was asked, and a row for each step that is finished, in one JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.checkpoint import write_beside
from surgeon.errors import CheckpointError
from surgeon.tuning.evaluation import Validation
from surgeon.tuning.recipe import Epoch

__all__ = ["FILE", "Step", "plain", "read_rows", "write_rows"]

#: Name of the file in the folder.
FILE = "run.json"


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

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Step:
        """From the form in which it is saved."""
        history, cut = tuple(Epoch.read(row) for row in fields["history"]), fields["cut"]
        seen = None if cut is None else Validation(**cut)
        return cls(**{**fields, "history": history, "notes": tuple(fields["notes"]), "cut": seen})


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments in which two runs can be compared: values that JSON has, but for where it is computed."""
    return {name: value for name, value in arguments.items() if _is_plain(value) and name != "device"}


def _is_plain(value: Any) -> bool:
    one = str | int | float | None
    return all(isinstance(v, one) for v in value) if isinstance(value, list | tuple) else isinstance(value, one)


def read_rows(folder: Path, asked: Mapping[str, Any]) -> list[Step]:
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
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows, saved = [Step.read(row) for row in data["steps"]], dict(data["asked"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise CheckpointError(f"{path}: damaged, or of another tool ({problem}); give another directory") from problem
    changed = [name for name in dict.fromkeys([*asked, *saved]) if saved.get(name) != asked.get(name)]
    if changed:
        then, now = ({name: found.get(name) for name in changed} for found in (saved, asked))
        raise CheckpointError(
            f"{path}: its run was asked {then}, this one {now}; ask the same again, or give another directory"
        )
    return rows


def write_rows(folder: Path, asked: Mapping[str, Any], rows: list[Step]) -> None:
    """Write the record beside and rename it."""
    text = json.dumps({"asked": asked, "steps": [dataclasses.asdict(row) for row in rows]}, indent=2)
    with write_beside(folder / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
