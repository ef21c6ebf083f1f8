"""What `surgeon sparsify` and `surgeon share` have in common: the model, images that judge it, the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .files import check_outputs, is_file, named_after, there
from .options import (
    DATA,
    MODELS,
    file_factory_option,
    json_option,
    refuse_of_cifar,
    refuse_of_files,
    refuse_typed,
    seed_option,
)
from .training_options import data_root_option

if TYPE_CHECKING:
    from .images import Batches
    from .output import Watch

_F = TypeVar("_F", bound=Callable[..., Any])
_Done = TypeVar("_Done")

#: Images that judge, and that gradients are taken of.
SAMPLES = 512
LEVELS = ("none", "bn", "bias", "lstsq")

_OPTIONS = (
    click.option(
        "--model",
        required=True,
        callback=there,
        metavar="MODEL",
        help=f"{MODELS}.",
    ),
    file_factory_option,
    click.option(
        "--weights", metavar="DEFAULT|none|FILE", help="Pretrained, random, or a state dict, as for surgeon prune."
    ),
    click.option(
        "--data",
        type=click.Path(),
        metavar=DATA,
        help="Images as DIR/CLASS/*.jpg: how many of them the model still puts into the same class.",
    ),
    data_root_option,
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=SAMPLES,
        show_default=True,
        metavar="N",
        help="Of --data; with --heal as many again, which heal and don't judge.",
    ),
    click.option(
        "--heal",
        type=click.Choice(LEVELS),
        default="none",
        show_default=True,
        help="Fit what is left anew to what the model computed before, on images of --data, without labels and without "
        "training; lstsq recovers most.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Images at a time."
    ),
    click.option(
        "--image-size", type=click.IntRange(min=1), metavar="PIXELS", help="Side of the images.  [default: the model's]"
    ),
    click.option(
        "--ignore", multiple=True, metavar="LAYER", help="Layer (name or glob) that stays as it is; repeatable."
    ),
    click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="File.  [default: by MODEL]"),
    click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, ..."),
    seed_option("Of random weights, and of the images that are drawn."),
    json_option,
)


def common_options(function: _F) -> _F:
    """The options that both commands have."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class Opened:
    """The model, what it was cut by and made from, and the images that judge it.

    Attributes
    ----------
    model:
        On the device, in eval mode.
    plan, origin:
        For the file.
    loader:
        Images that judge; None without ``--data``.
    answers:
        Class that the model, as it was opened, gives each of them.
    material:
        Images that something is learned from: others with ``--heal``, else the same.
    """

    name: str
    model: Any
    plan: Any
    origin: Mapping[str, Any] | None
    loader: Any = None
    answers: Any = None
    material: Any = None

    def verdict(self, model: Any) -> dict[str, float]:
        """Share of the images with the same answer as before, and with the right one where the classes are known."""
        if self.loader is None:
            return {}
        found = _answers(model, self.loader)
        verdict = {"agreement": float((found == self.answers).double().mean())}
        if self.loader.labels is not None:
            verdict["accuracy"] = float((found == self.loader.labels).double().mean())
        return verdict

    def healed(self, change: Callable[[Watch], _Done], level: str, seed: int) -> _Done:
        """What `change` does to the model, which is then healed towards what it was."""
        from surgeon import finegrained

        from .output import Watch

        dense = None if level == "none" else finegrained.plain_copy(self.model)
        with Watch() as watch:
            done = change(watch)
            if dense is not None:
                finegrained.heal(dense, self.model, self.material, level, seed=seed, progress=watch)
        return done

    def target(self, output: Path | None, word: str) -> Path:
        """Where the file goes."""
        return output or default_target(self.name, word)


def default_target(name: str, word: str) -> Path:
    """A name made of the model's, in the current folder."""
    return Path(f"{named_after(name, word)}.safetensors")


def open_model(options: Mapping[str, Any], word: str) -> Opened:
    """Find the model, and the images of ``--data``; first of all, make sure that the file can be written."""
    from .images import find
    from .runtime import pick_device

    name = options["model"]
    _check(options)
    if not options.get("sweep"):
        check_outputs([options["output"] or default_target(name, word)], [name])
    source = None if options["data"] is None else find(options["data"], options["data_root"])
    device = pick_device(options["device"])
    opened = _from_file(options, device) if is_file(name) else _from_name(options, device)
    if source is None:
        model, plan, origin = opened[:3]
        return Opened(name, model, plan, origin)
    return _judged(name, opened, source, options, device)


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what can't be had together, and what wouldn't be looked at."""
    by_name = not is_file(options["model"])
    refuse_of_files([options["model"]])
    refuse_of_cifar(options["data"])
    if not by_name:
        refuse_typed(["weights"], "for models by name: a file brings its own")
    if options["data"] is not None:
        return
    if options["heal"] != "none":
        raise click.UsageError("--heal needs images: give --data DIR")
    vain = ("samples", "batch_size") if by_name else ("samples", "batch_size", "image_size")
    refuse_typed(vain, "for images of your own: give --data DIR")


def _from_name(options: Mapping[str, Any], device: Any) -> tuple[Any, ...]:
    from surgeon.planning import Plan
    from surgeon.tracing import Inputs

    from .models import asked_for
    from .runtime import try_forward

    subject = asked_for(options)
    model = subject.model.to(device)
    example, outputs = try_forward(model, subject, device)
    plan = Plan(type(model).__name__, {}, Inputs.of(example).spec())
    return model, plan, subject.origin, subject.preprocess, outputs


def _from_file(options: Mapping[str, Any], device: Any) -> tuple[Any, ...]:
    import torch

    from surgeon import finegrained
    from surgeon.tracing import Inputs

    from .images import Preprocess
    from .runtime import header_of, try_forward
    from .subjects import Subject

    header, make = header_of(options["model"], options["factory"])
    model = finegrained.unpack(options["model"], make).eval().to(device)
    first = next(leaf for leaf in Inputs.from_spec(header.plan.inputs).leaves() if isinstance(leaf, torch.Tensor))
    size = options["image_size"] or int(first.shape[-1])
    own = Preprocess.from_dict((header.origin or {}).get("preprocess"))
    preprocess = own or Preprocess(channels=1 if first.ndim == 4 and first.shape[1] == 1 else 3)
    if size != preprocess.size:
        preprocess = preprocess.sized(size)
    subject = Subject(model, options["model"], dict(header.origin or {}), preprocess, "as the file has them")
    _, outputs = try_forward(model, subject, device)
    return model, header.plan, header.origin, preprocess, outputs


def _judged(name: str, opened: tuple[Any, ...], source: Any, options: Mapping[str, Any], device: Any) -> Opened:
    from .images import batches, drawn
    from .output import say, warn

    model, plan, origin, preprocess, outputs = opened
    heals = options["heal"] != "none"
    images = drawn(source, options["samples"] * (1 + heals), preprocess, options["seed"], name=options["data"])
    for warning in images.warnings:
        warn(warning)
    loader = batches(images, outputs, preprocess, options["batch_size"], device)
    for note in loader.notes[-1:]:
        say(f"note: {note}")
    material = loader
    if heals:
        material, loader = _halves(loader)
        say(f"note: {len(material.pixels)} of them heal, {len(loader.pixels)} judge")
    return Opened(name, model, plan, origin, loader, _answers(model, loader), material)


def _halves(loader: Batches) -> tuple[Batches, Batches]:
    """The images in two; the classes are in both alike, since they follow each other in turn."""
    from surgeon.errors import InputError

    count, labels = len(loader.pixels), loader.labels
    if count < 2:
        raise InputError("--heal needs two images at least: one half of them heals, the other judges")
    parts = slice(count // 2), slice(count // 2, count)
    first, second = (
        replace(loader, pixels=loader.pixels[part], labels=None if labels is None else labels[part]) for part in parts
    )
    return first, second


def _answers(model: Any, loader: Any) -> Any:
    import torch

    from .images import scores_of

    with torch.inference_mode():
        return torch.cat([scores_of(model(inputs)).argmax(1).cpu() for inputs, _ in loader])


def write(opened: Opened, path: Path) -> dict[str, Any]:
    """Write the compact file, and say how large it is beside the weights as they are."""
    from surgeon import finegrained
    from surgeon.report import tensor_bytes

    from .output import say, size

    plain_bytes = tensor_bytes(finegrained.plain_copy(opened.model))
    finegrained.pack(path, opened.model.cpu(), opened.plan, opened.origin)
    file_bytes = path.stat().st_size
    say(f"written: {path} ({size(file_bytes)}; the weights as they are take {size(plain_bytes)})")
    say("It is smaller, not faster: dense kernels take as long as before. surgeon prune saves time.")
    return {"output": str(path), "file_bytes": file_bytes, "plain_bytes": plain_bytes}


def tell(verdict: Mapping[str, float], images: int) -> None:
    """Say what the images say."""
    from .output import say

    words = {"agreement": "the same class as before", "accuracy": "the right class"}
    for name, value in verdict.items():
        say(f"{words[name]}: {value:.1%} of {images} images")
