"""What ``surgeon evaluate`` does."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.data import Data, Split, batches, open_data
from surgeon.errors import InputError
from surgeon.finegrained import nonzero
from surgeon.measure import file_bytes, footprint
from surgeon.tuning import evaluate

from .files import is_file, write_text
from .models import resolve
from .output import Watch, emit_json, say, size, table, warn
from .runtime import pick_device, try_forward
from .subjects import Subject, check_classes, warn_of_classes
from .training_options import percent

_MANY = 1_000_000


def run(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """The whole command.

    Raises
    ------
    InputError, ModelError
        If the data has no such part, or other classes than a model.
    """
    device = pick_device(options["device"])
    data = open_data(options["data"], options["data_root"])
    part, split = _part(data, options["part"])
    split = split.drawn(options["samples"] or _MANY, 0)
    subjects = [_checked(_subject(name, options), data, device) for name in dict.fromkeys(names)]
    rows = []
    with Watch() as watch:
        for number, subject in enumerate(subjects):
            loader = batches(split, subject.preprocess, options["batch_size"])
            rows.append(_row(subject, _Counted(loader, watch, number, len(subjects)), device))
            subject.model.cpu()  # makes room for the next
    models = {subject.name: subject.model for subject in subjects}
    _write(rows, models, options)
    if options["as_json"]:
        emit_json({"data": data.name, "part": part, "images": len(split), "models": rows})
    _show(rows, f"{len(split):,} images of {data.name} ({part})", layers=options["layers"])


def _part(data: Data, name: str | None) -> tuple[str, Split]:
    parts = {"test": data.test, "val": data.val, "train": data.train}
    for part, split in parts.items():
        if split is not None and name in (None, part):
            return part, split
    raise InputError(f"--part {name}: {data.name} has none; give train, or a folder {data.name}/{name}/")


def _subject(name: str, options: Mapping[str, Any]) -> Subject:
    weights = None if is_file(name) else options["weights"]
    subject = resolve(name, weights, image_size=options["image_size"], factory=options["factory"])
    for warning in subject.warnings:
        warn(warning)
    return subject


@dataclass(frozen=True)
class _Counted:
    """The batches of one of several models, counted as they are read."""

    loader: Any
    watch: Watch
    number: int
    of: int

    def __iter__(self) -> Iterator[Any]:
        each = len(self.loader)
        for index, batch in enumerate(self.loader):
            self.watch("evaluate", self.number * each + index, self.of * each)
            yield batch
        self.watch("evaluate", (self.number + 1) * each, self.of * each)


def _checked(subject: Subject, data: Data, device: torch.device) -> Subject:
    """The same, if it tells the data's classes apart: all are looked at before the first is evaluated."""
    _, outputs = try_forward(subject.model.to(device), subject, device)
    subject.model.cpu()
    check_classes(subject, data, outputs)
    warn_of_classes(subject, data.classes)
    return subject


def _row(subject: Subject, loader: _Counted, device: torch.device) -> dict[str, Any]:
    """Everything about one model; `macs` are of one image, `file_bytes` of the file, or of a plain one of its state."""
    model = subject.model.to(device)
    example, _ = try_forward(model, subject, device)
    seen = evaluate(model, loader)
    taken, layers = footprint(model, example), nonzero(model)
    there = sum(layer.weights for layer in layers.values())
    return {
        "name": subject.name,
        "accuracy": seen.accuracy,
        "top5": seen.top5,
        "loss": seen.loss,
        "macs": taken.macs,
        "params": taken.params,
        "nonzero": sum(layer.left for layer in layers.values()) / there if there else None,
        "file_bytes": Path(subject.name).stat().st_size if is_file(subject.name) else file_bytes(model),
        "layers": {name: {"nonzero": layer.left, "weights": layer.weights} for name, layer in layers.items()},
    }


def _write(rows: Sequence[Mapping[str, Any]], models: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
    if options["csv_file"] is not None:
        write_text(options["csv_file"], _csv(rows))
    if options["plot"] is not None:
        from surgeon.plots import errors

        errors(rows, options["plot"])
    if options["histograms"] is not None:
        from surgeon.plots import weight_histograms

        weight_histograms(models, options["histograms"])


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    columns = [name for name in rows[0] if name != "layers"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if row[name] is None else row[name] for name in columns] for row in rows)
    return text.getvalue()


def _show(rows: Sequence[Mapping[str, Any]], images: str, *, layers: bool) -> None:
    shown = [
        (
            row["name"], percent(row["accuracy"]), percent(row["top5"]), f"{row['loss']:.4f}", f"{row['macs']:,}",
            f"{row['params']:,}", percent(row["nonzero"]), size(row["file_bytes"]),
        )
        for row in rows
    ]  # fmt: skip
    columns = ("model", "top-1", "top-5", "loss", "MACs", "parameters", "not zero", "file")
    table(f"{images}; 1 multiply-add = 1 MAC", columns, shown)
    if layers:
        names = dict.fromkeys(layer for row in rows for layer in row["layers"])
        shares = [(name, *(_share(row["layers"].get(name)) for row in rows)) for name in names]
        table("weights that are not zero", ("layer", *(str(row["name"]) for row in rows)), shares)
    if any(row["nonzero"] is not None and row["nonzero"] < 1 for row in rows):
        say("zeros make files smaller, not forwards faster")


def _share(layer: Mapping[str, int] | None) -> str:
    return "-" if layer is None else f"{100 * layer['nonzero'] / layer['weights']:.1f} % of {layer['weights']:,}"
