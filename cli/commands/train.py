"""``surgeon train``: a baseline from scratch, or a trained network with a new head for one's own images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import check_outputs, is_file, named_after, run_folder, there
from ..options import DATA, MODELS, refuse_of_cifar, refuse_of_files
from ..several import joined
from ..training_options import (
    announce,
    augment_of,
    check_folder,
    epoch_line,
    percent,
    training_options,
    tuning_of,
)  # fmt: skip
from .compare import as_in_prune

if TYPE_CHECKING:
    import surgeon
    from surgeon.trainer import Row

    from ..subjects import Subject

#: Several processes share the work.
SEVERAL = True
#: Training images that the norms of a file's model are settled on before it is trained.
_SETTLED = 512
_PHASES = {"frozen": "head alone", "all": "all layers"}


@as_in_prune("factory", "threads", "device", "seed", "image_size")
@click.command(name="train", short_help="Train a network on a folder of images or on CIFAR.")
@click.option(
    "--model",
    required=True,
    callback=there,
    metavar="MODEL",
    help=f"{MODELS}; for small images cifar:resnet20, cifar:vgg16_bn, cifar:wrn16-4, ...",
)
@click.option(
    "--data",
    required=True,
    metavar=DATA,
    help="DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg with val/ and test/ beside it.",
)
@click.option(
    "--weights",
    metavar="DEFAULT|none|FILE",
    help="Start from pretrained weights, with a new head where the classes are others.  [default: none]",
)
@click.option("--epochs", type=click.IntRange(min=0), required=True, metavar="N", help="Passes over the images.")
@click.option(
    "--frozen-epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Before them, so many that train the new head alone.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), default=128, show_default=True, metavar="N", help="Images at a time."
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "one-cycle", "constant"]),
    default="cosine",
    show_default=True,
    help="How the rate goes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: MODEL-trained.safetensors]",
)
@click.option(
    "--keep-epoch",
    "keep_epochs",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Keep the weights after this epoch too (0: before the first), to rewind to; repeatable.",
)
@training_options
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Training curves: png, svg or pdf.")
@click.option("--json", "as_json", is_flag=True, help="All epochs as JSON on standard output.")
def command(**options: Any) -> None:
    """Train a network, and write it to a file that every --model takes.

    The best epoch is chosen on images held out of the training images; those of test/ (of CIFAR: the test set) are
    looked at once, at the end. An interrupted run goes on with --resume. Nothing is downloaded but weights that
    --weights asks for.

    Example: surgeon train --model cifar:vgg7_bn --image-size 8 --data digits --crop 1 --no-flip --epochs 10
    """
    refuse_of_files([options["model"]])
    refuse_of_cifar(options["data"])
    if (last := max(options["keep_epochs"], default=0)) > options["epochs"]:
        raise click.UsageError(f"--keep-epoch {last}: there are {options['epochs']} epochs")
    run(options)


def target_of(options: Mapping[str, Any]) -> Path:
    """Where the file goes."""
    return options["output"] or Path(f"{named_after(options['model'], 'trained')}.safetensors")


def run(options: Mapping[str, Any]) -> None:
    """The whole command."""
    with joined():
        _run(options)


def _run(options: Mapping[str, Any]) -> None:
    target = target_of(options)
    folder = options["folder"] or run_folder(target)
    check_outputs([target], [options["model"], options["weights"]], plots=[options["plot"]], folder=folder)
    import surgeon
    from surgeon.data import open_data
    from surgeon.processes import first, from_first

    from ..output import Watch, emit_json, say, warn
    from ..runtime import pick_device, try_forward
    from ..stopping import resumable

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
    if not first():
        return
    _write(target, subject, trained, data)
    if options["plot"]:
        from surgeon.plots import curves

        curves(trained.rows, options["plot"])
    if options["as_json"]:
        emit_json(_facts(trained, target, subject))
    _tell(trained)
    say(f"written: {target}; use it as --model {target}{_made(subject)}, its epochs are in {folder / 'metrics.jsonl'}")


def _settle(subject: Subject, data: surgeon.data.Data, options: Mapping[str, Any]) -> None:
    """A file may hold a healed model: what its norms compute in eval mode they are to compute in train mode, too."""
    import surgeon
    from surgeon.data import batches

    if is_file(options["model"]):
        images = data.checked().train.drawn(_SETTLED, options["seed"])
        surgeon.settle(subject.model, batches(images, subject.preprocess, options["batch_size"]))


def _made(subject: Subject) -> str:
    """The option that the file needs, where its origin is not followed."""
    from surgeon.checkpoint import is_followed

    from ..runtime import maker_named_in

    return "" if is_followed(subject.origin) else f" --factory {maker_named_in(subject.origin)}"


def _tuning(options: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Arguments of surgeon.tune; where no rate is given, that of new weights or of trained ones, which is told."""
    from surgeon.tuning.optimizers import FROM_SCRATCH

    from ..output import say

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
    from ..output import say

    def tell(rows: tuple[Row, ...]) -> None:
        say(epoch_line(_PHASES[rows[-1].phase], rows[-1].epoch, epochs if rows[-1].phase == "all" else None))

    return tell


def _subject(options: Mapping[str, Any], classes: int) -> tuple[Subject, tuple[str, ...]]:
    """The model with an output for each class, and the parameters that are new."""
    import torch

    from ..heads import with_classes
    from ..models import resolve
    from ..output import say, warn
    from ..runtime import try_forward
    from ..subjects import warn_of_masks

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
        from surgeon import finegrained

        say("its masks stay, and its shared values are trained as such")
        subject = replace(subject, model=finegrained.unpack(subject.name, subject.make).eval())
    return subject, ()


def _write(target: Path, subject: Subject, trained: surgeon.Trained, data: surgeon.data.Data) -> None:
    import torch

    import surgeon
    from surgeon import finegrained

    from ..runtime import try_forward

    model = trained.model.cpu().eval()
    plain = finegrained.plain_copy(model) if subject.compact else model
    example, _ = try_forward(plain, subject, torch.device("cpu"))
    plan = subject.cuts or surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(plain, example)))
    if plain is model:
        surgeon.save(target, model, plan, origin=_origin(subject, data))
    else:
        finegrained.pack(target, model, plan, _origin(subject, data))


def _origin(subject: Subject, data: surgeon.data.Data) -> dict[str, Any]:
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


def _tell(trained: surgeon.Trained) -> None:
    from ..output import table

    found = {"validation": trained.val, "test": trained.test}
    rows = [
        (name, percent(seen.accuracy), percent(seen.top5), f"{seen.loss:.4f}")
        for name, seen in found.items()
        if seen is not None
    ]
    table(f"weights of epoch {trained.best_epoch}", ("images", "top-1", "top-5", "loss"), rows)
