"""``surgeon compare --experiment``: a grid of cuts with training, resumable, and accuracy against cost."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import surgeon
from surgeon.errors import InputError, TuningError
from surgeon.experiments import Cell, Compared, Experiment, Summary
from surgeon.jsonfiles import read_text
from surgeon.jsontext import read_json

from .labelled import Loaders, open_labelled
from .models import asked_for
from .output import Watch, emit_json, say, table
from .runtime import pick_device, try_forward
from .stopping import resumable
from .subjects import check_classes, warn_of_classes
from .training_options import about_of, check_folder, percent, tuning_of

_WORDS = ("criterion", "budget", "schedule")


def read(path: Path) -> Experiment:
    """The experiment in a TOML or JSON file.

    Raises
    ------
    InputError
        If the file is neither.
    TuningError
        For a field that there isn't, or one of another type.
    CheckpointError
        If it is no regular file, or no text.
    OSError
        If it can't be read.
    """
    text = read_text(path, "write the experiment as .toml or .json")
    try:
        fields = read_json(text) if path.suffix.lower() == ".json" else _toml(text)
    except (ValueError, RecursionError) as problem:  # of both readers
        raise InputError(f"{path}: {problem}; docs/comparing.md has an example") from problem
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds {type(fields).__name__}, expected a table of fields")
    try:
        return Experiment.read(fields)
    except TuningError as problem:
        raise TuningError(f"{path}: {problem}") from problem


def _toml(text: str) -> Any:
    """By Python's own reader, or, before 3.11, by the package that became it."""
    try:
        reader: Any = importlib.import_module("tomllib")
    except ImportError:
        reader = importlib.import_module("tomli")
    return reader.loads(text)


def run(options: Mapping[str, Any]) -> None:
    """The whole command; `options` by their long names.

    Raises
    ------
    InputError, ModelError
        If the experiment, the images or the model can't be used.
    """
    experiment = read(options["experiment"])
    folder = options["folder"]
    check_folder(folder, resume=options["resume"])
    data = open_labelled(options, "an experiment")
    device = pick_device(options["device"])
    subject = asked_for(options)
    example, outputs = try_forward(subject.model.to(device), subject, device)
    check_classes(subject, data, outputs)
    warn_of_classes(subject, data.classes)
    loaders = Loaders.of(options, data, subject.preprocess, device)
    with resumable(), Watch() as watch:
        found = surgeon.compare(
            subject.model,
            example,
            loaders.train,
            loaders.val,
            experiment,
            judge=loaders.test,
            directory=folder,
            about=about_of(options, subject, data),
            tuning={**tuning_of(options), "device": device},
            dataloader=loaders.rank,
            on_cell=_tell,
            progress=watch,
        )
    if options["plot"] is not None:
        from surgeon.plots import fronts

        fronts(found, options["plot"])
    judged = "validation" if loaders.test is None else "test"
    if options["as_json"]:
        emit_json({"model": subject.name, "judged": judged, **found.to_dict()})
    _show(subject.name, found, judged)
    say(f"every cell is in {folder}; a larger grid goes on from there with --resume")


def _tell(cell: Cell) -> None:
    say(f"{cell.key.folder}: {percent(cell.accuracy)}, {cell.macs:,} MACs, {cell.params:,} parameters")


def _show(name: str, found: Compared, judged: str) -> None:
    fronts = {cost: found.front(cost) for cost in ("macs", "params", "latency")}
    rows = [_row(summary, fronts) for summary in sorted(found.summaries, key=lambda s: (s.macs, -s.mean))]
    table(
        f"{name}: {judged} accuracy at equal epochs (1 multiply-add = 1 MAC)",
        (*_WORDS, "runs", "min", "mean", "max", "MACs", "parameters", "speed-up", "front"),
        rows,
        left=len(_WORDS),
    )


def _row(summary: Summary, fronts: Mapping[str, tuple[Summary, ...]]) -> tuple[Any, ...]:
    budget = ", ".join(f"{name} {amount}" for name, amount in summary.budget)
    spread = (percent(value) for value in (summary.least, summary.mean, summary.most))
    on = ", ".join(cost for cost, front in fronts.items() if summary in front)
    costs = (f"{summary.macs:,.0f}", f"{summary.params:,.0f}", f"{summary.speed_up:.2f}x")
    return (summary.criterion, budget, summary.schedule, summary.runs, *spread, *costs, on)
