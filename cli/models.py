"""What `--model` names: a torchvision model, ``cifar:NAME``, ``timm:NAME``, ``package.module:factory``, or a file."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon import models as zoo
from surgeon.checkpoint import build_origin, load
from surgeon.data import Preprocess
from surgeon.errors import InputError, ModelError, SelectionError

from . import weights as sources
from .factories import CLASSES, called, import_factory, nearest, takes_classes
from .files import is_file
from .output import warn
from .runtime import header_of
from .subjects import Subject

#: torchvision models that are not built as their builder's defaults say: auxiliary heads, which run in training only,
#: are left out; vit_h_14's own weights are for larger images.
_PLAIN: Mapping[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "vit_h_14": {"image_size": 518},
}
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")


def asked_for(options: Mapping[str, Any]) -> Subject:
    """The model that a command's own options name; what the user must know of it is said.

    Raises
    ------
    InputError, ModelError, SelectionError
        As :func:`resolve`.
    """
    subject = resolve(
        options["model"], options["weights"], seed=options["seed"], image_size=options["image_size"],
        factory=options["factory"],
    )  # fmt: skip
    for warning in subject.warnings:
        warn(warning)
    return subject


def resolve(
    name: str,
    weights: str | None,
    *,
    seed: int = 0,
    image_size: int | None = None,
    factory: str | None = None,
    classes: int | None = None,
    option: str = "--model",
) -> Subject:
    """Find, build and fill the model that a user named.

    Parameters
    ----------
    name:
        torchvision name, ``cifar:NAME``, ``timm:NAME``, ``package.module:factory``, or a file that surgeon wrote.
    weights:
        "DEFAULT", "none", a file, or None: pretrained ones if they can be reached, else random ones with a warning.
    seed:
        For random weights.
    image_size:
        Side of the images in pixels; None: the model's own.
    factory:
        What makes the dense model of a file whose origin is not followed.
    classes:
        Number of outputs, of what can be made with any; None: as many as it has by itself.
    option:
        What named it, for errors.

    Raises
    ------
    SelectionError
        If there is no such model.
    InputError
        If the weights can't be had or don't fit.
    ModelError
        If a factory raises, or gives something else than a module.
    """
    torch.manual_seed(seed)
    if is_file(name) and (":" not in name or Path(name).is_file()):
        subject = _from_file(name, weights, factory)
    else:
        subject = _from_name(name, weights, {} if classes is None else {CLASSES: classes}, option)
    subject.model.eval()
    preprocess = subject.preprocess if image_size is None else subject.preprocess.sized(image_size)
    # Whoever opens the file makes its images as they were made for this run.
    return replace(subject, preprocess=preprocess, origin={**subject.origin, "preprocess": preprocess.to_dict()})


def _from_name(name: str, weights: str | None, kwargs: dict[str, Any], option: str) -> Subject:
    if name.startswith("cifar:"):
        return _from_zoo(name, weights, kwargs)
    if name.startswith("timm:"):
        return _from_timm(name, weights, kwargs)
    if ":" in name:
        return _from_factory(name, weights, kwargs, option)
    return _from_torchvision(name, weights, kwargs)


# ---------------------------------------------------------------- torchvision


def _from_torchvision(name: str, weights: str | None, kwargs: dict[str, Any]) -> Subject:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        folder = f" ({name} is a folder here)" if Path(name).is_dir() else ""
        raise SelectionError(
            f"unknown model {name!r}{folder}{nearest(near)} Known: the {len(known)} names of "
            "torchvision.models.list_models(), cifar:NAME, timm:NAME, package.module:factory, or a file that surgeon "
            "wrote"
        )
    if name.startswith("quantized_"):
        plain = name.removeprefix("quantized_")
        raise ModelError(f"{name} is quantised, and its weights can't be cut; prune {plain} and quantise it then")
    origin: dict[str, Any] = {"torchvision": name, "kwargs": {**_kwargs(name, models), **kwargs}}
    entry = models.get_model_weights(name).DEFAULT if len(models.get_model_weights(name)) else None
    preprocess = Preprocess.of_torchvision(entry)
    if _is_file(weights):
        return _with_file(name, origin, preprocess, str(weights))
    url = None if entry is None else entry.url
    model = build_origin(origin)
    found = sources.pretrained(name, weights, lambda: _load_url(model, url))
    return Subject(
        model, name, {**origin, "weights": found.told}, preprocess, found.told, found.warnings, random=found.random
    )


def _kwargs(name: str, models: Any) -> dict[str, Any]:
    if name in _PLAIN:
        return dict(_PLAIN[name])
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    kwargs: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    if "aux_loss" in parameters:
        kwargs["aux_loss"] = False
    return kwargs


def _load_url(model: nn.Module, url: str | None) -> str:
    if url is None:
        raise sources.Unreachable("torchvision has none")
    state = sources.fetch(url, progress=sys.stderr.isatty())
    sources.fill(model, _tidied(state), Path(url).name)
    return f"pretrained ({Path(url).name})"


def _with_file(name: str, origin: dict[str, Any], preprocess: Preprocess, path: str) -> Subject:
    """The model with a user's own weights, with as many classes as the file has."""
    model = build_origin(origin)
    state = _tidied(sources.as_named(sources.read(Path(path)), model.state_dict()))
    last, own = list(model.state_dict().items())[-1]
    head = state.get(last, own)
    if head.shape != own.shape and head.shape[1:] == own.shape[1:]:
        origin["kwargs"]["num_classes"] = int(head.shape[0])
        model = build_origin(origin)
    sources.fill(model, state, path)
    return Subject(model, name, {**origin, "weights": Path(path).name}, preprocess, path)


def _tidied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without auxiliary heads, and with today's names in the files of DenseNets ("norm.1" is "norm1" now)."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY)}
    return {_DENSENET.sub(r"\1\2", name): tensor for name, tensor in kept.items()}


def _is_file(weights: str | None) -> bool:
    return weights is not None and weights.lower() not in ("default", "none")


# ---------------------------------------------------------------- files and the zoo


def _from_file(path: str, weights: str | None, factory: str | None) -> Subject:
    """What a file of surgeon's holds, with the images that it was made for."""
    if weights is not None:
        raise InputError(f"--model {path} brings its weights: leave --weights out, or name the architecture by --model")
    header, make = header_of(path, factory)
    origin = dict(header.origin or {})
    preprocess = Preprocess.from_dict(origin.get("preprocess")) or _images_of(origin)
    cuts = header.plan if header.plan.removed else None
    return Subject(load(path, make), path, origin, preprocess, path, cuts=cuts, make=make, compact=bool(header.coded))


def _images_of(origin: Mapping[str, Any]) -> Preprocess:
    """How the images of a model from there are made."""
    if "surgeon" in origin:
        entry, _ = zoo.find(str(origin["surgeon"]))
        return Preprocess(zoo.SIZE, zoo.SIZE, entry.mean, entry.std)
    from torchvision import models

    name = origin.get("torchvision")
    found: Any = models.get_model_weights(name) if name in models.list_models() else ()
    return Preprocess.of_torchvision(found.DEFAULT if len(found) else None)


def _from_zoo(name: str, weights: str | None, kwargs: dict[str, Any]) -> Subject:
    short = name.removeprefix("cifar:")
    zoo.find(short)
    origin: dict[str, Any] = {"surgeon": short, "kwargs": {CLASSES: 10, **kwargs}}
    preprocess = _images_of(origin)
    if _is_file(weights):
        return _with_file(name, origin, preprocess, str(weights))
    found = sources.pretrained(name, weights, _none_published)
    model, origin = build_origin(origin), {**origin, "weights": found.told}
    return Subject(model, name, origin, preprocess, found.told, found.warnings, random=found.random)


def _none_published() -> str:
    raise sources.Unreachable("there are none; surgeon train makes some")


# ---------------------------------------------------------------- timm and own factories


def _from_timm(name: str, weights: str | None, kwargs: dict[str, Any]) -> Subject:
    try:
        import timm
    except ImportError as problem:
        raise SelectionError(f"--model {name} needs timm: python -m pip install timm") from problem
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        near = difflib.get_close_matches(short, timm.list_models(), n=3, cutoff=0.5)
        raise SelectionError(f"timm has no model {short!r}{nearest(near)}")
    model = timm.create_model(short, **kwargs)
    preprocess = Preprocess.of_timm(timm.data.resolve_model_data_config(model))
    if _is_file(weights):
        sources.fill(model, sources.read(Path(str(weights))), str(weights))
        found = sources.Found(str(weights))
    else:
        found = sources.pretrained(name, weights, lambda: _load_timm(model, short))
    origin = {"timm": short, "weights": Path(found.told).name, "kwargs": kwargs}
    return Subject(model, name, origin, preprocess, found.told, found.warnings, random=found.random)


def _load_timm(model: nn.Module, name: str) -> str:
    import timm
    from huggingface_hub import constants

    try:
        sources.reach("https://huggingface.co")
    except sources.Unreachable:
        constants.HF_HUB_OFFLINE = True  # its own cache may still hold them
    try:
        with sources.time_limit():
            trained = timm.create_model(name, pretrained=True)
    except Exception as problem:  # the hub raises errors of five libraries; all mean the same here
        told = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise sources.Unreachable(told) from problem
    model.load_state_dict(trained.state_dict())
    return "pretrained (timm)"


def _from_factory(name: str, weights: str | None, kwargs: dict[str, Any], option: str) -> Subject:
    factory = import_factory(name, option)
    kwargs = kwargs if takes_classes(factory) else {}
    model = called(name, factory, kwargs, option)
    told = "as the factory made them"
    random: bool | None = None
    if _is_file(weights):
        sources.fill(model, sources.read(Path(str(weights))), str(weights))
        told, random = str(weights), False
    elif weights is not None and weights.lower() == "default":
        raise InputError(f"--weights DEFAULT: {name} is no zoo model; load the weights in the factory, or give a file")
    own = getattr(factory, "preprocess", None)
    preprocess = own if isinstance(own, Preprocess) else Preprocess(channels=_channels(model))
    origin = {"factory": name, "weights": Path(told).name, "kwargs": kwargs}
    return Subject(model.cpu(), name, origin, preprocess, told, random=random)


def _channels(model: nn.Module) -> int:
    """1 for a model whose first convolution takes grey images, else 3."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 1 if first is not None and first.in_channels == 1 else 3
