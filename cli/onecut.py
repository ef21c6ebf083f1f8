"""``surgeon prune`` without training: one cut, or several with healing in between, checked and saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import surgeon
from surgeon.checkpoint import load_dense
from surgeon.composition import compose
from surgeon.processes import first
from surgeon.rewriting import fit
from surgeon.tracing import Inputs

from .cuts import SAMPLES, SAMPLES_WITH_DATA, Options, looks_at_images
from .images import Batches, Images, Source, batches, drawn, find, photographs
from .models import asked_for
from .output import Watch, say, warn
from .runtime import about, pick_device, try_forward
from .subjects import Subject, warn_of_classes, warn_of_masks
from .summary import show


def run(options: Options) -> None:
    """The whole command."""
    source = None if options.data is None else find(options.data, options.training["data_root"])
    device = pick_device(options.device, options.threads)
    subject = asked_for(vars(options))
    warn_of_masks(subject)
    model = subject.model.to(device)
    example, outputs = try_forward(model, subject, device)
    if options.latency_batch_size > 1:
        example = example.repeat(options.latency_batch_size, 1, 1, 1)
    images, loader = _material(options, source, subject, outputs, device)
    if images is not None:
        warn_of_classes(subject, images.classes)
    with Watch() as watch:
        result = _prune(options, model, example, loader, watch)
    result = _with_remarks(_since_the_dense(result, subject), subject, images, loader)
    if not first():
        return
    written = None
    if not options.dry_run:
        surgeon.save(options.target, result.model, result.plan, origin=subject.origin)
        written = options.target
    if options.report is not None:
        _write_page(options.report, subject, result, device)
    healed = options.heal != "none"
    show(subject, result, written, as_json=options.as_json, with_plan=options.dry_run, healed=healed)


def _write_page(path: Path, subject: Subject, result: surgeon.Result, device: torch.device) -> None:
    surgeon.write_report(path, result, title=f"{subject.name}, cut by surgeon", about=about(device))
    say(f"report: {path}")


def _material(
    options: Options, source: Source | None, subject: Subject, outputs: Any, device: torch.device
) -> tuple[Images | None, Batches | None]:
    """Images and targets, where the criterion looks at any."""
    if not looks_at_images(options.criterion, options.heal):
        return None, None
    if source is None and options.heal != "none":
        warn("healing on crops of two photographs: give --data DIR with images of your own kind")
    default = SAMPLES if source is None else SAMPLES_WITH_DATA
    samples = options.samples or default
    if source is None:
        images = photographs(samples, subject.preprocess, options.seed)
    else:
        images = drawn(source, samples, subject.preprocess, options.seed, strict=options.strict, name=options.data)
    draws = options.criterion == "auto"  # from the chances of all classes, as Fisher's information asks for
    return images, batches(images, outputs, subject.preprocess, options.batch_size, device, draws=draws)


def _prune(
    options: Options, model: torch.nn.Module, example: torch.Tensor, loader: Batches | None, watch: Watch
) -> surgeon.Result:
    return surgeon.prune(
        model,
        example,
        **options.budget,
        criterion=options.criterion,
        dataloader=loader,
        loss_fn=None if loader is None else loader.loss,
        scope=options.scope,
        round_to=options.round_to,
        ignored_layers=options.ignore,
        units=options.unit,
        min_channels=options.min_channels,
        heal=options.heal,
        steps=options.steps,
        schedule=options.schedule,
        verify=options.verify,
        strict=options.strict,
        as_graph=options.as_graph,
        micro_batch=options.micro_batch,
        seed=options.seed,
        progress=watch,
    )


def _since_the_dense(result: surgeon.Result, subject: Subject) -> surgeon.Result:
    """The same result; its plan says all that is cut from the dense model, where an earlier cut is in the file."""
    if subject.cuts is None:
        return result

    example = Inputs.from_spec(result.plan.inputs)
    fitted = fit(subject.model.cpu(), result.plan, example)
    whole = compose(load_dense(subject.name, subject.make), subject.cuts, fitted, example)
    return replace(result, plan=replace(whole, budget=result.plan.budget, criterion=result.plan.criterion, fitted=None))


def _with_remarks(
    result: surgeon.Result, subject: Subject, images: Images | None, loader: Batches | None
) -> surgeon.Result:
    """The same result; its report also says what weights and images it was made with."""
    notes = () if loader is None else loader.notes
    report = replace(
        result.report,
        notes=(f"weights: {subject.weights}", *notes, *result.report.notes),
        warnings=(*subject.warnings, *(images.warnings if images else ()), *result.report.warnings),
    )
    return replace(result, report=report)
