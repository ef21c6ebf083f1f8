"""``surgeon bench``: honest latency, pruned files against their own dense origin."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..files import check_outputs, there, write_text
from ..options import factory_option, image_size_option, json_option, refuse_of_files, refuse_typed

_MOST_LAYERS = 20
_COLUMNS = ("model", "parameters", "median ms", "quartiles ms", "images/s", "speed-up (95 %)", "difference")


@click.command(name="bench", short_help="Time models side by side, pruned files beside dense ones.")
@click.argument("models", metavar="MODEL_OR_FILE...", nargs=-1, required=True, callback=there)
@click.option("--against", metavar="MODEL", help="Compare all with this one.  [default: each file's dense origin]")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="NAME",
    help="cpu, cuda, ...; repeatable.  [default: cpu, and cuda where there is one]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    metavar="N",
    help="Images at a time; repeatable.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(["eager", "compile", "onnxruntime"]),
    multiple=True,
    default=("eager",),
    show_default=True,
    help="What runs the models; repeatable.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: the models' own]")
@click.option("--channels-last", is_flag=True, help="Lay images and weights out with channels last.")
@click.option("--fold-bn", is_flag=True, help="Fold batch norms into the layers in front of them, in all models.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: torch's own choice]")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Rounds; each times every model once.",
)
@click.option(
    "--cpu-time",
    is_flag=True,
    help="Count what the processor spends, all threads together, not the time on the clock: for a busy machine.",
)
@click.option("--layers", is_flag=True, help="Show in which layers the time goes, before and after.")
@image_size_option
@factory_option
@click.option("--markdown", type=click.Path(path_type=Path), metavar="FILE", help="Write the tables as Markdown.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write them as an HTML page.")
@json_option
def command(models: tuple[str, ...], **options: Any) -> None:
    """Time models side by side: interleaved rounds, medians, quartiles, ratio of paired medians.

    MODEL_OR_FILE is a {MODELS}, which is timed against the dense model that it came from. Several devices, back ends
    and batch sizes are timed one after the other, each shown as soon as it is done.

    Example: surgeon bench surgeon-demo/small.safetensors --batch-size 1 --batch-size 32
    """
    refuse_of_files([*models, options["against"]])
    if "eager" not in options["backends"]:
        refuse_typed(["layers"], "for the back end that runs one layer after the other: add --backend eager")
    check_outputs([options["markdown"], options["html"]], models)
    from ..output import emit_json, say
    from ..runtime import about

    results, inputs = _measure(models, options)
    facts = about()
    if options["as_json"]:
        emit_json({"results": results, "unit": "seconds", "inputs": inputs, "about": facts})
    for note in () if options["as_json"] else _notes(results):
        say(note)
    if options["markdown"]:
        write_text(options["markdown"], "\n".join(_markdown(results, facts)))
    if options["html"]:
        import surgeon

        surgeon.write_report(
            options["html"], None, title=f"Latency of {', '.join(models)}", measured=results, about=facts
        )


def _measure(models: Sequence[str], options: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every result, and the inputs of each model."""
    import torch

    from surgeon.measure import Conditions

    from ..output import Watch
    from ..runtime import pick_device
    from ..timing import entries, measure

    chosen = options["devices"] or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    places = [pick_device(name) for name in chosen]
    layout = "channels_last" if options["channels_last"] else None
    for backend in options["backends"]:
        Conditions(options["dtype"], layout, 1, backend, options["fold_bn"]).check()  # before anything is loaded
    if options["cpu_time"] and any(place.type != "cpu" for place in places):
        raise click.UsageError("--cpu-time is the processor's: give --device cpu")
    found = entries(models, options["against"], options["factory"], options["image_size"])
    results = []
    for device, backend, batch in itertools.product(places, options["backends"], options["batch_sizes"]):
        conditions = Conditions(options["dtype"], layout, batch, backend, options["fold_bn"])
        layers = options["layers"] and backend == "eager"
        with Watch() as watch:
            result = measure(
                found, device, conditions, options["threads"], options["rounds"], watch,
                layers=layers, cpu_time=options["cpu_time"],
            )  # fmt: skip
        results.append(result)
        if not options["as_json"]:
            _show(result)
    return results, {entry.name: entry.inputs.spec() for entry in found}


def _notes(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What to know of the figures."""
    from surgeon.measure import TAKEN

    if any(row["noisy"] for result in results for row in result["models"]):
        yield (
            "* quartiles more than 10 % of the median apart: the machine was busy; run again, with more --rounds, or "
            "with --cpu-time"
        )
    on_cpu = [row for result in results if result["device"] == "cpu" for row in result["models"]]
    shares = {row["name"]: max(r["system"] for r in on_cpu if r["name"] == row["name"]) for row in on_cpu}
    if max(shares.values(), default=0.0) > TAKEN:
        told = ", ".join(f"{share:.0%} of {name}'s" for name, share in shares.items())
        yield (
            f"the system takes {told} CPU time, mostly to hand out memory for large tensors; on Linux "
            "THP_MEM_ALLOC_ENABLE=1 in the environment, or another allocator, saves most of it"
        )


# ---------------------------------------------------------------- tables


def _show(result: dict[str, Any]) -> None:
    from ..output import table

    table(_title(result), _COLUMNS, [_cells(row) for row in result["models"]])
    if result["layers"]:
        names = tuple(result["layers"][0]["seconds"])
        table(f"slowest layers, ms ({_title(result)})", ("layer", *names), _slowest(result["layers"]))


def _title(result: dict[str, Any]) -> str:
    folded = ", batch norms folded" if result["fold_bn"] else ""
    clock = "CPU time, " if result["cpu_time"] else ""
    threads = f"{result['threads']} thread{'s' * (result['threads'] != 1)}"
    where = f"{clock}{result['device']}, batch {result['batch_size']}, {threads}"
    return f"{where}, {result['backend']}, {result['dtype']}, {result['layout']}{folded}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio = row["speed_up"]
    told = f"{ratio['ratio']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"
    mark = "*" if row["noisy"] else ""
    quartiles = f"{row['low'] * 1e3:.2f} to {row['high'] * 1e3:.2f}{mark}"
    median, rate = f"{row['median'] * 1e3:.2f}", f"{row['per_second']:.1f}"
    apart = "-" if row["difference"] is None else f"{row['difference']:.1e}"
    return (row["name"], f"{row['params']:,}", median, quartiles, rate, told, apart)


def _slowest(layers: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """The layers that take longest in any of the models."""
    order = sorted(layers, key=lambda row: -max(value or 0.0 for value in row["seconds"].values()))
    for row in order[:_MOST_LAYERS]:
        yield (row["name"], *("-" if s is None else f"{s * 1e3:.3f}" for s in row["seconds"].values()))


def _markdown(results: list[dict[str, Any]], facts: dict[str, str]) -> Iterator[str]:
    for result in results:
        yield f"### {_title(result)}\n"
        yield from _grid(_COLUMNS, (_cells(row) for row in result["models"]))
        if result["layers"]:
            yield from _grid(("layer, ms", *result["layers"][0]["seconds"]), _slowest(result["layers"]))
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    yield f"*{facts['device']}, {versions}: `{facts['command']}`*\n"


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
