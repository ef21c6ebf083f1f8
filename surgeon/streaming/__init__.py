"""Streaming: models that don't fit in memory, cut from safetensors shards to shards, one tensor at a time.

The model is built without numbers (on the meta device), recorded and planned so; the weights pass through when they are
scored, when they are cut, and when the cut is checked.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.channels import ChannelGraph, channel_graph
from surgeon.criteria import Request, find_criterion, score
from surgeon.criteria.gradients import Floats
from surgeon.cutting import Clock
from surgeon.errors import CheckpointError, InputError, ScoreError, SurgeonError
from surgeon.files import beside, write_beside
from surgeon.jsonfiles import blamed, read_file
from surgeon.planning import Plan, check_options, make_plan
from surgeon.processes import seed_of
from surgeon.report import Report, make_report
from surgeon.rewriting import rewrite, small_tensor
from surgeon.rules import reasons
from surgeon.streaming.shards import INDEX, SINGLE, Shards, write_shards
from surgeon.streaming.weights import Read, Weights, empty_model
from surgeon.tracing import Inputs, Trace, error_site, named_tensors, outside_inference_mode, record, trace
from surgeon.trial import Fit, fit_recording, replace_tensors
from surgeon.verification import Check, check_fit
from surgeon.verification.twin import codes, redraw

__all__ = ["INDEX", "PLAN", "SINGLE", "Shards", "Streamed", "load_shards", "prune_shards"]

#: Name of the plan beside the shards.
PLAN = "surgeon_plan.json"
_ADVICE = "cut the shards again"
#: Criteria that look at weights alone; `random` at nothing.
_ONLY_WEIGHTS = ("magnitude", "magnitude-l1", "magnitude-group", "bn-scale", "fpgm", "lamp", "random")


@dataclass(frozen=True)
class Streamed:
    """What :func:`prune_shards` gives back.

    Attributes
    ----------
    folder:
        Where the cut weights and the plan are.
    plan, report:
        As :func:`surgeon.prune` gives them.
    model:
        The cut model without numbers, on the meta device.
    left_out:
        Tensors of the shards that the model doesn't have; they aren't written.
    """

    folder: Path
    plan: Plan
    report: Report
    model: nn.Module
    left_out: tuple[str, ...]


@outside_inference_mode
def prune_shards(
    factory: Callable[[], nn.Module],
    example_inputs: Any,
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    criterion: str | Callable[[Request], Floats] = "magnitude",
    verify: bool = True,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **planning: Any,
) -> Streamed:
    """Cut a model whose weights are in safetensors shards, into new shards; neither is ever in memory as a whole.

    At the most one tensor is held, with what is computed from it: of the numbers, a few times the bytes of the largest
    in double precision; of the activations of `example_inputs`, what is still to be read.

    Parameters
    ----------
    factory:
        Makes the dense model; its parameters get no numbers while it does. In eval mode its forward must run on the
        meta device: where the data steers it, pass what decides (a language model of transformers asks whether
        sequences are packed unless it is given an ``attention_mask``).
    example_inputs:
        As in :func:`surgeon.prune`; the check runs on them: a few tokens are enough.
    weights:
        A folder with ``model.safetensors.index.json`` and its shards, or ``model.safetensors``.
    output:
        The folder to make: shards of the same names, the index, and the plan (``surgeon_plan.json``); it isn't there
        before all is checked. :func:`load_shards` opens it.
    criterion:
        One that looks at weights alone: ``magnitude``, ``magnitude-l1``, ``magnitude-group``, ``bn-scale``, ``fpgm``,
        ``lamp``, ``random``, or a function that reads ``request.weights``. Scores from data need all weights at once.
    verify:
        Run both models side by side at every node, as :func:`surgeon.verify` does: on redrawn weights, then on their
        own, and compare every tensor written with the dense one.
    seed:
        For everything that draws: random scores, and the weights that the check redraws.
    progress:
        Called as ``progress(stage, done, total)``.
    planning:
        How much, and how: see :func:`surgeon.make_plan`.

    Raises
    ------
    InputError
        If the forward doesn't run on the meta device.
    ScoreError
        If the criterion needs data.
    CheckpointError
        If the shards are damaged, or aren't those of the model.
    VerificationError
        If the cut model differs from the dense one; nothing is written then.
    ModelError, BudgetError, SelectionError, NothingToCutError
        As :func:`surgeon.prune`.
    OSError
        If `output` is there already, or can't be written.
    """
    target = Path(output)
    _check_early(criterion, target)
    clock = Clock(progress)
    model, buffers = empty_model(factory)
    source = Weights(model, Shards(weights), buffers)
    inputs = Inputs.of(example_inputs)
    with clock("trace"):
        graph = _without_unstored(channel_graph(_trace(model, inputs)), source)
    check_options(model, **planning)
    with clock("score"):
        scores = score(graph, criterion, weights=source, seed=seed)
    with clock("plan"):
        plan = make_plan(graph, scores, seed=seed, **planning)
        small = rewrite(model, plan)
    assert plan.fitted is not None
    with _made_beside(target) as folder:
        with clock("rewrite"):
            written = _write(folder, plan, source, clock.progress)
        check = None
        if verify:
            with clock("verify"):
                check = _verified(plan.fitted, small, source, Weights(small, Shards(folder), buffers), inputs, seed)
    report = make_report(plan.fitted.graph, plan.fitted.kept, check, (), scores)
    report = replace(report, bytes_after=written, seconds=dict(clock.seconds))
    known = {name for names in source.stored.values() for name in names}
    left = tuple(name for name in source.shards if name not in known)
    return Streamed(target, replace(plan, fitted=None), report, small, left)


def load_shards(
    folder: str | os.PathLike[str], factory: Callable[[], nn.Module], *, example_inputs: Any = None
) -> nn.Module:
    """Open a folder that :func:`prune_shards` wrote: the cut model with its weights, on the CPU, in eval mode.

    Parameters
    ----------
    folder:
        The folder.
    factory:
        Makes the dense model, as in :func:`prune_shards`.
    example_inputs:
        What the dense model's forward takes, where the plan can't describe it (arguments that are no tensors); on any
        device.

    Raises
    ------
    CheckpointError, PlanError
        If the folder is damaged, or belongs to another model.
    OSError
        If it can't be read.
    """
    path = Path(folder) / PLAN
    fields = read_file(path, dict[str, Any], _ADVICE)
    with blamed(path, _ADVICE):
        plan = Plan.read(fields)
    model, buffers = empty_model(factory)
    given = None if example_inputs is None else Inputs.of(example_inputs).to("meta")  # where the model is
    small = rewrite(model, plan, given) if plan.removed else model
    source = Weights(small, Shards(folder), buffers)
    missing = [name for name in named_tensors(small) if name not in source]
    if missing:
        raise CheckpointError(
            f"{folder}: {missing[0]} isn't there, and the model doesn't make it; pass the factory of the model whose "
            "shards these are"
        )
    replace_tensors(small, {name: source[name] for name in named_tensors(small)}, {})
    return small


def _check_early(criterion: str | Callable[[Request], Floats], target: Path) -> None:
    """What would fail after minutes of work fails now."""
    name, _ = find_criterion(criterion)
    if isinstance(criterion, str) and criterion not in _ONLY_WEIGHTS:
        raise ScoreError(
            f"criterion {name!r} needs all weights at once; of shards there are {', '.join(_ONLY_WEIGHTS)}"
        )
    if target.exists():
        raise FileExistsError(errno.EEXIST, "is there already; name a folder to be made", str(target))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.absolute().parent))


def _trace(model: nn.Module, inputs: Inputs) -> Trace:
    try:
        return trace(model, inputs.to("meta"))
    except SurgeonError:
        raise
    except Exception as problem:
        where = error_site(problem, {id(m): name for name, m in model.named_modules()})
        raise InputError(
            f"the model's forward doesn't run without numbers (on the meta device) at {where}: "
            f"{type(problem).__name__}: {problem}; pass example_inputs that leave nothing to be decided by the data, "
            "such as an attention_mask"
        ) from problem


def _without_unstored(graph: ChannelGraph, source: Weights) -> ChannelGraph:
    """Pin what lives on tensors that the model makes for itself: those can't be written, so they must stay."""
    structure = graph.structure
    for name in named_tensors(graph.trace.model):
        if name not in source.stored:
            planes = structure.labels.space.planes.get(name, ())
            numbers = [structure.of(plane.labels).reshape(-1) for plane in planes]
            found = np.unique(np.concatenate([*numbers, np.zeros(0, dtype=np.int64)]))
            graph = graph.pin(found[found >= 0], reasons.NOT_STORED, name)
    return graph


@contextlib.contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """A folder that becomes `target` if the body succeeds, and is removed if it doesn't."""
    temporary = beside(target.absolute())
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    except OSError as problem:  # the user has never heard of the other folder
        named = str(problem.filename or "").replace(str(temporary), str(target))
        raise OSError(problem.errno, problem.strerror, named or str(target)) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, plan: Plan, source: Weights, progress: Callable[[str, int, int], None]) -> int:
    """The cut tensors, each read, cut and written before the next; gives their bytes."""
    assert plan.fitted is not None
    fitted = plan.fitted
    owners = {name: owner for owner, names in source.stored.items() for name in names}
    files = {name: file for name, file in source.shards.files.items() if name in owners}
    shapes = {name: (_small_shape(fitted, owners[name]), source.shards.shapes[name][1]) for name in files}
    done = itertools.count(1)

    def cut(name: str) -> Tensor:
        small = small_tensor(fitted, owners[name], source.shards[name])
        progress("rewrite shards", next(done), len(files))
        return small

    written = write_shards(folder, files, shapes, cut)
    with write_beside(folder / PLAN) as temporary:
        temporary.write_text(plan.to_json(), encoding="utf-8")
    return written


def _small_shape(fitted: Fit, name: str) -> torch.Size:
    return fitted.gather(name, named_tensors(fitted.graph.trace.model)[name]).shape


def _verified(fitted: Fit, small: nn.Module, dense: Weights, written: Weights, inputs: Inputs, seed: int) -> Check:
    """Both models run side by side, from the dense shards and from what was written."""
    graph = fitted.graph
    real = fit_recording(graph, record(small, graph.trace.inputs, graph.trace), fitted.kept)
    exact = codes(graph.trace.graph)

    def twins(draw: int) -> tuple[Read, Read]:
        @functools.lru_cache(maxsize=1)  # the small model asks for it right after the dense one
        def twin(name: str) -> Tensor:
            tensor = dense[name]
            return tensor.double() if name in exact else redraw({name: tensor}, seed_of(seed, draw, name))[name]

        def is_drawn(name: str) -> bool:
            return graph.trace.tensors[name].is_floating_point()

        drawn = [name for name in graph.trace.tensors if name in dense and is_drawn(name)]
        return Read(drawn, twin), Read(drawn, lambda name: real.gather(name, twin(name)))

    return check_fit(real, (dense, written), twins, inputs)
