"""Export: a model for other runtimes, or as source that needs nothing of surgeon, compared with the model once written.

Everything is written into a folder of its own first, opened from there and run; only what gives the model's outputs
is put where the user wants it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.agreement import distance, full_precision
from surgeon.checkpoint import load, read_header
from surgeon.errors import ExportError, InexactExportError, InputError
from surgeon.exclusive import one_at_a_time
from surgeon.exporting.inputs import Sizes, other_size, sizes_of
from surgeon.exporting.modules import run_python, write_python
from surgeon.exporting.programs import run_onnx, run_pt2, write_onnx, write_pt2
from surgeon.files import write_beside
from surgeon.folding import fold_batch_norms
from surgeon.tracing import Inputs, check_model, copied, outside_inference_mode, results_of

__all__ = ["FORMATS", "Exported", "Format", "check_format", "export"]

#: Largest difference from the model's own outputs, relative to the largest of them.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Format:
    """One way to write a model down.

    Attributes
    ----------
    suffix:
        Of the file's name.
    write:
        Writes the model into a file, for these inputs and sizes.
    run:
        Opens the file and runs it on each of these inputs.
    needs:
        Packages that must be installed.
    """

    suffix: str
    write: Callable[[nn.Module, Inputs, Sizes, Path], None]
    run: Callable[[Path, Sequence[Inputs]], list[Any]]
    needs: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", write_onnx, run_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "pt2": Format(".pt2", write_pt2, run_pt2),
    "python": Format(".py", write_python, run_python),
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    format:
        ``"onnx"``, ``"pt2"`` or ``"python"``.
    files:
        The files, the one that was asked for first.
    error:
        Largest difference from the model's own outputs over all batch sizes, relative to the largest output.
    batch_sizes:
        At which it was compared; one only where the model, or what was written, takes no other.
    any_batch:
        Whether it takes any number of examples.
    """

    format: str
    files: tuple[str, ...]
    error: float
    batch_sizes: tuple[int, ...]
    any_batch: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON can hold."""
        return asdict(self)


@one_at_a_time
@outside_inference_mode
def export(
    model_or_file: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002  # what everybody calls it
    *,
    example_inputs: Any = None,
    factory: Callable[[], nn.Module] | None = None,
    fold_bn: bool = False,
    channels_last: bool = False,
) -> Exported:
    """Write a model for ONNX Runtime, as a ``torch.export`` archive, or as Python source, and compare what was written.

    Parameters
    ----------
    model_or_file:
        A module, or a file that :func:`surgeon.save` wrote.
    path:
        Where to write. Beside the source of format ``"python"`` its weights are put, as ``NAME_weights.safetensors``.
    format:
        ``"onnx"``, ``"pt2"`` or ``"python"``; by default what the path's suffix says (.onnx, .pt2, .py).
    example_inputs:
        What the forward takes; of a file by default inputs of the shapes that its plan remembers.
    factory:
        Makes the dense model of a file, as for :func:`surgeon.load`.
    fold_bn:
        Fold batch norms into the layers in front of them (:func:`surgeon.folding.fold_batch_norms`).
    channels_last:
        Lay the weights of 2-d convolutions out with channels last; for ``"pt2"`` and ``"python"``.

    Raises
    ------
    ExportError
        If the model can't be written in this format; nothing is left behind.
    InexactExportError
        If what was written doesn't run or gives other outputs; nothing is left behind.
    InputError
        For an unknown format, options that contradict each other, or missing example inputs.
    CheckpointError
        If the file can't be opened as a model of surgeon's.
    OSError
        If `path` can't be written.
    """
    name = check_format(format, path, channels_last=channels_last)
    model, inputs = _subject(model_or_file, example_inputs, factory)
    model = _prepared(model, inputs, fold_bn=fold_bn, channels_last=channels_last)
    sizes = sizes_of(model, inputs)
    chosen, target = FORMATS[name], Path(path)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        draft = Path(folder) / target.name
        with _named(target, f"; the draft is in {folder}, TMPDIR names another place"):
            chosen.write(model, inputs, sizes, draft)
            error, compared = _compare(model, inputs, sizes, lambda given: chosen.run(draft, given), name)
        files = _publish(draft, target)
    return Exported(name, files, error, compared, sizes.free)


def check_format(format: str | None, path: str | os.PathLike[str], *, channels_last: bool = False) -> str:  # noqa: A002
    """The name of the format, by the path's suffix where it is not given; whether it can be written here.

    Raises
    ------
    InputError
        If there is none, or a package is missing.
    """
    by_suffix = {entry.suffix: name for name, entry in FORMATS.items()}
    name = format or by_suffix.get(Path(path).suffix)
    if name not in FORMATS:
        raise InputError(f"format={format!r} for {os.fspath(path)}: expected one of {', '.join(FORMATS)}")
    if name == "python" and not (Path(path).suffix == ".py" and Path(path).stem.isidentifier()):
        raise InputError(
            f"{os.fspath(path)}: a Python module's file is called NAME.py, with a NAME that can be imported"
        )
    if name == "onnx" and channels_last:
        raise InputError(
            "channels_last says nothing to ONNX, whose runtimes lay tensors out by themselves; leave it out"
        )
    missing = [package for package in FORMATS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"format {name!r} needs {', '.join(missing)}: python -m pip install 'filter-surgeon[onnx]', or "
            f"python -m pip install {' '.join(missing)}"
        )
    return name


def _subject(
    model_or_file: Any, example_inputs: Any, factory: Callable[[], nn.Module] | None
) -> tuple[nn.Module, Inputs]:
    if isinstance(model_or_file, nn.Module):
        if example_inputs is None:
            raise InputError("pass example_inputs: what the model's forward takes")
        return check_model(model_or_file), Inputs.of(example_inputs)
    header = read_header(model_or_file)
    model = load(model_or_file, factory, example_inputs=example_inputs)
    if example_inputs is not None:
        return model, Inputs.of(example_inputs).to("cpu")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return model, Inputs.from_spec(header.plan.inputs).to(dtype=dtype)


def _prepared(model: nn.Module, inputs: Inputs, *, fold_bn: bool, channels_last: bool) -> nn.Module:
    """The model to write, in eval mode; the one that was given stays as it is."""
    prepared = fold_batch_norms(model, inputs) if fold_bn else copied(model, {})
    for part in prepared.modules():
        part.training = False
    return prepared.to(memory_format=torch.channels_last) if channels_last else prepared


def _compare(
    model: nn.Module, inputs: Inputs, sizes: Sizes, again: Callable[[list[Inputs]], list[Any]], name: str
) -> tuple[float, tuple[int, ...]]:
    """The largest error, and the batch sizes at which both were run."""
    given = [inputs, *([other_size(inputs, 3 if sizes.example != 3 else 2)] if sizes.free else [])]
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    allowed = max((_TOLERANCES.get(dtype, 1e-4) for dtype in dtypes), default=1e-4)
    worst = 0.0
    with full_precision():
        pairs = [(results_of(model, one), outputs) for one, outputs in zip(given, again(given), strict=True)]
    for expected, outputs in pairs:
        error = distance(expected, outputs)
        if math.isnan(error):
            raise ExportError(
                "the model's outputs are all zero, or not finite, on these inputs: nothing tells whether what was "
                "written is right; it was not kept"
            )
        if error > allowed:
            raise InexactExportError(
                f"what was written as {name} gives other outputs than the model (relative error {error:.1e}, allowed "
                f"{allowed:.0e}); it was not kept"
            )
        worst = max(worst, error)
    return worst, tuple(sizes_of(model, now, probe=False).example for now in given)


@contextlib.contextmanager
def _named(place: Path, more: str = "") -> Iterator[None]:
    """An error of writing names the file that was asked for."""
    try:
        yield
    except OSError as problem:
        raise OSError(problem.errno, f"{problem.strerror or problem}{more}", os.fspath(place)) from problem


def _publish(draft: Path, target: Path) -> tuple[str, ...]:
    """Put the files of the draft where they belong, all or none: no name changes before all bytes are there."""
    others = sorted(path for path in draft.parent.iterdir() if path != draft and path.is_file())
    with contextlib.ExitStack() as stack:
        for source, place in ((draft, target), *((other, target.with_name(other.name)) for other in others)):
            with _named(place):
                shutil.copyfile(source, stack.enter_context(write_beside(place)))
    return (str(target), *(str(target.with_name(other.name)) for other in others))
