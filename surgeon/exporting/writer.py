"""The pieces of a module's source: names, layers, and each call of a graph as a line of Python."""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.checkpoint import values
from surgeon.errors import ExportError
from surgeon.exporting.layers import constructor, empty

__all__ = ["Writer"]

_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and_": "&", "or_": "|", "is_": "is",
}  # fmt: skip
_INPLACE = {"iadd": "+", "isub": "-", "imul": "*", "itruediv": "/"}
_UNARY = {"neg": "-", "not_": "not ", "invert": "~", "pos": "+"}
#: Names that the source uses itself.
_TAKEN = frozenset({"F", "Path", "Tensor", "load", "math", "nn", "self", "torch", "torchvision", "Any", "load_file"})
#: For what is read by the next line and nobody else.
_RUNNING = ("x", "y", "h", "value", "current")


class Writer:
    """Writes one graph down."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._nodes = list(graph.graph.nodes)
        self.tensors: dict[str, Tensor] = {}
        self.ties: dict[str, str] = {}
        self._first: dict[int, str] = {}
        self._used: set[str] = set()
        self._attributes = self._name_attributes()
        self._names = self._name_values()

    # ------------------------------------------------------------ names

    def _name_attributes(self) -> dict[str, str]:
        """Plain names for what nodes take of the module: ``layer1.0.conv1`` is ``layer1_0_conv1``."""
        targets = dict.fromkeys(str(n.target) for n in self._nodes if n.op in ("call_module", "get_attr"))
        found: dict[str, str] = {}
        for target in targets:
            if target != "training":
                found[target] = self._free(target.replace(".", "_"), {*found.values(), *dir(nn.Module)})
        return {**found, "training": "training"}

    def _name_values(self) -> dict[fx.Node, str]:
        inputs = {str(n.target).lstrip("*") for n in self._nodes if n.op == "placeholder"}
        own = {n.name for n in self._nodes}
        running = next(name for name in _RUNNING if name not in inputs | own or self._passes(name))
        names: dict[fx.Node, str] = {}
        for node, after in zip(self._nodes, [*self._nodes[1:], None], strict=True):
            alone = list(node.users) == [after] and node.op != "get_attr"
            if node.op == "placeholder":
                names[node] = str(node.target).lstrip("*")
            else:
                names[node] = running if alone else self._free(node.name, {running, *inputs, *names.values()})
        return names

    def _passes(self, name: str) -> bool:
        """Whether the one input of that name is read by the first call and nobody else, so its name is free then."""
        holders = [n for n in self._nodes if n.name == name or str(n.target) == name]
        if len(holders) != 1 or holders[0].op != "placeholder":
            return False
        return list(holders[0].users) == [holders[0].next]

    def _free(self, name: str, taken: set[str]) -> str:
        name = name if not name[:1].isdigit() else f"layer_{name}"
        while name in taken or name in _TAKEN or keyword.iskeyword(name):
            name += "_"
        return name

    # ------------------------------------------------------------ __init__

    def layers(self) -> Iterator[str]:
        """One line for each layer and tensor, in the order in which the forward takes them."""
        for target, name in self._attributes.items():
            if target == "training":
                continue
            owner, _, leaf = target.rpartition(".")
            held = self._graph.get_submodule(owner)
            if leaf in held._modules:
                layer = self._graph.get_submodule(target)
                yield f"self.{name} = {constructor(target, layer)}"
                for key, tensor in layer.state_dict(keep_vars=True).items():
                    self._keep(f"{name}.{key}", tensor)
            else:
                tensor = getattr(held, leaf)
                self._keep(name, tensor)
                parameter = isinstance(tensor, nn.Parameter)
                yield (
                    f"self.{name} = nn.Parameter({empty(tensor)}{'' if tensor.is_floating_point() else ', False'})"
                    if parameter
                    else f'self.register_buffer("{name}", {empty(tensor)})'
                )
        for again, first in self.ties.items():
            yield f"self.{again} = self.{first}"

    def _keep(self, name: str, tensor: Tensor) -> None:
        first = self._first.setdefault(id(tensor), name)
        if first == name:
            self.tensors[name] = tensor
        else:
            self.ties[name] = first

    # ------------------------------------------------------------ forward

    def forward(self) -> Iterator[str]:
        """One line for each call, under the name of the part of the model that it belongs to."""
        part = ""
        for node in self._nodes:
            if node.op in ("placeholder", "get_attr"):
                continue
            here = self._part(node)
            if here and here != part:
                yield f"# {here}"
                part = here
            if node.op == "output":
                yield f"return {self._text(node.args[0])}"
            elif not node.users:
                yield self._call(node)
            else:
                yield f"{self._names[node]} = {self._call(node)}"

    def _part(self, node: fx.Node) -> str:
        """The block that a layer stands in; nothing for layers of the model's own."""
        return str(node.target).rpartition(".")[0] if node.op == "call_module" else ""

    def _call(self, node: fx.Node) -> str:
        args = [self._text(a) for a in node.args]
        named = [f"{key}={self._text(value)}" for key, value in node.kwargs.items()]
        if node.op == "call_module":
            return f"self.{self._attributes[str(node.target)]}({', '.join(args + named)})"
        if node.op == "call_method":
            return f"{self._operand(node.args[0])}.{node.target}({', '.join(args[1:] + named)})"
        try:
            target = values.name_of(node.target)
        except values.Unknown as problem:
            raise ExportError(f"{node.name}: {problem}: export it as onnx or pt2") from problem
        return self._function(target, node, args, named)

    def _function(self, target: str, node: fx.Node, args: list[str], named: list[str]) -> str:
        space, _, name = target.rpartition(".")
        if target == "builtins.getattr":
            return f"{self._operand(node.args[0])}.{node.args[1]}"
        if space == "operator" and name == "getitem":
            return f"{self._operand(node.args[0])}[{self._index(node.args[1])}]"
        if space == "operator" and (sign := {**_BINARY, **_INPLACE}.get(name)):
            return f"{args[0]} {sign} {args[1]}"
        if space == "operator" and name in _UNARY:
            return f"{_UNARY[name]}{args[0]}"
        if space == "operator":
            raise ExportError(f"{node.name}: operator.{name} can't be written down: export it as onnx or pt2")
        self._used.add(space)
        short = f"F.{name}" if space == "torch.nn.functional" else target
        return f"{short}({', '.join(args + named)})"

    def _operand(self, value: Any) -> str:
        text = self._text(value)
        return text if isinstance(value, fx.Node) else f"({text})"

    def _index(self, value: Any) -> str:
        if isinstance(value, tuple) and len(value) > 1:
            return ", ".join(self._index(part) for part in value)
        if isinstance(value, slice):
            parts = ["" if part is None else self._text(part) for part in (value.start, value.stop, value.step)]
            return f"{parts[0]}:{parts[1]}" + (f":{parts[2]}" if parts[2] else "")
        return self._text(value)

    def _text(self, value: Any) -> str:
        """An argument as source."""
        if isinstance(value, fx.Node):
            return f"self.{self._attributes[str(value.target)]}" if value.op == "get_attr" else self._names[value]
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        if isinstance(value, tuple):
            inner = ", ".join(map(self._text, value))
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {self._text(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({', '.join(self._text(part) for part in (value.start, value.stop, value.step))})"
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if value is None or isinstance(value, bool | int | float | str) or value is ...:
            return "..." if value is ... else repr(value)
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        try:
            return values.name_of(value)
        except values.Unknown as problem:
            raise ExportError(f"an argument can't be written down: {problem}: export it as onnx or pt2") from problem

    # ------------------------------------------------------------ around them

    def signature(self) -> str:
        """The forward's parameters; all of them tensors, or what holds them."""
        parts = ["self"]
        for node in self._nodes:
            if node.op == "placeholder":
                default = "" if not node.args else f" = {self._text(node.args[0])}"
                kind = "Tensor" if not default else "Tensor | None"
                parts.append(f"{node.target}: {kind}{default}")
        return ", ".join(parts)

    def result(self) -> str:
        """The type of what it returns."""
        return _type_of(self._nodes[-1].args[0])

    def imports(self) -> Iterator[str]:
        """Import lines, sorted as formatters have them."""
        if "math" in self._used:
            yield "import math"
        yield ""
        yield "import torch"
        if "torch.nn.functional" in self._used:
            yield "import torch.nn.functional as F"
        for name in sorted(space for space in self._used if space.startswith("torchvision")):
            yield f"import {name}"
        yield "from safetensors.torch import load_file"
        yield "from torch import Tensor, nn"


def _type_of(value: Any) -> str:
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        inner = sorted({_type_of(item) for item in value})
        return f"{kind}[{' | '.join(inner)}{', ...' if kind == 'tuple' else ''}]"
    if isinstance(value, Mapping):
        return f"dict[str, {' | '.join(sorted({_type_of(item) for item in value.values()}))}]"
    return "Tensor" if isinstance(value, fx.Node) else type(value).__name__ if value is not None else "None"
