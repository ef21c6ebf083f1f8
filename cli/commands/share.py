"""``surgeon share``: let each layer's weights take few values, write them as a compact file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..finegrained import common_options, open_model, tell, write

if TYPE_CHECKING:
    from surgeon.finegrained import Sharing, SweepRow

    from ..finegrained import Opened
    from ..output import Watch


def _counts(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Read "16" or "conv=16,linear=8"."""
    try:
        if value is None or "=" not in value:
            return None if value is None else int(value)
        return {key.strip(): int(number) for key, number in (part.split("=", 1) for part in value.split(","))}
    except ValueError as problem:
        raise click.BadParameter(f"{value!r}: give one number, or conv=16,linear=8", ctx, param) from problem


def _list(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return () if value is None else tuple(int(part) for part in value.split(","))
    except ValueError as problem:
        raise click.BadParameter(f"{value!r}: give numbers with commas between: 4,9,13,35", ctx, param) from problem


@click.command(name="share", short_help="Let each layer's weights take few values; saves size, not time.")
@click.option(
    "-k",
    "--values",
    "k",
    callback=_counts,
    metavar="N",
    help="Values per layer besides zero: 16, or apart: conv=16,linear=8 (layer names and globs too).  [default: 16]",
)
@click.option(
    "--sweep",
    callback=_list,
    metavar="A,B,...",
    help="Try these numbers of values, show what each gives (with --data, on the images too), and write nothing.",
)
@common_options
def command(**options: Any) -> None:
    """Let the weights of each layer share few values (exact k-means), and write a compact file.

    Zeros are kept apart, so a masked model stays masked. This saves size, not time. The file keeps the weights to the
    bit. surgeon train with it as --model trains the shared values; --heal fits them without training, and each weight
    goes over to the one that serves best.

    Example: surgeon share --model surgeon-demo/small.safetensors -k 16 --data digits --heal lstsq
    """
    if options["sweep"] and (options["k"] is not None or options["output"] is not None):
        raise click.UsageError("--sweep tries and writes nothing: leave out -k and --output")
    if options["sweep"] and options["heal"] != "none":
        raise click.UsageError("--sweep shows what sharing alone gives: leave out --heal")
    opened = open_model(options, "shared")
    found = _sweep(opened, options) if options["sweep"] else _share(opened, options)
    if options["as_json"]:
        from ..output import emit_json

        emit_json({"model": opened.name, **found})


def _share(opened: Opened, options: dict[str, Any]) -> dict[str, Any]:
    from surgeon import finegrained

    def change(watch: Watch) -> Sharing:
        k = 16 if options["k"] is None else options["k"]
        return finegrained.share(opened.model, k, ignored_layers=options["ignore"], progress=watch)

    done = opened.healed(change, options["heal"], options["seed"])
    _show(opened.name, done)
    verdict = opened.verdict(opened.model)
    if verdict:
        tell(verdict, len(opened.answers))
    return {**done.to_dict(), **verdict, **write(opened, opened.target(options["output"], "shared"))}


def _show(name: str, done: Sharing) -> None:
    from ..output import reasons, say, table

    columns = ("layer", "kind", "weights", "zeros", "values", "change")
    rows = [(r.name, r.kind, r.weights, r.zeros, r.values, f"{r.error:.2%}") for r in done.layers]
    table(f"{name}: {len(rows)} layers", columns, rows, left=2)
    reasons({"layer": left.name, "reason": left.reason} for left in done.left_whole)
    say(f"{done.rate:.1f} times fewer bits for these weights: n bits / (n log2 k + k bits), before entropy coding")


def _sweep(opened: Opened, options: dict[str, Any]) -> dict[str, Any]:
    from surgeon import finegrained

    from ..output import Watch, table

    verdicts: list[dict[str, float]] = []

    def judge(model: Any) -> float:
        verdicts.append(opened.verdict(model))
        return verdicts[-1].get("agreement", float("nan"))

    with Watch() as watch:
        rows: list[SweepRow] = finegrained.sweep(
            opened.model, options["sweep"], judge, ignored_layers=options["ignore"], progress=watch
        )
    names = sorted({name for verdict in verdicts for name in verdict})
    cells = [(str(r.k), f"{r.rate:.1f}x", *(f"{v[n]:.1%}" for n in names)) for r, v in zip(rows, verdicts, strict=True)]
    table(f"{opened.name}: values per layer", ("k", "fewer bits", *names), cells, left=0)
    return {"sweep": [{"k": r.k, "rate": r.rate, **v} for r, v in zip(rows, verdicts, strict=True)]}
