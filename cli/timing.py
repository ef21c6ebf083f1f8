"""What `surgeon bench` times: models and files, under each of several conditions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

import surgeon
from surgeon.checkpoint import load_dense
from surgeon.errors import InputError
from surgeon.measure import Conditions, latency, versions
from surgeon.measure.layers import layer_latency
from surgeon.tracing import Inputs

from .files import is_file
from .runtime import header_of, inputs_of, open_model

if TYPE_CHECKING:
    import torch

    from surgeon.measure import Comparison

    from .output import Watch


#: What an origin says and no forward takes longer by.
_NO_MATTER = ("weights", "preprocess", "classes")


@dataclass(frozen=True)
class Entry:
    """One model to time; `base` is the name of the one that it is compared with."""

    name: str
    model: nn.Module
    inputs: Inputs
    base: str


def entries(names: Sequence[str], against: str | None, factory: str | None, image_size: int | None) -> list[Entry]:
    """Every model once; a file brings its dense origin along, unless there is one model that all are compared with.

    Files of one origin, such as the steps of a cut, share it.

    Raises
    ------
    InputError
        If a model is named twice.
    SurgeonError, OSError
        If one can't be opened.
    """
    named = [*names, *([against] if against else [])]
    if len(set(named)) != len(named):
        raise InputError("a model is named twice; name each one once")
    denses: dict[str, str] = {}
    found = [entry for name in names for entry in _entry(name, against, names[0], factory, image_size, denses)]
    if against is None:
        return found
    base = open_model(against, factory, image_size, weights="none")
    return [Entry(against, base.model, found[0].inputs, against), *found]


def _entry(
    name: str, against: str | None, first: str, factory: str | None, image_size: int | None, denses: dict[str, str]
) -> Iterator[Entry]:
    if is_file(name) and against is None:
        yield from _pair(name, factory, image_size, denses)
    else:
        opened = open_model(name, factory, image_size, weights="none")
        yield Entry(name, opened.model, opened.inputs, against or (name if is_file(first) else first))


def _pair(path: str, factory: str | None, image_size: int | None, denses: dict[str, str]) -> Iterator[Entry]:
    """The file's model, and its dense one unless that is there; `denses`: what each is called, by what made it."""
    header, make = header_of(path, factory)
    small = surgeon.load(path, make)
    inputs = inputs_of(path, header, small, image_size)
    dtype = next((p.dtype for p in small.parameters() if p.is_floating_point()), None)
    origin = {key: value for key, value in (header.origin or {"file": path}).items() if key not in _NO_MATTER}
    made = json.dumps([origin, header.class_name, str(dtype), header.plan.inputs], sort_keys=True, default=str)
    is_new, dense = made not in denses, denses.setdefault(made, f"dense of {path}")
    if is_new:
        yield Entry(dense, load_dense(path, make).to(dtype=dtype), inputs, dense)
    yield Entry(path, small, inputs, dense)


def measure(
    models: Sequence[Entry],
    device: torch.device,
    conditions: Conditions,
    threads: int | None,
    rounds: int,
    watch: Watch,
    *,
    layers: bool = False,
    cpu_time: bool = False,
) -> dict[str, Any]:
    """Time all entries under one set of conditions; entries with other inputs are timed apart.

    Returns
    -------
    dict
        ``device``, ``threads``, ``cpu_time``, the conditions, ``versions``, ``models`` (a row each) and ``layers``;
        times in seconds.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    result: dict[str, Any] = {"cpu_time": cpu_time, "models": [], "layers": []}
    groups: dict[str, list[Entry]] = {}
    for entry in models:
        groups.setdefault(str(entry.inputs.spec()), []).append(entry)
    for members in groups.values():
        together = {entry.name: entry.model.to(device) for entry in members}
        inputs = members[0].inputs.to(device)
        measured = latency(
            together, inputs, rounds=rounds, threads=threads, clock=clock, progress=watch, **vars(conditions)
        )
        result |= {"device": measured.device, "threads": measured.threads, **measured.conditions}
        result["models"] += [_row(entry, measured, together) for entry in members]
        if layers:
            result["layers"] += _layers(together, conditions, inputs, threads)
    return {**result, "versions": versions(conditions.backend)}


def _row(entry: Entry, measured: Comparison, together: Mapping[str, nn.Module]) -> dict[str, Any]:
    timed = next(latency for latency in measured.latencies if latency.name == entry.name)
    row = {
        **timed.to_dict(),
        "per_second": measured.conditions["batch_size"] / timed.median,
        "base": None,
        "speed_up": None,
        "difference": measured.differences.get(entry.name),
        "params": sum(p.numel() for p in entry.model.parameters()),
        "samples": list(measured.samples[entry.name]),
    }
    if entry.base != entry.name and entry.base in together:
        row.update(base=entry.base, speed_up=measured.speed_up(entry.name, entry.base).to_dict())
    return row


def _layers(
    together: Mapping[str, nn.Module], conditions: Conditions, inputs: Inputs, threads: int | None
) -> list[dict[str, Any]]:
    """Rows of layers: the seconds that each takes in each model."""
    given = conditions.inputs(inputs)
    ready = {name: conditions.model(model, given) for name, model in together.items()}
    found = layer_latency(ready, given, threads=threads)
    names = dict.fromkeys(layer for seconds in found.values() for layer in seconds)
    return [{"name": layer, "seconds": {m: seconds.get(layer) for m, seconds in found.items()}} for layer in names]
