"""``surgeon device``: the channel steps of a device, and the latency tables that are kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Widths whose times the table shows.
_SHOWN = (64, 65, 80, 81, 96)


@click.command(name="device", short_help="Find and show this device's channel steps.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: torch's own choice]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Number type.",
)
@click.option(
    "--layout",
    type=click.Choice(["contiguous", "channels_last"]),
    default="contiguous",
    show_default=True,
    help="How images lie in memory.",
)
@click.option("--fresh", is_flag=True, help="Measure anew what is known already.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
def command(device: str, threads: int | None, dtype: str, layout: str, fresh: bool, as_json: bool) -> None:
    """Find and show this device's channel steps: widths between two multiples of a step cost what the upper one costs.

    What was measured is kept in the user's cache folder (SURGEON_CACHE names another), and --round-to auto and
    --max-latency plan with it.

    Example: surgeon device --threads 1
    """
    from dataclasses import asdict

    import torch

    from surgeon.cost import Place, Table, open_table, steps_of

    from ..output import Watch, emit_json
    from ..runtime import pick_device

    chosen = pick_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    place = Place.here(chosen, dtype, layout)
    with Watch() as watch:
        steps = steps_of(Table(place) if fresh else open_table(place), progress=watch)
    if as_json:
        rows = {kind: {"step": found, "seconds": seconds} for kind, (found, seconds) in steps.items()}
        emit_json({"place": asdict(place), "steps": rows, "table": str(place.file)})
        return
    _show(asdict(place), steps, str(place.file))


def _show(place: Mapping[str, Any], steps: Mapping[str, tuple[int, Mapping[int, float]]], file: str) -> None:
    from ..output import say, table

    rows = [
        (kind, str(step) if step > 1 else "none found", *(f"{1e6 * seconds[width]:.0f}" for width in _SHOWN))
        for kind, (step, seconds) in steps.items()
    ]
    columns = ("layer", "channel step", *(f"{width} ch., us" for width in _SHOWN))
    title = ", ".join(str(place[key]) for key in ("name", "device", "dtype", "layout"))
    table(f"{title}, {place['threads']} threads", columns, rows)
    say("Widths between two multiples of a step cost what the upper one costs; --round-to auto keeps to multiples.")
    say(f"kept in {file}")
