"""What ``surgeon train`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import surgeon
from surgeon import finegrained
from surgeon.checkpoint import is_followed
from surgeon.data import Data, batches, open_data
from surgeon.processes import first, from_first
from surgeon.trainer import Row
from surgeon.tuning.optimizers import FROM_SCRATCH

from .files import is_file
from .heads import with_classes
from .models import resolve
from .output import Watch, emit_json, say, table, warn
from .runtime import maker_named_in, pick_device, try_forward
from .stopping import resumable
from .subjects import Subject, warn_of_masks
from .training_options import announce, augment_of, check_folder, epoch_line, percent, tuning_of

#: Training images that the norms of a file's model are settled on before it is trained.
_SETTLED = 512
_PHASES = {"frozen": "head alone", "all": "all layers"}


def run(options: Mapping[str, Any], target: Path, folder: Path) -> None:
    """The whole command; `options` by their long names, the file to write, and where state and metrics are kept."""
    from_first(lambda: check_folder(folder, resume=options["resume"]))
    device = pick_device(options["device"], options["threads"])
    data = open_data(options["data"], options["data_root"]).with_validation(options["val_share"], options["seed"])
    subject, new = _subject(options, len(data.classes))
    try_forward(subject.model.to(device), subject, device)
    announce(subject, data, new)
    tuning = _tuning(options, subject)
    _settle(subject, data, options)
    with resumable(), Watch() as watch:
        trained = surgeon.train(
            subject.model,
            data,
            epochs=options["epochs"],
            frozen_epochs=options["frozen_epochs"],
            head=new or None,
            preprocess=subject.preprocess,
            augment=augment_of(options),
            batch_size=options["batch_size"],
            workers=options["workers"],
            directory=folder,
            keep_epochs=options["keep_epochs"],
            origin=_origin(subject, data),
            on_epoch=_epochs(options["epochs"]),
            seed=options["seed"],
            device=device,
            progress=watch,
            **tuning,
        )
    for note in trained.notes:
        warn(note)
    if first():
        _write(target, subject, trained, data)
        _tell(trained, target, subject, options)
        epochs = folder / "metrics.jsonl"
        say(f"written: {target}; use it as --model {target}{_made(subject)}, its epochs are in {epochs}")


def _settle(subject: Subject, data: Data, options: Mapping[str, Any]) -> None:
    """A file may hold a healed model: what its norms compute in eval mode they are to compute in train mode, too."""
    if is_file(options["model"]):
        images = data.checked().train.drawn(_SETTLED, options["seed"])
        surgeon.settle(subject.model, batches(images, subject.preprocess, options["batch_size"]))


def _made(subject: Subject) -> str:
    """The option that the file needs, where its origin is not followed."""
    return "" if is_followed(subject.origin) else f" --factory {maker_named_in(subject.origin)}"


def _tuning(options: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Arguments of surgeon.tune; where no rate is given, that of new weights or of trained ones, which is told."""
    given = tuning_of(options)
    fresh = FROM_SCRATCH.get(given["optimizer"])
    if subject.random and options["weights"] is None:
        say("it starts from random weights; --weights FILE, or DEFAULT for pretrained ones, starts from trained ones")
    if subject.random and fresh is not None:
        given.setdefault("lr", fresh)
    elif subject.random is None and fresh is not None and "lr" not in given:
        say(f"its weights are taken for trained ones, and the rate is that of fine-tuning; from scratch: --lr {fresh}")
    return given


def _weights(options: Mapping[str, Any]) -> str | None:
    """Random ones where nothing is said; a file of surgeon's brings its own."""
    given: str | None = options["weights"]
    return given if given is not None or is_file(options["model"]) else "none"


def _epochs(epochs: int) -> Callable[[tuple[Row, ...]], None]:
    """Tells each epoch's figures."""

    def tell(rows: tuple[Row, ...]) -> None:
        say(epoch_line(_PHASES[rows[-1].phase], rows[-1].epoch, epochs if rows[-1].phase == "all" else None))

    return tell


def _subject(options: Mapping[str, Any], classes: int) -> tuple[Subject, tuple[str, ...]]:
    """The model with an output for each class, and the parameters that are new."""
    subject = resolve(
        options["model"],
        _weights(options),
        seed=options["seed"],
        image_size=options["image_size"],
        factory=options["factory"],
    )
    for warning in subject.warnings:
        warn(warning)
    _, outputs = try_forward(subject.model, subject, torch.device("cpu"))
    if getattr(outputs, "shape", ())[1:] != (classes,):
        warn_of_masks(subject)
        return with_classes(subject, classes)
    if subject.compact:
        say("its masks stay, and its shared values are trained as such")
        subject = replace(subject, model=finegrained.unpack(subject.name, subject.make).eval())
    return subject, ()


def _write(target: Path, subject: Subject, trained: surgeon.Trained, data: Data) -> None:
    model = trained.model.cpu().eval()
    plain = finegrained.plain_copy(model) if subject.compact else model
    example, _ = try_forward(plain, subject, torch.device("cpu"))
    plan = subject.cuts or surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(plain, example)))
    if plain is model:
        surgeon.save(target, model, plan, origin=_origin(subject, data))
    else:
        finegrained.pack(target, model, plan, _origin(subject, data))


def _origin(subject: Subject, data: Data) -> dict[str, Any]:
    """What the files say about the model."""
    return {
        **subject.origin,
        "weights": f"trained on {Path(data.name).name}",
        "classes": list(data.classes),
    }


def _facts(trained: surgeon.Trained, target: Path, subject: Subject) -> dict[str, Any]:
    return {
        "model": subject.name,
        "epochs": [row.to_dict() for row in trained.rows],
        "best_epoch": trained.best_epoch,
        "val": asdict(trained.val),
        "test": None if trained.test is None else asdict(trained.test),
        "output": str(target),
    }


def _tell(trained: surgeon.Trained, target: Path, subject: Subject, options: Mapping[str, Any]) -> None:
    """The curves, all figures as JSON, and what a person wants to know, as far as they were asked for."""
    if options["plot"]:
        from surgeon.plots import curves

        curves(trained.rows, options["plot"])
    if options["as_json"]:
        emit_json(_facts(trained, target, subject))
    found = {"validation": trained.val, "test": trained.test}
    rows = [
        (name, percent(seen.accuracy), percent(seen.top5), f"{seen.loss:.4f}")
        for name, seen in found.items()
        if seen is not None
    ]
    table(f"weights of epoch {trained.best_epoch}", ("images", "top-1", "top-5", "loss"), rows)
