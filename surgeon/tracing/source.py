"""Where an operator was called: the module path and the user's own source line, read off the Python stack.

Reading the stack needs no hook, so tracing leaves nothing behind in the model.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import fx

_TORCH = str(Path(torch.__file__).resolve().parent) + os.sep
_SURGEON = str(Path(__file__).resolve().parents[1]) + os.sep
_ZOO = _SURGEON + "models" + os.sep  # networks that come along are models like any other
_GENERATED = "<eval_with_key>"  # what fx calls the code of a graph module
#: Under this name a graph module's ``meta`` may hold the user's line of each node.
LINES = "lines"
#: Namespaces whose operators go by their bare names.
_OWN_SPACES = ("aten", "torchvision")
#: Calls that change nothing: a reshape makes or saves a copy depending on the sizes.
_COPIES = frozenset({"alias", "clone", "detach", "lift_fresh_copy"})
#: What goes by the name of others without being one of them: it reads the same bits as another type.
_NAMED_IN_FULL = frozenset({torch.ops.aten.view.dtype})


def operator_name(node: fx.Node) -> str:
    """The name of a recorded call, without its overload: ``"convolution"``; of other nodes what they stand for.

    Operators from elsewhere than torch and torchvision bring their namespace: ``"mylib::gate"``. An overload that does
    something else than its namesakes keeps its own name: ``"view.dtype"``.
    """
    if node.target in _NAMED_IN_FULL:
        return str(node.target).removeprefix("aten.")
    target = getattr(node.target, "overloadpacket", node.target)
    name, space = str(getattr(target, "__name__", target)), getattr(node.target, "namespace", "aten")
    return name if space in _OWN_SPACES else f"{space}::{name}"


def is_copy(node: fx.Node) -> bool:
    """Whether a call changes nothing: a copy, or a move to another device or memory layout."""
    name = operator_name(node)
    if name == "_to_copy":
        return any(source.meta.get("dtype") == node.meta.get("dtype") for source in node.all_input_nodes)
    return name in _COPIES


#: Calls that stand in a recording without the program having copied anything.
_NO_COPY = frozenset({"_unsafe_view", "alias", "detach", "lift_fresh", "lift_fresh_copy"})


def moves_numbers(node: fx.Node) -> bool:
    """Whether a recorded call makes numbers of its own in the program: views and the recording's aliases don't."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or operator_name(node) in _NO_COPY:
        return False
    return all(result.alias_info is None for result in schema.returns)


@dataclass(frozen=True)
class Source:
    """A place in the user's program: the innermost line outside of torch and surgeon.

    Of a line of generated code, `written` says which line the user wrote.
    """

    file: str
    line: int
    written: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.written or f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Site:
    """Module path (``"layer1.0.conv1"``, ``""`` for the root) and source line of one operator call."""

    path: str
    source: Source | None

    def __str__(self) -> str:
        place = self.path or "the model's forward"
        return f"{place} ({self.source})" if self.source else place


def call_site(names: Mapping[int, str], skip: int = 1) -> Site:
    """The site of the running operator call; `names` maps ``id(module)`` to its path.

    Its module is the innermost one of which a method runs (also ``self.experts.gather(x)``): there stand the numbers
    that it works with. What called the model is no part of it: a container at the root has no line of the
    user's.
    """
    frame = sys._getframe(skip)
    path: str | None = None
    source: Source | None = None
    while frame is not None:
        own = _module_of(frame, names)
        path = own if path is None else path
        if source is None and _is_users(frame.f_code.co_filename):
            source = _source(frame, frame.f_lineno)
        if own == "" or (path is not None and source is not None):
            break
        frame = frame.f_back  # type: ignore[assignment]  # typeshed: f_back is None at the stack's bottom
    return Site(path or "", source)


def _module_of(frame: FrameType, names: Mapping[int, str]) -> str | None:
    """The path of the module that a frame is a method of; programs call ``forward`` and other methods directly, too."""
    code = frame.f_code
    return names.get(id(frame.f_locals.get(code.co_varnames[0]))) if code.co_argcount else None


def _is_users(file: str) -> bool:
    return file.startswith(_ZOO) or not file.startswith((_TORCH, _SURGEON, "<frozen"))


def _source(frame: FrameType, line: int) -> Source:
    """The line that a frame is at; all copies of a graph module are one file, though each has code of its own."""
    name = frame.f_code.co_filename
    if not name.startswith(_GENERATED):
        return Source(name, line)
    lines = getattr(frame.f_locals.get("self"), "meta", {}).get(LINES, {})
    made = linecache.getline(name, line).strip().partition(" ")[0]
    return Source("<graph>", line, lines.get(made, f"{name}:{line}"))


def error_site(error: BaseException, names: Mapping[int, str]) -> Site:
    """Where a forward failed: the innermost module and the innermost line outside of torch and surgeon."""
    path, source = "", None
    step = error.__traceback__
    while step is not None:
        own = _module_of(step.tb_frame, names)
        path = path if own is None else own
        if _is_users(step.tb_frame.f_code.co_filename):
            source = _source(step.tb_frame, step.tb_lineno)
        step = step.tb_next
    return Site(path, source)
