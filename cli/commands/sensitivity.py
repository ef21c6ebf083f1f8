"""``surgeon sensitivity``: how far each group can be cut before accuracy goes, before any fine-tuning."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import check_outputs, named_after, write_text
from ..options import DATA, refuse_of_cifar, refuse_of_files, refuse_typed
from ..training_options import check_folder, data_root_option
from .compare import as_in_prune

if TYPE_CHECKING:
    import surgeon
    from surgeon.sweeps import Curve, Point


def read_ratios(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Ratios from "0.1,0.5": a click callback.

    Raises
    ------
    click.BadParameter
        If one is no number.
    """
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError as problem:
        raise click.BadParameter(f"{value!r}: give shares such as 0.1,0.3,0.5", ctx, param) from problem


@as_in_prune("model", "factory", "weights", "image_size", "device", "seed")
@click.command(name="sensitivity", short_help="Sweep ratios over each group, and show what accuracy is left.")
@click.option("--data", metavar=DATA, help="Images that judge.  [default: crops of two photographs]")
@data_root_option
@click.option(
    "--part",
    type=click.Choice(["train", "val", "test"]),
    help="Which part of them.  [default: val where there is one, else train]",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N", help="How many of them."
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=100, show_default=True, metavar="N", help="Images at a time."
)
@click.option(
    "--what",
    type=click.Choice(["filters", "weights"]),
    default="filters",
    show_default=True,
    help="Cut coupled channels out, or set single weights to zero.",
)
@click.option(
    "--ratios",
    default="0.1,0.3,0.5,0.7,0.9",
    show_default=True,
    callback=read_ratios,
    metavar="R,R,...",
    help="Shares to remove.",
)
@click.option(
    "--criterion", default="magnitude", show_default=True, metavar="NAME", help="What ranks filters, as in prune."
)
@click.option("--layer", "layers", multiple=True, metavar="LAYER", help="Only groups with this layer (name or glob).")
@click.option(
    "--drop",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Percentage points that may be lost, for the last column.",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where figures are kept until all are there.  [default: MODEL-sensitivity]",
)
@click.option("--resume", is_flag=True, help="Go on with the sweep that was interrupted there.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), metavar="FILE", help="Everything as a table.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Curves: png, svg or pdf.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
def command(**options: Any) -> None:
    """Cut each group of coupled layers by several ratios, and the whole network, and show what accuracy is left.

    Nothing is trained, and nothing stays written but what --csv and --plot ask for. What is interrupted goes on with
    --resume. Beside each figure stands the
    threshold: the greatest score, or absolute weight, among what went. What can't be cut is listed with the reason.

    Example: surgeon sensitivity --model surgeon-demo/small.safetensors --data digits --csv digits.csv
    """
    if options["what"] == "weights":
        refuse_typed(["criterion"], "for --what filters: weights go by their size")
    if options["data"] is None:
        refuse_typed(["part"], "for images of your own: give --data DIR")
    refuse_of_cifar(options["data"])
    refuse_of_files([options["model"]])
    run(options)


def run(options: dict[str, Any]) -> None:
    """The whole command."""
    folder = options["folder"] or Path(named_after(options["model"], "sensitivity"))
    check_outputs([options["csv_file"]], [options["model"]], plots=[options["plot"]], folder=folder)
    check_folder(folder, resume=options["resume"])
    import surgeon

    from ..judging import judges
    from ..models import asked_for
    from ..output import Watch, emit_json
    from ..runtime import pick_device, try_forward
    from ..stopping import resumable

    device = pick_device(options["device"])
    subject = asked_for(options)
    example, outputs = try_forward(subject.model.to(device), subject, device)
    images = judges(options, subject, outputs, device)
    with resumable(), Watch() as watch:
        found = surgeon.sensitivity(
            subject.model,
            example,
            images.judge,
            what=options["what"],
            ratios=options["ratios"],
            criterion=options["criterion"],
            dataloader=images.rank,
            layers=options["layers"] or ("*",),
            directory=folder,
            seed=options["seed"],
            progress=watch,
        )
    if options["csv_file"] is not None:
        write_text(options["csv_file"], found.to_csv())
    if options["plot"] is not None:
        from surgeon.plots import sensitivity_curves

        sensitivity_curves(found, options["plot"])
    if options["as_json"]:
        emit_json({"model": subject.name, "weights": subject.weights, "images": images.note, **found.to_dict()})
    _show(subject.name, found, images.note, options["drop"])
    _clear(folder)  # not before all is told: until then, --resume can tell it


def _clear(folder: Path) -> None:
    """Remove what the sweep kept, and the folder if nothing else is in it."""
    from surgeon.files import LOCK
    from surgeon.sweeps.judging import FILE

    for name in (FILE, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it isn't empty
        folder.rmdir()


def _show(name: str, found: surgeon.Sensitivity, note: str, drop: float) -> None:
    from ..output import reasons, say, table

    swept = [curve for curve in found.curves if curve.points]
    ratios = [f"{point.ratio:.0%}" for point in swept[0].points]
    unit = "channels" if found.what == "filters" else "weights"
    dense = "-" if found.dense.accuracy is None else f"{100 * found.dense.accuracy:.2f} %"
    rows = [(c.name, c.size, *map(_cell, c.points), _limit(found, c, drop)) for c in swept]
    table(
        f"{name}: % right after so many {unit} went (threshold); dense {dense}",
        ("group", unit, *ratios, f"within {drop:g} points"),
        rows,
    )
    say(f"ranked by {found.criterion}; {note}; nothing trained")
    held = [c for c in found.curves if not c.points]
    reasons({"layer": c.name, "reason": str(c.reason), "source": c.source} for c in held)


def _cell(point: Point) -> str:
    if point.loss is None or point.threshold is None:
        return "-"
    value = f"loss {point.loss:.3f}" if point.accuracy is None else f"{100 * point.accuracy:.2f}"
    return f"{value} ({point.threshold:.2e})"


def _limit(found: surgeon.Sensitivity, curve: Curve, drop: float) -> str:
    limit = found.tolerated(curve, drop / 100)
    return "-" if limit is None else f"{limit:.0%}"
