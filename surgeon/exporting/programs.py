"""Formats that begin with ``torch.export``: its own archive, and ONNX."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import ExportError, InexactExportError
from surgeon.exporting.inputs import Sizes, other_size
from surgeon.tracing import Inputs, copied_inputs

__all__ = ["run_onnx", "run_pt2", "write_onnx", "write_pt2"]

#: One protobuf file can't be larger.
_MOST_ONNX_BYTES = 2**31 - 2**20


def program_of(model: nn.Module, inputs: Inputs, sizes: Sizes) -> torch.export.ExportedProgram:
    """The model as ``torch.export`` sees it, for any batch size where the model takes any.

    Raises
    ------
    ExportError
        If torch can't; its own words are in the message.
    """
    free = {0: torch.export.Dim.DYNAMIC} if sizes.free else None
    if free and sizes.example == 1:
        inputs = other_size(inputs, 2)  # torch.export takes a size of 1 for one that stays
    shapes: Any = inputs.map(lambda _: free)  # type: ignore[arg-type, return-value]  # a tree of sizes, not of tensors
    named = dict(inspect.signature(model.forward).bind(*shapes.args, **shapes.kwargs).arguments)

    def exported() -> torch.export.ExportedProgram:
        return torch.export.export(model, inputs.args, dict(inputs.kwargs), dynamic_shapes=named if free else None)

    program: torch.export.ExportedProgram = _told(model, "torch.export", exported)
    return program


def _told(model: nn.Module, what: str, work: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about itself
            return work()
    except OSError:  # a full disk is no fault of the model
        raise
    except Exception as problem:  # exporters run the user's forward and fail in many ways
        first = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise ExportError(
            f"{what} can't write {type(model).__name__}: {type(problem).__name__}: {first[:300]}"
        ) from problem


def write_pt2(model: nn.Module, inputs: Inputs, sizes: Sizes, path: Path) -> None:
    """A zip archive: the graph as JSON, each tensor's bytes in a file of its own; nothing in it is pickled."""
    program: Any = program_of(model, inputs, sizes)
    program._example_inputs = None  # torch would pickle them into the archive
    with _Careful(path, "w+b") as file:
        _told(model, "torch.export", lambda: torch.export.save(program, file))
        if file.problem is not None:
            raise file.problem


class _Careful(io.FileIO):
    """A file for torch's writer of archives, which ends the process where it can't write: errors wait."""

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """All of it, or as much as can be before the first error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.problem is None:
                rest = rest[super().write(rest) :]
        except OSError as problem:
            self.problem = problem
        return size


def run_pt2(path: Path, inputs: Sequence[Inputs]) -> list[Any]:
    """Open the archive anew and run it on each of the inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        model = torch.export.load(path).module()
        return [model(*own.args, **own.kwargs) for own in map(copied_inputs, inputs)]


def write_onnx(model: nn.Module, inputs: Inputs, sizes: Sizes, path: Path) -> None:
    """One ONNX file with the weights in it.

    Raises
    ------
    ExportError
        If the weights are more than one file holds (2 GB), or an operator has no form there.
    """
    total = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if total > _MOST_ONNX_BYTES:
        raise ExportError(f"{total} bytes of weights are more than one ONNX file holds (2 GB); write format pt2")
    program: Any = program_of(model, inputs, sizes)
    _told(
        model,
        "torch.onnx",
        lambda: torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False),
    )


def run_onnx(path: Path, inputs: Sequence[Inputs]) -> list[Any]:
    """Run the file under ONNX Runtime, on the CPU, on each of the inputs.

    Raises
    ------
    InexactExportError
        If it doesn't run there.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return [_fed(session, given) for given in inputs]
    except Exception as problem:  # onnxruntime's errors have no common base of their own
        told = f"{type(problem).__name__}: {problem}"
        raise InexactExportError(f"ONNX Runtime can't run what was written: {told}") from problem


def _fed(session: Any, inputs: Inputs) -> list[Tensor]:
    leaves = [leaf.cpu() for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
    feeds = {wanted.name: leaf.numpy() for wanted, leaf in zip(session.get_inputs(), leaves, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]
