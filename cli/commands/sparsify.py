"""``surgeon sparsify``: mask single weights, write them as a compact file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..finegrained import common_options, open_model, tell, write
from ..options import refuse_typed

if TYPE_CHECKING:
    from surgeon.finegrained import Sparsity

    from ..output import Watch

_AMOUNTS = ("amount", "threshold", "std")


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> float | dict[str, float] | None:
    """Read "0.8" or "conv=0.5,linear=0.9"."""
    if value is None:
        return None
    try:
        if "=" not in value:
            return float(value)
        return {key.strip(): float(number) for key, number in (part.split("=", 1) for part in value.split(","))}
    except ValueError as problem:
        example = f"{value!r}: give one number, or one for each kind or layer: conv=0.5,linear=0.9"
        raise click.BadParameter(example, ctx, param) from problem


@click.command(name="sparsify", short_help="Mask the least useful single weights; saves size, not time.")
@click.option(
    "--amount",
    callback=_numbers,
    metavar="SHARE",
    help="Share of the weights that should be zero: 0.8, or apart: conv=0.5,linear=0.9 (layer names and globs too).",
)
@click.option("--threshold", callback=_numbers, metavar="X", help="Weights up to this go; apart as in --amount.")
@click.option(
    "--std",
    callback=_numbers,
    metavar="X",
    help="Weights up to so many standard deviations of their layer's go; apart as in --amount.",
)
@click.option(
    "--of",
    type=click.Choice(["all", "survivors"]),
    default="all",
    show_default=True,
    help="What --amount is a share of: all weights, or those that aren't zero yet.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "local"]),
    default="global",
    show_default=True,
    help="Rank all weights together, or each layer's.",
)
@click.option(
    "--by",
    type=click.Choice(["magnitude", "gradient"]),
    default="magnitude",
    show_default=True,
    help="What makes a weight useful: its size, or |weight x gradient| on --data.",
)
@common_options
def command(**options: Any) -> None:
    """Mask the least useful single weights, and write a compact file.

    Say how much with exactly one of --amount, --threshold and --std. This saves size, not time: dense kernels multiply
    by the zeros. A file that surgeon prune wrote can go on here, and the result into surgeon share. surgeon train with
    the result as --model keeps the masks; --heal recovers accuracy without training.

    Example: surgeon sparsify --model surgeon-demo/small.safetensors --amount 0.8 --data digits --heal lstsq
    """
    given = [f"--{name}" for name in _AMOUNTS if options[name] is not None]
    if len(given) != 1:
        told = " and ".join(given) if given else "nothing"
        raise click.UsageError(f"{told} given: give exactly one of --amount, --threshold and --std")
    if options["amount"] is None:
        refuse_typed(["of", "scope"], "for a share of the weights: give --amount")
    if options["by"] == "gradient" and options["data"] is None:
        raise click.UsageError("--by gradient needs images: give --data DIR")
    from surgeon import finegrained

    opened = open_model(options, "sparse")

    def change(_watch: Watch) -> Sparsity:
        return finegrained.sparsify(
            opened.model,
            **{name: options[name] for name in _AMOUNTS},
            of=options["of"],
            scope=options["scope"],
            by=options["by"],
            dataloader=opened.material,
            loss_fn=None if opened.material is None else opened.material.loss,
            ignored_layers=options["ignore"],
        )

    done = opened.healed(change, options["heal"], options["seed"])
    _show(opened.name, done)
    verdict = opened.verdict(opened.model)
    if verdict:
        tell(verdict, len(opened.answers))
    written = write(opened, opened.target(options["output"], "sparse"))
    if options["as_json"]:
        from ..output import emit_json

        emit_json({"model": opened.name, **done.to_dict(), **verdict, **written})


def _show(name: str, done: Sparsity) -> None:
    from ..output import percent_change, reasons, say, table

    rows = [
        (r.name, r.kind, r.weights, r.before, r.after, percent_change(r.before, r.after), _told(r.threshold))
        for r in done.layers
    ]
    columns = ("layer", "kind", "weights", "not zero", "after", "change", "threshold")
    table(f"{name}: {len(rows)} layers", columns, rows, left=2)
    reasons({"layer": left.name, "reason": left.reason} for left in done.left_whole)
    say(f"{done.sparsity:.1%} of {done.weights:,} weights are zero; {done.after:,} are left")


def _told(threshold: float | None) -> str:
    return "-" if threshold is None else f"{threshold:.3g}"
