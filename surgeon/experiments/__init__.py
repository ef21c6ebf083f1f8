"""``compare``: a grid of cuts with training, every finished cell kept, and what comes out against what it costs.

A cell is one criterion, budget, schedule and seed. All get the same number of epochs in all, so that cutting gradually,
at once, not at all, and a small network trained from new weights are compared at equal cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from surgeon import processes
from surgeon.errors import TuningError
from surgeon.experiments.ahead import check_cells
from surgeon.experiments.grid import Experiment
from surgeon.experiments.results import Cell, Compared, Summary, summaries
from surgeon.experiments.running import Runner
from surgeon.experiments.store import Store
from surgeon.files import locked
from surgeon.tracing import check_model, named_tensors
from surgeon.tuning.record import Asked, plain

__all__ = ["Cell", "Compared", "Experiment", "Summary", "compare"]


def compare(
    model: nn.Module,
    example_inputs: Any,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    experiment: Experiment,
    *,
    judge: Iterable[Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    on_cell: Callable[[Cell], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Compared:
    """Run every cell of a grid that isn't finished yet, starting from `model` each time; `model` is left as it is.

    What can't be run is refused before the first cell.

    Parameters
    ----------
    model, example_inputs, train_loader, val_loader:
        As in :func:`surgeon.prune_and_tune`; `val_loader` chooses the epoch of each run.
    experiment:
        The grid.
    judge:
        What the cells are judged on, such as a test set; default: `val_loader`, which flatters them all.
    directory, about:
        Where finished cells and the state of the running one are kept, and what they belong to beside the weights and
        the plain ones of `tuning` and `options` (JSON-able, see :func:`surgeon.prune_and_tune`): a folder of something
        else is refused. A grid can be made larger later on.
    tuning, options:
        As in :func:`surgeon.prune_and_tune`, for every cell, but for what the grid says; a network that starts from new
        weights has nothing to carry, to heal or to rewind. Without ``lr``, ``"scratch"`` trains by SGD at 0.1, ten
        times the rate at which trained weights go on.
    on_cell:
        Called with every cell when it is finished.
    progress:
        Called as ``progress(stage, done, total)``; of the stage ``"cells"`` with the cells done and in all.

    Raises
    ------
    CheckpointError
        If `directory` belongs to another comparison.
    BusyError
        If another run is at work there.
    TuningError, BudgetError and others
        As :func:`surgeon.prune_and_tune`.
    """
    if processes.count() > 1:
        raise TuningError("compare works in one process: start it without a launcher")
    folder = None if directory is None else Path(directory)
    module = check_model(model)
    run = Runner(
        module, example_inputs, train_loader, val_loader, val_loader if judge is None else judge, folder,
        dict(tuning or {}), options, progress or (lambda *_: None),
    )  # fmt: skip
    keys = list(dict.fromkeys(experiment.keys()))
    check_cells(module, example_inputs, keys, run.tuning, options)
    for name in ("dataloader", "calibration"):  # every cell goes through them
        if options.get(name) is not None:
            options[name] = processes.repeatable(options[name])
    asked = plain({**options, **(tuning or {})}) | {"weights": processes.fingerprint(named_tensors(module))}
    if options.get("rewind") is not None:
        asked["rewind"] = processes.fingerprint(named_tensors(options["rewind"]))
    store = Store(folder, Asked.of(asked, about))
    with locked(directory):
        done = store.read()
        todo = [key for key in keys if key not in done]
        run.progress("cells", len(keys) - len(todo), len(keys))
        for left, key in zip(range(len(todo) - 1, -1, -1), todo, strict=True):
            done[key] = run.cell(key)
            store.write(done)
            (on_cell or (lambda _: None))(done[key])
            run.progress("cells", len(keys) - left, len(keys))
    cells = tuple(done[key] for key in keys)
    return Compared(cells, tuple(summaries(cells)))
