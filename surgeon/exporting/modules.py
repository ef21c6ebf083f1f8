"""Format "python": the architecture as readable source, beside plain weights; neither needs surgeon."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgeon.checkpoint import write_tensors
from surgeon.errors import ExportError, InexactExportError
from surgeon.exporting.inputs import Sizes
from surgeon.exporting.source import write_module
from surgeon.tracing import Inputs, as_graph

__all__ = ["run_python", "write_python"]

_SECONDS = 600
#: What an argument may be made of: tensors go in a file, the others as JSON.
_SENT = (Tensor, bool, int, float, str, type(None))


def write_python(model: nn.Module, inputs: Inputs, sizes: Sizes, path: Path) -> None:  # noqa: ARG001  # any batch
    """Write ``NAME.py`` and ``NAME_weights.safetensors``."""
    weights = path.with_name(f"{path.stem}_weights.safetensors")
    written = write_module(as_graph(model, inputs), type(model).__name__, weights.name)
    path.write_text(written.source, encoding="utf-8")
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in written.tensors.items()}
    write_tensors(stored, weights, {"format": "pt"})


def run_python(path: Path, inputs: Sequence[Inputs]) -> list[Any]:
    """Import the module in a fresh process, which sees nothing of this one, and run it there on each of the inputs.

    Raises
    ------
    InexactExportError
        If it fails; the last line of its traceback is in the message.
    ExportError
        If it takes too long, or can't be given the inputs.
    """
    tensors: dict[str, Tensor] = {}
    calls = [_described(given, number, tensors) for number, given in enumerate(inputs)]
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "inputs", Path(folder) / "outputs"
        write_tensors(tensors, given, {"format": "pt"})
        words = [sys.executable, "-c", _RUNNER, str(path), str(given), str(results)]
        told = json.dumps({"calls": calls, "threads": torch.get_num_threads()})
        try:
            done = subprocess.run(  # noqa: S603  # our own words
                words, input=told, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            raise ExportError(
                f"the source that was written doesn't finish in {_SECONDS} s in a fresh process; pass smaller "
                "example_inputs"
            ) from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            raise InexactExportError(f"the source that was written doesn't run in a fresh process: {last}")
        outputs = load_file(results)
    return [_numbered(outputs, f"{number}.") for number in range(len(calls))]


def _described(inputs: Inputs, number: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """One call as JSON; its tensors go into `tensors`, under ``NUMBER.PLACE``."""
    leaves, structure = pytree.tree_flatten_with_path((inputs.args, dict(inputs.kwargs)))
    places = {f"{number}.{i}": leaf for i, (_, leaf) in enumerate(leaves)}
    for path, leaf in leaves:
        if not isinstance(leaf, _SENT):
            name = f"{('args', 'kwargs')[path[0].idx]}{pytree.keystr(path[1:])}"  # type: ignore[attr-defined]
            raise ExportError(
                f"example_inputs: {name} is of type {type(leaf).__name__}, which can't be given to the fresh process "
                "that the source is compared in; format 'python' takes tensors, numbers, strings and containers of them"
            )
    tensors |= {place: leaf.cpu().contiguous().clone() for place, leaf in places.items() if isinstance(leaf, Tensor)}
    others = {place: leaf for place, leaf in places.items() if not isinstance(leaf, Tensor)}
    return {"others": others, "structure": pytree.treespec_dumps(structure)}


def _numbered(outputs: dict[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(name.startswith(prefix) for name in outputs)
    return [outputs[f"{prefix}{place}"] for place in range(count)]


#: What the fresh process does.
_RUNNER = """
import importlib.util, json, sys
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

source, given, results = sys.argv[1:]
call = json.load(sys.stdin)
torch.set_num_threads(call["threads"])
spec = importlib.util.spec_from_file_location("written", source)
module = importlib.util.module_from_spec(spec)
sys.modules["written"] = module
spec.loader.exec_module(module)
tensors = load_file(given)
model, found = module.load(), {}
for number, told in enumerate(call["calls"]):
    structure = pytree.treespec_loads(told["structure"])
    places = [f"{number}.{i}" for i in range(structure.num_leaves)]
    args, kwargs = pytree.tree_unflatten([tensors.get(p, told["others"].get(p)) for p in places], structure)
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    outputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    found |= {f"{number}.{i}": leaf.contiguous().clone() for i, leaf in enumerate(outputs)}
assert "surgeon" not in sys.modules, "the source imports surgeon"
save_file(found, results)
"""
