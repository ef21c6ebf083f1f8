"""``surgeon compare``: how alike criteria rank the channels of a model, and what each of them would cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..cuts import SAMPLES, SAMPLES_WITH_DATA
from ..files import check_outputs, run_folder
from ..options import (
    json_option,
    one_cut_options,
    refuse_of_cifar,
    refuse_of_files,
    refuse_together,
    refuse_typed,
    warn_typed,
)
from ..training_options import training_names, training_options
from .prune import command as prune

if TYPE_CHECKING:
    import torch

    import surgeon

    from ..images import Batches, Images, Source
    from ..subjects import Subject

_Command = TypeVar("_Command", bound=click.Command)
_BUDGETS = ("filters", "ratio", "max_macs", "max_params")
_OF_EXPERIMENTS = (training_names() - {"data_root"}) | {"train_batch_size", "plot"}
_RATIO = 0.5
_COLUMNS = 7  # criteria side by side; more of them make further tables


def as_in_prune(*names: str) -> Callable[[_Command], _Command]:
    """Give a command options of ``surgeon prune``, help and all."""

    def add(command: _Command) -> _Command:
        known = {param.name: param for param in prune.params}
        command.params[:0] = [known[name] for name in names]
        return command

    return add


@as_in_prune(
    "model", "factory", "weights", "data", "samples", "batch_size", "image_size", "device", "seed", "scope", "filters"
)  # fmt: skip
@click.command(name="compare", short_help="Compare criteria by rank, or a grid of cuts with training.")
@one_cut_options
@click.option(
    "--criteria",
    default="taylor,fisher,magnitude,random",
    show_default=True,
    metavar="A,B,...",
    help='Names as for surgeon prune --criterion, or "all".',
)
@click.option(
    "--experiment",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run this grid (.toml or .json) instead: criteria, budgets, schedules, seeds.",
)
@click.option(
    "--train-batch-size", type=click.IntRange(min=2), default=128, show_default=True, metavar="N", help="In training."
)
@training_options
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Of an experiment: error against cost.")
@json_option
def command(criteria: str, as_json: bool, experiment: Path | None, **options: Any) -> None:
    """Rank a model's channels by several criteria in one pass over the images, or run an experiment.

    Without --experiment it shows the rank correlation (Spearman) of the criteria over all channels that can go, and how
    many channels each group would lose under each of them. How much goes: --filters alone, --ratio alone (0.5 if
    nothing is given), or --max-macs and --max-params. Nothing is cut.

    With --experiment it cuts and trains: every criterion, budget, schedule and seed of the file, at equal epochs.
    Finished cells are kept in a folder, and --resume goes on from them.

    Example: surgeon compare --model resnet18 --criteria taylor,fisher-mac,lamp --ratio 0.3
    """
    refuse_of_files([options["model"]])
    refuse_of_cifar(options["data"])
    if experiment is not None:
        refuse_typed(
            (*_BUDGETS, "scope", "criteria"), "said by the experiment: leave --experiment out, or write it there"
        )
        from .. import grid

        folder = options["folder"] or run_folder(experiment)
        check_outputs([], [experiment, options["model"]], plots=[options["plot"]], folder=folder)
        grid.run({**options, "experiment": experiment, "folder": folder, "as_json": as_json})
        return
    refuse_typed(_OF_EXPERIMENTS, "for an experiment: give --experiment FILE")
    ranked = run(criteria, options)
    if as_json:
        from ..output import emit_json

        emit_json(ranked.facts())
    _show(ranked)


@dataclass(frozen=True)
class Ranked:
    """What each criterion would cut, and how alike the criteria rank.

    Attributes
    ----------
    removed:
        Of each criterion the channels that each group would lose.
    macs:
        Of each criterion the share of the MACs that would be left.
    spearman:
        Rank correlation of each two criteria over all channels that can go; nan where one gives all the same score.
    """

    model: str
    weights: str
    budget: dict[str, Any]
    groups: dict[str, int]
    removed: dict[str, dict[str, int]]
    macs: dict[str, float]
    spearman: dict[str, dict[str, float]]
    notes: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return dict(vars(self))


def run(criteria: str, options: Mapping[str, Any]) -> Ranked:
    """The whole command but the printing."""
    budget = _budget(options)
    names = _names(criteria)
    import surgeon

    from ..images import find
    from ..models import asked_for
    from ..output import Watch, warn
    from ..runtime import pick_device, try_forward

    source = None if options["data"] is None else find(options["data"], options["data_root"])
    device = pick_device(options["device"])
    subject = asked_for(options)
    example, outputs = try_forward(subject.model.to(device), subject, device)
    graph = surgeon.channel_graph(surgeon.trace(subject.model, example))
    surgeon.make_plan(graph, surgeon.score(graph, "random"), **budget)  # a budget out of reach is told at once
    images, loader = _material(names, source, options, subject, outputs, device)
    for warning in images.warnings if images else ():
        warn(warning)
    with Watch() as watch:
        loss = None if loader is None else loader.loss
        scores = surgeon.score_all(graph, names, loader, loss, seed=options["seed"], progress=watch)
    plans = {name: surgeon.make_plan(graph, found, **budget) for name, found in scores.items()}
    return Ranked(
        model=subject.name,
        weights=subject.weights,
        budget=budget,
        groups={group.name: group.size for group in graph.groups},
        removed={name: {group: len(gone) for group, gone in plan.removed.items()} for name, plan in plans.items()},
        macs={name: _macs_left(graph, plan) for name, plan in plans.items()},
        spearman=spearman(scores),
        notes=() if loader is None else loader.notes,
        warnings=(*subject.warnings, *(images.warnings if images else ())),
    )


def _budget(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: options[name] for name in _BUDGETS if options[name] is not None} or {"ratio": _RATIO}
    refuse_together(given)
    return {**given, "scope": options["scope"]}


def _names(criteria: str) -> list[str]:
    from surgeon.criteria import CRITERIA, find_criterion

    names = list(CRITERIA) if criteria == "all" else [name.strip() for name in criteria.split(",") if name.strip()]
    if not names:
        raise click.UsageError(f"--criteria {criteria!r}: give at least one of: {', '.join(CRITERIA)}")
    return [find_criterion(name)[0] for name in dict.fromkeys(names)]


def _material(
    names: list[str],
    source: Source | None,
    options: Mapping[str, Any],
    subject: Subject,
    outputs: Any,
    device: torch.device,
) -> tuple[Images | None, Batches | None]:
    """Images and targets, where some criterion looks at any."""
    from surgeon.criteria import CRITERIA

    from ..images import batches, drawn, photographs

    if not any(CRITERIA[name].needs_data for name in names):
        vain = ("data", "data_root", "samples", "batch_size")
        warn_typed(vain, f"not looked at: --criteria {','.join(names)} needs no images")
        return None, None
    samples = options["samples"] or (SAMPLES if source is None else SAMPLES_WITH_DATA)
    if source is None:
        images = photographs(samples, subject.preprocess, options["seed"])
    else:
        images = drawn(source, samples, subject.preprocess, options["seed"], name=options["data"])
    return images, batches(images, outputs, subject.preprocess, options["batch_size"], device)


def _macs_left(graph: surgeon.ChannelGraph, plan: surgeon.Plan) -> float:
    from surgeon.cost import Cost

    cost = Cost(graph)
    return cost.macs(plan.kept(graph)) / cost.macs(cost.everything())


def spearman(scores: Mapping[str, surgeon.Scores]) -> dict[str, dict[str, float]]:
    """Rank correlation of each two criteria over all channels that can go, ties sharing their mean rank."""
    import numpy as np
    from scipy.stats import rankdata

    ranks = [rankdata(found.normalised[found.graph.removable]) for found in scores.values()]
    with np.errstate(divide="ignore", invalid="ignore"):  # a criterion may give all channels one score
        table = np.atleast_2d(np.corrcoef(ranks))
    return {one: dict(zip(scores, row.tolist(), strict=True)) for one, row in zip(scores, table, strict=True)}


def _show(ranked: Ranked) -> None:
    from ..output import say

    names = list(ranked.spearman)
    parts = [names[first : first + _COLUMNS] for first in range(0, len(names), _COLUMNS)]
    for part in parts:
        _show_correlation(ranked, part)
    for part in parts:
        _show_removed(ranked, part)
    for note in (f"weights: {ranked.weights}", *ranked.notes):
        say(f"note: {note}")


def _show_correlation(ranked: Ranked, names: list[str]) -> None:
    from ..output import table

    rows = [(one, *(_number(found[other]) for other in names)) for one, found in ranked.spearman.items()]
    count = sum(ranked.groups.values())
    table(f"{ranked.model}: rank correlation (Spearman) over {count:,} channels", ("", *names), rows)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _show_removed(ranked: Ranked, names: list[str]) -> None:
    from ..output import table

    removed = [ranked.removed[name] for name in names]
    rows = [(group, size, *(found.get(group, 0) for found in removed)) for group, size in ranked.groups.items()]
    totals = ("all", sum(ranked.groups.values()), *(sum(found.values()) for found in removed))
    macs = ("MACs left", "", *(f"{100 * ranked.macs[name]:.1f} %" for name in names))
    amount = ", ".join(f"{name} {value}" for name, value in ranked.budget.items())
    table(
        f"{ranked.model}: channels that each group would lose ({amount})",
        ("group", "channels", *names),
        [*rows, totals, macs],
    )
