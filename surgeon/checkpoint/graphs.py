"""A graph module as JSON, and built again from it: nothing in it is evaluated or imported by name."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from surgeon.checkpoint.values import (
    ATTRIBUTES,
    GETATTR,
    Unknown,
    check_name,
    decode,
    encode,
    find_class,
    find_function,
    methods,
    name_of,
)
from surgeon.errors import CheckpointError

__all__ = ["build", "describe", "kept_outside"]

_OPS = frozenset({"placeholder", "get_attr", "call_function", "call_method", "call_module", "output"})
#: What torch's layers hold that their tensors tell.
_DERIVED = frozenset({"_flat_weights", "_flat_weight_refs"})


def kept_outside(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that the state dict leaves out."""
    known = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in known}


def describe(model: fx.GraphModule) -> dict[str, Any]:
    """Everything of a graph module but the numbers of its tensors.

    Raises
    ------
    CheckpointError
        If a node or a layer can't be written down; it is named.
    """
    called = [str(node.target) for node in model.graph.nodes if node.op == "call_module"]
    nodes = [_told(f"node {node.name}", _node, node) for node in model.graph.nodes]
    modules: dict[str, Any] = {}
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = any(path == target or path.startswith(f"{target}.") for target in called)
        if id(module) in first:
            modules[path] = {"same": first[id(module)]}
        else:
            modules[path] = _told(f"layer {path}", _module, module, own)
            first[id(module)] = path
    return {"nodes": nodes, "modules": modules}


def _told(place: str, make: Any, *args: Any) -> Any:
    try:
        return make(*args)
    except Unknown as problem:
        raise CheckpointError(
            f"the graph can't be saved at {place}: {problem}; save the model without as_graph, or write that part with "
            "operators of torch"
        ) from problem


def _node(node: fx.Node) -> list[Any]:
    target: Any = node.target
    if node.op == "call_function":
        target = name_of(target)
    elif node.op == "call_method" and target not in methods():
        raise Unknown(f"method {target} can't be written into a file")
    if target == GETATTR and node.args[1] not in ATTRIBUTES:
        raise Unknown(f"attribute {node.args[1]!r} can't be written into a file")
    return [node.op, node.name, target, [encode(a) for a in node.args], {k: encode(v) for k, v in node.kwargs.items()}]


def _module(module: nn.Module, called: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "parameters": {name: value is not None for name, value in module._parameters.items()},
        "buffers": {
            name: None if value is None else name not in module._non_persistent_buffers_set
            for name, value in module._buffers.items()
        },
        "training": module.training,
    }
    if called:
        spec["class"] = type(module).__name__
        if find_class(spec["class"]) is not type(module):
            raise Unknown(f"{type(module).__name__} is no layer of torch.nn")
        held = {name: value for name, value in vars(module).items() if name not in _internal() | _DERIVED}
        spec["attributes"] = {name: encode(value) for name, value in held.items()}
    return spec


@functools.cache
def _internal() -> frozenset[str]:
    """What every module holds."""
    return frozenset(vars(nn.Module()))


def build(spec: Any, class_name: str, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> fx.GraphModule:
    """The graph module that a file describes, with these tensors (on the meta device: to see whether it can be built).

    Raises
    ------
    Exception
        Of many kinds, if the description is damaged or names what isn't allowed; nothing of it has run then.
    """
    root = _Builder(tensors, aliases).root(spec["modules"])
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in spec["nodes"]:
        _add(graph, nodes, root, *entry)
    if not graph.nodes or next(iter(reversed(graph.nodes))).op != "output":
        raise Unknown("the graph has no output")
    graph.lint()
    result = fx.GraphModule(root, graph, check_name(class_name))
    _install(root, result)
    return result


def _add(
    graph: fx.Graph, nodes: dict[str, fx.Node], root: nn.Module, op: Any, name: Any, target: Any, args: Any, kwargs: Any
) -> None:
    if op not in _OPS or name in nodes or name == "self" or (nodes and next(reversed(nodes.values())).op == "output"):
        raise Unknown(f"node {str(name)[:80]!r} is of no kind that is known, is there twice, or comes after the output")
    values = tuple(decode(argument, nodes) for argument in args)
    named = {check_name(key): decode(value, nodes) for key, value in kwargs.items()}
    found = _target(op, target, values, root)
    node = graph.create_node(op, found, values, named, name=check_name(name))
    if node.name != name:
        raise Unknown(f"{name!r} is no name of a node")
    nodes[name] = node


def _target(op: str, target: Any, args: tuple[Any, ...], root: nn.Module) -> Any:
    """What a node stands for, if that is allowed."""
    if op == "call_function":
        if target == GETATTR and not (len(args) == 2 and args[1] in ATTRIBUTES):
            raise Unknown("getattr of something else than a tensor's shape or kind")
        return find_function(target)
    if op == "call_method":
        if target not in methods():
            raise Unknown(f"method {str(target)[:80]!r} is none of a tensor's")
        return target
    if op == "placeholder":
        return "*" * (len(str(target)) - len(str(target).lstrip("*"))) + check_name(str(target).lstrip("*"))
    if op == "output":
        return "output"
    return _path(op, target, root)


def _path(op: str, target: Any, root: nn.Module) -> str:
    owner, _, leaf = check_name(target, dotted=True).rpartition(".")
    holder = root.get_submodule(owner)
    if op == "call_module" and type(holder._modules.get(leaf)) not in (type(None), nn.Module):
        return str(target)
    if op == "get_attr" and (leaf in holder._parameters or leaf in holder._buffers or target == "training"):
        return str(target)
    raise Unknown(f"{op} of {str(target)[:80]!r}, which isn't there")


class _Builder:
    """Builds modules around a file's tensors; a tensor of two names is one object."""

    def __init__(self, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
        self._tensors, self._aliases = tensors, aliases
        self._parameters: dict[str, nn.Parameter] = {}
        self._used: set[str] = set()

    def root(self, specs: Mapping[str, Any]) -> nn.Module:
        """The module tree; each path comes after the one that it is in."""
        root = self._module("", specs[""])
        for path, spec in specs.items():
            if path:
                owner, _, leaf = check_name(path, dotted=True).rpartition(".")
                made = root.get_submodule(spec["same"]) if "same" in spec else self._module(path, spec)
                root.get_submodule(owner).register_module(leaf, made)
        if sum(1 for _ in itertools.islice(_paths(root), len(specs) + 1)) != len(specs):
            raise Unknown("modules hold each other in more places than are named")
        for module in root.modules():
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
        missing = (self._tensors.keys() | self._aliases.keys()) - self._used
        if missing:
            raise Unknown(f"tensor {min(missing)!r} belongs to no module")
        return root

    def _module(self, path: str, spec: Mapping[str, Any]) -> nn.Module:
        kind = find_class(spec["class"]) if "class" in spec else nn.Module
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        for name, value in spec.get("attributes", {}).items():
            if check_name(name) in _internal() or hasattr(nn.Module, name) or callable(getattr(kind, name, None)):
                raise Unknown(f"attribute {name!r} can't be set")
            setattr(module, name, decode(value, {}))
        for name, there in spec["parameters"].items():
            module.register_parameter(check_name(name), self._parameter(f"{path}.{name}") if there else None)
        for name, stored in spec["buffers"].items():
            tensor = None if stored is None else self._tensor(f"{path}.{name}")
            module.register_buffer(check_name(name), tensor, persistent=stored is not False)
        module.training = bool(spec["training"])
        return module

    def _tensor(self, name: str) -> Tensor:
        name = name.removeprefix(".")
        self._used.add(name)
        stored = self._aliases.get(name, name)
        if stored not in self._tensors:
            raise Unknown(f"tensor {name!r} is missing")
        return self._tensors[stored]

    def _parameter(self, name: str) -> nn.Parameter:
        tensor = self._tensor(name)
        stored = self._aliases.get(name.removeprefix("."), name.removeprefix("."))
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return nn.Parameter(tensor, requires_grad=False)
        return self._parameters.setdefault(stored, nn.Parameter(tensor))


def _paths(root: nn.Module) -> Iterator[str]:
    return (name for name, _ in root.named_modules(remove_duplicate=False))


def _install(root: nn.Module, graph: nn.Module) -> None:
    """The tree as it was described, also where no node mentions it."""
    graph._modules, graph._parameters, graph._buffers = root._modules, root._parameters, root._buffers
    graph._non_persistent_buffers_set = root._non_persistent_buffers_set
    graph.training = root.training
