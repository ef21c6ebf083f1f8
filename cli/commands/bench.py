"""``surgeon bench``: honest latency, pruned files against their own dense origin."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from surgeon.measure import Comparison
    from surgeon.tracing import Inputs


@dataclass(frozen=True)
class Entry:
    """One model to time; `base` is the name of the one that it is compared with."""

    name: str
    model: nn.Module
    inputs: Inputs
    base: str


@click.command(name="bench", short_help="Time models side by side, pruned files beside dense ones.")
@click.argument("models", metavar="MODEL_OR_FILE...", nargs=-1, required=True)
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
    "--image-size",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Side of the images.  [default: the model's]",
)
@click.option(
    "--model",
    "--factory",
    "factory",
    metavar="package.module:factory",
    help="Makes the dense model of files from elsewhere than torchvision; timm:NAME too.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON on standard output.")
def command(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    rounds: int,
    image_size: int | None,
    factory: str | None,
    as_json: bool,
) -> None:
    """Time models side by side: interleaved rounds, medians, quartiles, ratio of paired medians.

    MODEL_OR_FILE is a torchvision name, timm:NAME, package.module:factory, or a pruned file, which is timed against the
    dense model that it came from.

    Example: surgeon bench vgg16_bn-pruned.safetensors --batch-size 1 --batch-size 32
    """
    import torch

    from ..output import Watch, emit_json
    from ..runtime import factory_of, pick_device

    chosen = devices or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))
    places = [pick_device(name) for name in chosen]
    entries = list(_entries(models, factory_of(factory), image_size))
    results = []
    for device, batch in itertools.product(places, batch_sizes):
        with Watch() as watch:
            results.append(_measure(entries, device, batch, threads, rounds, watch))
    if as_json:
        emit_json({"results": results, "unit": "seconds", "inputs": {e.name: e.inputs.spec() for e in entries}})
    else:
        _show(results)


def _entries(
    names: tuple[str, ...], factory: Callable[[], nn.Module] | None, image_size: int | None
) -> Iterator[Entry]:
    """Every model once; a file brings its dense origin along."""
    import torch

    from surgeon.errors import InputError
    from surgeon.tracing import Inputs

    from ..models import resolve
    from ..runtime import is_file, try_forward

    if len(set(names)) != len(names):
        raise InputError("a model is named twice; name each one once")
    for name in names:
        if is_file(name):
            yield from _pair(name, factory)
        else:
            subject = resolve(name, None if ":" in name else "none", image_size=image_size)
            example, _ = try_forward(subject.model, subject, torch.device("cpu"))
            first = name if is_file(names[0]) else names[0]
            yield Entry(name, subject.model, Inputs.of(example), first)


def _pair(path: str, factory: Callable[[], nn.Module] | None) -> Iterator[Entry]:
    import surgeon
    from surgeon.checkpoint import load_dense
    from surgeon.tracing import Inputs

    from ..runtime import header_of

    inputs = Inputs.from_spec(header_of(path, factory).plan.inputs)
    small = surgeon.load(path, factory)
    dtype = next((p.dtype for p in small.parameters() if p.is_floating_point()), None)
    dense = f"dense of {Path(path).name}"
    yield Entry(dense, load_dense(path, factory).to(dtype=dtype), inputs, dense)
    yield Entry(path, small, inputs, dense)


def _measure(
    entries: list[Entry], device: Any, batch: int, threads: int | None, rounds: int, watch: Any
) -> dict[str, Any]:
    """Time all entries on one device at one batch size; entries with other inputs are timed apart."""
    from surgeon.measure import latency

    result: dict[str, Any] = {"device": str(device), "batch_size": batch, "models": []}
    for _, together in itertools.groupby(entries, key=lambda entry: str(entry.inputs.spec())):
        members = list(together)
        models = {entry.name: entry.model.to(device) for entry in members}
        inputs = members[0].inputs.to(device)
        measured = latency(models, inputs, batch_size=batch, rounds=rounds, threads=threads, progress=watch)
        result["threads"] = measured.threads
        result["models"] += [_row(entry, measured, batch, models) for entry in members]
    return result


def _row(entry: Entry, measured: Comparison, batch: int, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    timed = next(latency for latency in measured.latencies if latency.name == entry.name)
    row = {
        **timed.to_dict(),
        "per_second": batch / timed.median,
        "base": None,
        "speed_up": None,
        "params": sum(p.numel() for p in entry.model.parameters()),
        "samples": list(measured.samples[entry.name]),
    }
    if entry.base != entry.name and entry.base in models:
        row.update(base=entry.base, speed_up=measured.speed_up(entry.name, entry.base).to_dict())
    return row


def _show(results: list[dict[str, Any]]) -> None:
    from ..output import say, table

    noisy = False
    for result in results:
        title = f"{result['device']}, batch {result['batch_size']}, {result['threads']} threads"
        columns = ("model", "parameters", "median ms", "quartiles ms", "images/s", "speed-up (95 %)")
        table(title, columns, [_cells(row) for row in result["models"]])
        noisy = noisy or any(row["noisy"] for row in result["models"])
    if noisy:
        say("* quartiles more than 10 % of the median apart: the machine was busy; run again, or with more --rounds")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratio = row["speed_up"]
    told = f"{ratio['ratio']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"
    mark = "*" if row["noisy"] else ""
    quartiles = f"{row['low'] * 1e3:.2f} to {row['high'] * 1e3:.2f}{mark}"
    median, rate = f"{row['median'] * 1e3:.2f}", f"{row['per_second']:.1f}"
    return (row["name"], f"{row['params']:,}", median, quartiles, rate, told)
