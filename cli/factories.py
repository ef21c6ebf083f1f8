"""``package.module:factory``: a user's own callable that makes the model."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.errors import ModelError, SelectionError

#: The keyword argument that says how many outputs to make: torchvision's and timm's, and so that of users' factories.
CLASSES = "num_classes"


def import_factory(name: str, option: str = "--model") -> Callable[..., nn.Module]:
    """The callable behind ``package.module:factory``, looked for in the current folder too; `option` named it.

    Raises
    ------
    SelectionError
        If the module or the name in it doesn't exist, or can't be called, or the module can't be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise SelectionError(f"{option} {name}: {module_name!r} names no module; expected package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does; a console script starts without it
    try:
        module = importlib.import_module(module_name)
    except ImportError as problem:
        raise SelectionError(
            f"{option} {name}: {module_name} can't be imported ({problem}); is it installed, or in {here}?"
        ) from problem
    except (Exception, SystemExit) as problem:
        raise SelectionError(f"{option} {name}: importing {module_name} raised {_told(problem)}") from problem
    factory = getattr(module, attribute, None)
    if not callable(factory):
        near = difflib.get_close_matches(attribute, [n for n in dir(module) if not n.startswith("_")], n=1)
        raise SelectionError(f"{option} {name}: {module_name} has no callable {attribute!r}{nearest(near)}")
    return factory  # type: ignore[no-any-return]  # what it returns is checked where it is called


def takes_classes(factory: Callable[..., Any]) -> bool:
    """Whether a user's factory can be told how many outputs to make."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of C
        return False
    return CLASSES in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def called(name: str, factory: Callable[..., Any], kwargs: Mapping[str, Any], option: str = "--model") -> nn.Module:
    """What a user's factory makes; `option` named it.

    Raises
    ------
    ModelError
        If it raises, or makes something else than a module.
    """
    model = result_of(name, factory, kwargs, option)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{option} {name} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def result_of(name: str, function: Callable[..., Any], kwargs: Mapping[str, Any], option: str) -> Any:
    """What a user's function returns.

    Raises
    ------
    ModelError
        If it raises.
    """
    try:
        return function(**kwargs)
    except (Exception, SystemExit) as problem:  # the user's code, which may raise anything
        raise ModelError(f"{option} {name} raised {_told(problem)}") from problem


def _told(problem: BaseException) -> str:
    first = (str(problem).splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first}" if first else type(problem).__name__


def nearest(near: Sequence[str]) -> str:
    """Names that may have been meant, to end a sentence with."""
    return f"; did you mean {' or '.join(near)}?" if near else "."
