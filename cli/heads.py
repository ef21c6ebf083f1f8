"""A model with as many outputs as the data has classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from surgeon.checkpoint import build_origin, is_followed
from surgeon.errors import ModelError

from .factories import CLASSES, called, import_factory, takes_classes
from .subjects import Subject


def with_classes(subject: Subject, count: int) -> tuple[Subject, tuple[str, ...]]:
    """The same model with so many outputs, and the names of the parameters that are new for that.

    Raises
    ------
    ModelError
        If the model is of a kind that can't be built again.
    """
    if subject.cuts is not None:
        raise ModelError(f"{subject.name} is cut already: give a whole model, it gets a head for {count} classes")
    origin = {**subject.origin, "kwargs": {**subject.origin.get("kwargs", {}), CLASSES: count}}
    model = _with_outputs(origin, count)
    if model is None:
        raise ModelError(
            f"{subject.name} has not the {count} outputs that the data needs: make it so, or let its factory take "
            f"{CLASSES}="
        )
    own, state = subject.model.state_dict(), model.state_dict()
    new = tuple(name for name in state if name not in own or own[name].shape != state[name].shape)
    model.load_state_dict({**own, **{name: state[name] for name in new}})
    return replace(subject, model=model.eval(), origin=origin), new


def _with_outputs(origin: Mapping[str, Any], count: int) -> nn.Module | None:
    """The model of an origin anew; None where nobody knows how to make one with so many outputs."""
    if is_followed(origin):
        return build_origin(origin)
    if "timm" in origin:
        import timm

        model = timm.create_model(origin["timm"], num_classes=count)
        assert isinstance(model, nn.Module)
        return model
    if "factory" in origin and takes_classes(factory := import_factory(str(origin["factory"]))):
        return called(str(origin["factory"]), factory, {CLASSES: count})
    return None
