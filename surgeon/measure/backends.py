"""What runs a model: one entry of the table per back end."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import InputError
from surgeon.tracing import Inputs, copied_inputs

#: Runs the model once on the inputs that it was made for; gives its outputs.
Run = Callable[[], Any]


@dataclass(frozen=True)
class Backend:
    """A way to run a model.

    Attributes
    ----------
    prepare:
        Makes the call that is timed, of a model in eval mode and its inputs.
    needs:
        Distributions that must be installed.
    exact:
        The call runs the model's own forward, so there is nothing to compare it with.
    """

    prepare: Callable[[nn.Module, Inputs], Run]
    needs: tuple[str, ...] = ()
    exact: bool = False


def eager(model: nn.Module, inputs: Inputs) -> Run:
    """The model's own forward."""
    return lambda: model(*inputs.args, **inputs.kwargs)


def compiled(model: nn.Module, inputs: Inputs) -> Run:
    """``torch.compile`` with its default settings; compiled before anything is timed.

    Raises
    ------
    InputError
        If torch can't compile the model here.
    """
    run: Any = torch.compile(model)
    first = copied_inputs(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            run(*first.args, **first.kwargs)
        except (RuntimeError, ImportError) as problem:
            told = (str(problem).splitlines() or [""])[0]
            raise InputError(
                f"backend 'compile' can't compile {type(model).__name__}: {told}; torch.compile needs a C++ "
                "compiler on CPU and Triton on CUDA; backend 'eager' needs neither"
            ) from problem
    return lambda: run(*inputs.args, **inputs.kwargs)


def onnxruntime(model: nn.Module, inputs: Inputs) -> Run:
    """ONNX Runtime on what ``torch.onnx`` exports; on CPU with as many threads as torch has.

    Raises
    ------
    InputError
        If ONNX has no form for the model or its inputs, or this ONNX Runtime none for the device.
    """
    import onnxruntime as runtime

    leaves = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
    if any(leaf.dtype == torch.bfloat16 for leaf in leaves):
        raise InputError("backend 'onnxruntime' takes no bfloat16 inputs: give dtype float32 or float16")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider"] if leaves[0].device.type == "cuda" else ["CPUExecutionProvider"]
    if missing := set(providers) - set(runtime.get_available_providers()):
        raise InputError(f"this onnxruntime has no {missing.pop()}: install onnxruntime-gpu, or measure on the CPU")
    session = runtime.InferenceSession(exported(model, inputs), options, providers=providers)
    feeds = {wanted.name: leaf.cpu().numpy() for wanted, leaf in zip(session.get_inputs(), leaves, strict=True)}
    return lambda: [torch.from_numpy(array) for array in session.run(None, feeds)]


def exported(model: nn.Module, inputs: Inputs) -> bytes:
    """The model as ONNX, of fixed shapes.

    Raises
    ------
    InputError
        If ``torch.onnx`` can't export it; its own words are in the message.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        file = Path(folder) / "model.onnx"
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            torch.onnx.export(
                model, inputs.args, file, kwargs=dict(inputs.kwargs), dynamo=True, external_data=False, verbose=False
            )  # fmt: skip
        except Exception as problem:  # the exporter runs the user's forward, and has many ways to fail
            first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            raise InputError(
                f"backend 'onnxruntime': torch.onnx can't export {type(model).__name__}: {first}; "
                "backend 'eager' runs it as it is"
            ) from problem
        return file.read_bytes()


#: Name -> how it runs a model.
BACKENDS: dict[str, Backend] = {
    "eager": Backend(eager, exact=True),
    "compile": Backend(compiled),
    "onnxruntime": Backend(onnxruntime, needs=("onnx", "onnxruntime", "onnxscript")),
}


def find_backend(name: str) -> Backend:
    """The back end of that name, with all that it needs.

    Raises
    ------
    InputError
        If there is none, or a package is missing.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r}: expected one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    missing = [package for package in backend.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"backend {name!r} needs {', '.join(missing)}: pip install 'filter-surgeon[onnx]' (or {' '.join(missing)})"
        )
    return backend
