"""``surgeon prune --epochs``: cut, fine-tune, cut again, with figures and a file after every step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from surgeon.errors import ModelError
from surgeon.jsonfiles import blamed, read_lines, shaped, write_lines
from surgeon.measure import latency
from surgeon.measure.results import Latency, SpeedUp
from surgeon.processes import first, from_first
from surgeon.tuning import Epoch, Validation, evaluate
from surgeon.tuning.record import Step

from .cuts import looks_at_images
from .images import Batches
from .labelled import Loaders, open_labelled
from .models import asked_for
from .output import Watch, emit_json, say, table, warn
from .runtime import header_of, pick_device, try_forward
from .stopping import resumable
from .subjects import Subject, check_classes, warn_of_classes, warn_of_masks
from .training_options import about_of, announce, check_folder, epoch_line, percent, tuning_of

#: Rounds of timing after each step.
_ROUNDS = 10
_METRICS = "steps.jsonl"


def run(options: Mapping[str, Any], budget: Mapping[str, Any], target: Path) -> None:
    """The whole command; `options` by their long names.

    Raises
    ------
    InputError, ModelError
        If there are no labelled images of the model's classes, or the model is cut already.
    """
    folder = options["folder"]
    from_first(lambda: check_folder(folder, resume=options["resume"]))
    device = pick_device(options["device"], options["threads"])
    data = open_labelled(options, "fine-tuning")
    subject = asked_for(options)
    warn_of_masks(subject)
    example, outputs = try_forward(subject.model.to(device), subject, device)
    _check_whole(subject)
    check_classes(subject, data, outputs)
    warn_of_classes(subject, data.classes)
    announce(subject, data)
    looks_at_images(options["criterion"], options["heal"], trained=True)
    rows = _Rows(folder / _METRICS, subject.model, example)
    loaders = Loaders.of(options, data, subject.preprocess, device)
    with resumable(), Watch() as watch:
        result = surgeon.prune_and_tune(
            subject.model,
            example,
            loaders.train,
            loaders.val,
            **budget,
            dataloader=loaders.rank,
            micro_batch=options["micro_batch"],
            steps=options["steps"],
            schedule=options["schedule"],
            epochs_per_step=options["epochs"],
            final_epochs=options["final_epochs"],
            tuning={**_tuning(options, subject.model), "device": device, "on_epoch": rows.on_epoch},
            after_cut=_healer(options, loaders.rank),
            rewind=_early(options, device),
            directory=folder,
            about=about_of(options, subject, data),
            origin=subject.origin,
            on_step=rows,
            criterion=options["criterion"],
            scope=options["scope"],
            round_to=options["round_to"],
            min_channels=options["min_channels"],
            ignored_layers=options["ignore"],
            units=options["unit"],
            verify=options["verify"],
            strict=options["strict"],
            seed=options["seed"],
            progress=watch,
        )
    if first():
        surgeon.save(target, result.model, result.plan, origin=subject.origin)
    test = None if loaders.test is None else evaluate(result.model, loaders.test)
    if first():
        if options["as_json"]:
            emit_json(_facts(subject, result, rows, test) | {"output": str(target)})
        _show(subject, result, rows.facts(result.steps))
        if test is not None:
            say(f"test images: top-1 {percent(test.accuracy)}, top-5 {percent(test.top5)}, loss {test.loss:.4f}")
        say(f"written: {target}; every step's model is in {folder}/step-N.safetensors, its figures in {rows.path}")


def _check_whole(subject: Subject) -> None:
    if subject.cuts is not None:
        raise ModelError(
            f"{subject.name} is cut already: give the model that it was made from, or go on without --epochs"
        )


def _tuning(options: Mapping[str, Any], dense: nn.Module) -> dict[str, Any]:
    """Arguments of surgeon.tune; the dense model teaches where that was asked for."""
    given = tuning_of(options, leave=("schedule",))
    if options["teacher_weight"]:
        given |= {"teacher": dense, "teacher_weight": options["teacher_weight"], "temperature": options["temperature"]}
    return given


def _early(options: Mapping[str, Any], device: torch.device) -> nn.Module | None:
    """The dense model with the weights to rewind to."""
    if options["rewind"] is None:
        return None
    _, make = header_of(str(options["rewind"]), options["factory"])
    return surgeon.load(options["rewind"], make).to(device)


def _healer(options: Mapping[str, Any], loader: Batches) -> Any:
    level = options["heal"]
    if level == "none":
        return None

    def heal(small: nn.Module, before: nn.Module, plan: surgeon.Plan) -> None:
        surgeon.heal(before, small, plan, loader, level, seed=options["seed"])
        if level == "lstsq":
            surgeon.settle(small, loader)

    return heal


class _Rows:
    """Times each step beside the dense model when it is done, and keeps what was measured before an interruption."""

    def __init__(self, path: Path, dense: nn.Module, example: torch.Tensor) -> None:
        self.path, self._dense, self._example = path, dense, example
        self._latencies: dict[int, dict[str, Any]] = {}
        self._latencies = {row["number"]: row["latency"] for row in _lines(path)}
        self._done = max(self._latencies, default=0)  # the last step that is finished

    def on_epoch(self, history: tuple[Epoch, ...]) -> None:
        """Tell of an epoch of the step that is under way."""
        say(epoch_line(f"step {self._done + 1}", history[-1], None))

    def __call__(self, step: Step, small: nn.Module) -> None:
        self._done = step.number
        if not first():
            return
        measured = latency({"dense": self._dense, "small": small}, self._example, rounds=_ROUNDS)
        self._latencies[step.number] = {
            "threads": measured.threads,
            "device": measured.device,
            "batch_size": len(self._example),
            **{timed.name: timed.to_dict() for timed in measured.latencies},
            "speed_up": measured.speed_up("small", "dense").to_dict(),
        }
        write_lines(self.path, self._saved(step))
        say(_line(step, self._latencies[step.number]))

    def _saved(self, step: Step) -> list[dict[str, Any]]:
        """The file's rows with this step's, whatever came before it."""
        kept = [row for row in _lines(self.path) if row["number"] < step.number]
        return [*kept, *self.facts((step,))]

    def facts(self, steps: tuple[Step, ...]) -> list[dict[str, Any]]:
        """Everything about each step."""
        return [{**asdict(step), "latency": self._latencies.get(step.number)} for step in steps]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows that a run has written so far."""
    advice = "give another folder"
    rows = read_lines(path, dict[str, Any], advice) if path.exists() else []
    for number, row in enumerate(rows, 1):
        with blamed(f"{path}:{number}", advice):
            shaped(int, row.setdefault("number", None), "number")
            shaped(_Timed | None, row.setdefault("latency", None), "latency")
    return rows


@dataclass(frozen=True)
class _Timed:
    """What is measured of a step."""

    threads: int
    device: str
    batch_size: int
    dense: Latency
    small: Latency
    speed_up: SpeedUp


def _facts(subject: Subject, result: surgeon.PrunedAndTuned, rows: _Rows, test: Validation | None) -> dict[str, Any]:
    return {
        "model": subject.name,
        "dense": asdict(result.dense),
        "steps": rows.facts(result.steps),
        "test": None if test is None else asdict(test),
        "plan": json.loads(result.plan.to_json()),
    }


def _accuracy(step: Step) -> float | None:
    return step.history[step.best_epoch - 1].val_accuracy if step.best_epoch else _cut(step)


def _cut(step: Step) -> float | None:
    return None if step.cut is None else step.cut.accuracy


def _line(step: Step, timed: Mapping[str, Any]) -> str:
    ratio = timed["speed_up"]
    return (
        f"step {step.number}: {step.filters:,} filters, {step.macs:,} MACs, {step.params:,} parameters left; "
        f"validation {percent(_cut(step))} after the cut, {percent(_accuracy(step))} after training; "
        f"{1e3 * timed['small']['median']:.2f} ms, {ratio['ratio']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
    )


def _show(subject: Subject, result: surgeon.PrunedAndTuned, facts: list[dict[str, Any]]) -> None:
    rows = [("dense", *_counts(result.dense), percent(_cut(result.dense)), "-", "-")]
    for step, row in zip(result.steps, facts, strict=True):
        timed = row["latency"]
        speed = "-" if timed is None else f"{timed['speed_up']['ratio']:.2f}x"
        rows.append((str(step.number), *_counts(step), percent(_cut(step)), percent(_accuracy(step)), speed))
    table(
        f"{subject.name}: validation accuracy after each step (1 multiply-add = 1 MAC)",
        ("step", "filters", "MACs", "parameters", "cut", "trained", "speed-up"),
        rows,
    )
    for note in dict.fromkeys(note for step in result.steps for note in step.notes):
        warn(note)
    columns = [result.dense, *result.steps]
    changed = [layer for layer, width in result.dense.widths.items() if columns[-1].widths[layer] != width]
    shown = [(layer, *(step.widths[layer] for step in columns)) for layer in changed]
    table("out-channels", ("layer", "dense", *(str(step.number) for step in result.steps)), shown)


def _counts(step: Step) -> tuple[str, str, str]:
    return f"{step.filters:,}", f"{step.macs:,}", f"{step.params:,}"
