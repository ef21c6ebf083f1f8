"""A graph module as a class to be read: layers in ``__init__``, one line per call in ``forward``."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from surgeon.errors import ExportError
from surgeon.exporting.writer import Writer

__all__ = ["Written", "write_module"]


@dataclass(frozen=True)
class Written:
    """The source, and the tensors that its state dict has."""

    source: str
    tensors: dict[str, Tensor]


def write_module(graph: fx.GraphModule, class_name: str, weights: str) -> Written:
    """Source of a module with a class and a function ``load``.

    Parameters
    ----------
    graph:
        What to write, in eval mode.
    class_name:
        Of the class.
    weights:
        Name of the file that holds them, beside the source.

    Raises
    ------
    ExportError
        If a layer or a call can't be written down; it is named.
    """
    name = class_name if class_name.isidentifier() and not keyword.iskeyword(class_name) else "Model"
    writer = Writer(graph)
    lines, made = list(writer.forward()), list(writer.layers())
    ties = [f'state["{again}"] = state["{first}"]' for again, first in writer.ties.items()]
    source = _TEMPLATE.format(
        name=name,
        weights=weights,
        imports="\n".join(writer.imports()),
        layers="\n".join(f"        {line}" for line in made) or "        pass",
        signature=writer.signature(),
        result=writer.result(),
        body="\n".join(f"        {line}".rstrip() for line in lines),
        ties="".join(f"    {line}\n" for line in ties),
        cast=_cast(writer.tensors),
    )
    return Written(source, writer.tensors)


_TEMPLATE = '''"""{name} in plain PyTorch; ``load()`` gives it with the weights of {weights}, in eval mode."""

from __future__ import annotations

from pathlib import Path
{imports}


class {name}(nn.Module):
    """The layers, and how they follow each other."""

    def __init__(self) -> None:
        super().__init__()
{layers}

    def forward({signature}) -> {result}:
{body}


def load(weights: str | Path = Path(__file__).with_name("{weights}")) -> {name}:
    """The model with its weights, on the CPU and in eval mode."""
    model = {name}(){cast}
    state = load_file(weights)
{ties}    model.load_state_dict(state)
    return model.eval()
'''


def _cast(tensors: Mapping[str, Tensor]) -> str:
    kinds = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(kinds) > 1:
        raise ExportError(f"weights of several types ({', '.join(map(str, kinds))}): export it as onnx or pt2")
    dtype = "" if kinds <= {torch.float32} else f".to({kinds.pop()})"
    last = any(_is_channels_last(t) for t in tensors.values())
    return dtype + (".to(memory_format=torch.channels_last)" if last else "")


def _is_channels_last(tensor: Tensor) -> bool:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last and not tensor.is_contiguous()
