"""Where an operator was called: the module path and the user's own source line, read off the Python stack.

Reading the stack needs no hook, so tracing leaves nothing behind in the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import fx, nn

_TORCH = str(Path(torch.__file__).resolve().parent) + os.sep
_SURGEON = str(Path(__file__).resolve().parents[1]) + os.sep
_MODULE_CALL = nn.Module._call_impl.__code__


def operator_name(node: fx.Node) -> str:
    """The ATen name of a recorded call, without its overload: ``"convolution"``; of other nodes what they stand for."""
    target = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", target))


@dataclass(frozen=True)
class Source:
    """A place in the user's program: the innermost line outside of torch and surgeon."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Site:
    """Module path (``"layer1.0.conv1"``, ``""`` for the root) and source line of one operator call."""

    path: str
    source: Source | None

    def __str__(self) -> str:
        place = self.path or "the model's forward"
        return f"{place} ({self.source})" if self.source else place


def call_site(names: Mapping[int, str], skip: int = 1) -> Site:
    """The site of the running operator call; `names` maps ``id(module)`` to its path."""
    frame = sys._getframe(skip)
    path: str | None = None
    source: Source | None = None
    while frame is not None:
        code = frame.f_code
        if code is _MODULE_CALL:
            if path is None:
                path = names.get(id(frame.f_locals.get("self")))
        elif source is None and not code.co_filename.startswith((_TORCH, _SURGEON, "<frozen")):
            source = Source(code.co_filename, frame.f_lineno)
        if path is not None and source is not None:
            break
        frame = frame.f_back  # type: ignore[assignment]  # typeshed: f_back is None at the stack's bottom
    return Site(path or "", source)


def error_site(error: BaseException, names: Mapping[int, str]) -> Site:
    """Where a forward failed: the innermost module and the innermost line outside of torch and surgeon."""
    path, source = "", None
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code is _MODULE_CALL:
            path = names.get(id(step.tb_frame.f_locals.get("self")), path)
        elif not code.co_filename.startswith((_TORCH, _SURGEON, "<frozen")):
            source = Source(code.co_filename, step.tb_lineno)
        step = step.tb_next
    return Site(path, source)
