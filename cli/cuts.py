"""What ``surgeon prune`` was asked for, and whether it can be had together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .files import named_after, run_folder
from .options import refuse_together, warn_typed

#: Images to rank on where `--samples` is not given: crops of two photographs have less to tell.
SAMPLES, SAMPLES_WITH_DATA = 64, 256


@dataclass(frozen=True)
class Options:
    """The command's options, by their long names."""

    model: str
    factory: str | None
    filters: int | None
    ratio: float | tuple[float, ...] | None
    max_macs: Any  # a number, a share, or a tuple of them
    max_params: Any
    max_activations: int | float | str | None
    max_latency: str | None
    latency_batch_size: int
    threads: int | None
    scope: str
    criterion: str
    round_to: int | str | None
    min_channels: int
    ignore: tuple[str, ...]
    unit: tuple[str, ...]
    weights: str | None
    data: str | None
    samples: int | None
    batch_size: int
    micro_batch: int | None
    image_size: int | None
    output: Path | None
    device: str
    seed: int
    verify: bool
    strict: bool
    heal: str
    steps: int
    schedule: str | None
    as_graph: bool
    report: Path | None
    dry_run: bool
    as_json: bool
    epochs: int
    final_epochs: int
    train_batch_size: int
    rewind: Path | None
    teacher_weight: float
    temperature: float
    training: dict[str, Any]

    @property
    def target(self) -> Path:
        """Where the file goes."""
        return self.output or Path(f"{named_after(self.model, 'pruned')}.safetensors")

    @property
    def folder(self) -> Path | None:
        """Where the state of a run with training is kept; None where nothing is trained."""
        if not (self.epochs or self.final_epochs):
            return None
        return self.training["folder"] or run_folder(self.target)

    @property
    def in_all(self) -> str | None:
        """What filters in every step come to, in words; None where they are not counted so."""
        if self.filters is None or self.steps == 1 or self.schedule not in (None, "per-step"):
            return None
        return f"{self.filters:,} filters in each of {self.steps} steps, {self.filters * self.steps:,} in all"

    @property
    def budget(self) -> dict[str, Any]:
        """The amounts that were given."""
        names = ("filters", "ratio", "max_macs", "max_params", "max_activations", "max_latency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def check(self) -> None:
        """Refuse contradictory options before anything is loaded."""
        _check_budget(self)
        _check_lists(self)
        _check_steps(self)


def _check_budget(options: Options) -> None:
    """Refuse contradictory amounts before anything is loaded."""
    if not options.budget:
        raise click.UsageError(
            "say how much: --filters N, --ratio R, --max-macs AMOUNT, --max-params AMOUNT, --max-latency TIME"
        )
    refuse_together(options.budget)
    if options.filters is not None and options.filters < 1:
        raise click.UsageError(
            f"--filters {options.filters}: give at least 1; surgeon inspect {options.model} shows how many there are"
        )


def _check_lists(options: Options) -> None:
    """Refuse a list that has not one amount for each step."""
    lists = {**options.budget, "lr": options.training["lr"]}
    for name, given in lists.items():
        if isinstance(given, tuple) and len(given) != options.steps:
            raise click.UsageError(
                f"--{name.replace('_', '-')} lists {len(given)} amounts, one for each step, and there are "
                f"{options.steps}: give --steps {len(given)}"
            )


def _check_steps(options: Options) -> None:
    """Refuse what belongs to training where there is none, and the other way round."""
    if options.epochs or options.final_epochs:
        for flag in ("dry_run", "as_graph", "report"):
            if getattr(options, flag):
                raise click.UsageError(f"--{flag.replace('_', '-')} and --epochs exclude each other")
        if options.rewind is not None and options.heal != "none":
            raise click.UsageError("--rewind and --heal exclude each other: early weights have nothing to heal towards")
        if options.max_latency is not None or options.max_activations is not None or options.round_to == "auto":
            raise click.UsageError(
                "--max-latency, --max-activations and --round-to auto are kept in one cut, without --epochs"
            )
    elif options.schedule == "one-shot":
        raise click.UsageError("--schedule one-shot is for cuts with training between: give --epochs N")
    if options.schedule is not None and options.steps == 1:
        raise click.UsageError(f"--schedule {options.schedule} is for several cuts: give --steps N")


def looks_at_images(criterion: str, heal: str, *, trained: bool = False) -> bool:
    """Whether a cut looks at images; those that were asked for in vain are told.

    `trained`: images are trained on in any case.

    Raises
    ------
    SelectionError
        If there is no such criterion.
    """
    from surgeon.criteria import find_criterion

    ranks = find_criterion(criterion)[1].needs_data
    if not ranks and heal == "none":
        vain = ("samples", "batch_size") if trained else ("data", "data_root", "samples", "batch_size")
        warn_typed((*vain, "micro_batch"), f"not looked at: --criterion {criterion} needs no images")
        return False
    if not ranks:
        warn_typed(["micro_batch"], f"not looked at: --criterion {criterion} needs no images")
    return True
