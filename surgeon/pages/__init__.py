"""Pages: a report as one HTML file that opens anywhere, with no network.

A page is made of facts alone, as ``--json`` gives them, so what a page shows can be had as data as well. Names come
from users and files: the templates escape every one of them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import nn

from surgeon.channels import channel_graph
from surgeon.checkpoint import load, load_dense, read_header
from surgeon.errors import InputError
from surgeon.files import write_beside
from surgeon.pages import numbers
from surgeon.pages.lanes import lanes
from surgeon.pages.latencies import bars
from surgeon.report import Report, make_report, tensor_bytes
from surgeon.tracing import Inputs, outside_inference_mode, trace

__all__ = ["render", "report_of_file", "write_report"]


def write_report(
    path: str | os.PathLike[str],
    what: Any,
    *,
    title: str | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
    accuracy: Mapping[str, float] | None = None,
    about: Mapping[str, str] | None = None,
    factory: Callable[[], nn.Module] | None = None,
    example_inputs: Any = None,
) -> None:
    """Write a report as one HTML file.

    Parameters
    ----------
    path:
        Where; an existing file is replaced whole or not at all.
    what:
        What :func:`surgeon.prune` gave, its report, or a file that :func:`surgeon.save` wrote. None: `measured` alone.
    title:
        Heading of the page.
    measured:
        What was timed, as ``surgeon bench --json`` has it under ``results``, or ``Comparison.to_dict()``. What a cut
        with a budget of time was itself timed by comes first.
    accuracy:
        What was measured, by its name: ``{"dense, top-1": 0.918, "cut": 0.703, "healed": 0.886}``, as shares of 1.
    about:
        Lines for the foot of the page, such as the command.
    factory, example_inputs:
        Makes the dense model of a file, and what its forward takes, as for :func:`surgeon.load`.

    Raises
    ------
    InputError
        If there is nothing to show, or `what` is none of these.
    CheckpointError
        If the file can't be opened.
    OSError
        If `path` can't be written.
    """
    report, name = _report(what, factory, example_inputs)
    timed = [] if report is None or report.timing is None else [report.timing.measured]
    facts = {
        "title": title or name,
        "report": None if report is None else report.to_dict(),
        "measured": [dict(result) for result in (*timed, *measured)],
        "accuracy": dict(accuracy or {}),
        "about": {**_surroundings(), **(about or {})},
    }
    text = render(facts)
    with write_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(facts: Mapping[str, Any]) -> str:
    """The page of these facts.

    Parameters
    ----------
    facts:
        ``title``, ``report`` (:meth:`surgeon.Report.to_dict`, or None), ``measured`` (results of ``surgeon bench``),
        ``accuracy`` and ``about``.

    Raises
    ------
    InputError
        If there is nothing to show.
    """
    report = facts.get("report")
    if not report and not facts.get("measured"):
        raise InputError("a report needs something to show: the result of a cut, or what was measured")
    shown = {
        **facts,
        "drawing": lanes(report["groups"], report["flow"]) if report and report["groups"] else None,
        "latencies": [bars(result) for result in facts.get("measured", ())],
    }
    return _template().render(shown)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(numbers.FILTERS)
    return environment.get_template("report.html")


def _report(what: Any, factory: Callable[[], nn.Module] | None, example_inputs: Any) -> tuple[Report | None, str]:
    if what is None or isinstance(what, Report):
        return what, "surgeon"
    if isinstance(getattr(what, "report", None), Report):
        return what.report, type(what.model).__name__
    if isinstance(what, str | os.PathLike):
        return report_of_file(what, factory, example_inputs), Path(what).name
    raise InputError(f"a report is made of a result, a report or a file; got {type(what).__name__}")


@outside_inference_mode
def report_of_file(
    path: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None, example_inputs: Any = None
) -> Report:
    """What the plan in a file did to the dense model; scores, the check and the images it was made with are not in it.

    Raises
    ------
    CheckpointError, OSError
        As :func:`surgeon.load`.
    """
    header = read_header(path)
    small = load(path, factory, example_inputs=example_inputs)
    note = "made from the file: what the channels scored and what the check found is not kept in it"
    if header.graph is not None and factory is None:
        model, kept_all = small, True  # the dense graph is not in the file
        note += "; of a graph the file holds the small model alone: widths are those that are left"
    else:
        model, kept_all = load_dense(path, factory), False
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    given = Inputs.from_spec(header.plan.inputs).to(dtype=dtype) if example_inputs is None else example_inputs
    graph = channel_graph(trace(model, Inputs.of(given).to("cpu")))
    kept = graph.structure.count * [True] if kept_all else header.plan.kept(graph)
    report = make_report(graph, torch.as_tensor(kept).numpy(), None, (note,))
    return dataclasses.replace(report, bytes_after=tensor_bytes(small))


def _surroundings() -> dict[str, str]:
    return {
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": f"torch {torch.__version__}",
    }
