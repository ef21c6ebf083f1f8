"""Record one forward as a ``torch.fx.Graph`` of ATen calls."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, ValuesView
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from surgeon.tracing.chance import Chance
from surgeon.tracing.decisions import Decisions, decides
from surgeon.tracing.indices import check_places, in_range
from surgeon.tracing.inplace import plain_form
from surgeon.tracing.members import named_modules
from surgeon.tracing.parts import parts_of
from surgeon.tracing.shapes import all_meta, run_meta
from surgeon.tracing.source import Site, call_site
from surgeon.tracing.traits import traits_of, undrawn

#: Indices of more places than these aren't kept.
_MAX_INDEX = 1 << 24
#: How tensors are called that the model makes for itself.
_OWN = "_constant_"
#: What most operands are that are no tensors.
_ATOMS = frozenset({int, float, bool, type(None)})


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__ is untyped
    """Writes every ATen call below autograd and functionalisation into `graph`.

    Attributes
    ----------
    graph:
        ``placeholder`` nodes for input tensors, ``get_attr`` for parameters, buffers and constants,
        ``call_function`` for calls; each has ``meta["shape"]``, ``meta["dtype"]`` and ``meta["site"]``. In a blind
        recording ``meta["known"]`` says that a value has numbers all the same.
    tensors:
        The tensor behind each ``get_attr`` target.
    extra:
        Set while a further pass is recorded; its calls carry it as ``meta["extra"]`` and cost nothing.

    Parameters
    ----------
    known:
        The model's parameters and buffers by name.
    decisions:
        What is followed, or taken, where the data decides.
    blind:
        Inputs and weights have no numbers: a call that needs some ends the recording.
    """

    def __init__(
        self, model: nn.Module, known: Mapping[str, Tensor], decisions: Decisions, *, blind: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.extra = False
        self.decisions = decisions
        self._blind = blind
        self._chance = Chance()
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self._paths = {id(module): name for name, module in named_modules(model)}
        self._nodes: Any = WeakTensorKeyDictionary()
        self._known = {id(tensor): name for name, tensor in known.items()}
        self._stored = {_memory_of(tensor): name for name, tensor in reversed(list(known.items())) if tensor.numel()}
        self._storages = set(map(_storage_of, known.values()))
        self._attributes: dict[str, fx.Node] = {}

    def add_inputs(self, tensors: Iterable[Tensor]) -> None:
        """Declare the input tensors, in order."""
        for index, tensor in enumerate(tensors):
            node = self.graph.placeholder(f"input_{index}")
            node.meta["data"] = True
            self._describe(node, tensor)
            self._nodes[tensor] = node
            self._storages.add(_storage_of(tensor))  # the caller's inputs stay as they are, too

    def add_output(self, leaves: Iterable[Any], held: Iterable[Tensor] = ()) -> None:
        """Close the graph with the forward's return value.

        `leaves` that are no tensors are kept as None. Behind them stand those of the `held` tensors, whose order means
        nothing, that were computed or are the model's or the caller's.
        """
        nodes = [self.node(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        found = {self.node(tensor) for tensor in held if tensor in self._nodes or _memory_of(tensor) in self._stored}
        others = found - set(nodes)
        attributes = sorted((node for node in others if node not in order), key=lambda node: str(node.target))
        computed = sorted((node for node in others if node in order), key=lambda node: order[node])
        self.graph.output((*nodes, *computed, *attributes))

    def node(self, tensor: Tensor) -> fx.Node:
        """The node that made `tensor`; a new ``get_attr`` node for a parameter, buffer or constant."""
        found = self._nodes.get(tensor)
        return self._attribute(tensor) if found is None else found

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        parts = self._in_parts(func, args, kwargs)
        if parts is not NotImplemented:
            return parts
        traits = traits_of(func)
        if traits.reads_indices:
            check_places(func, args)
        if traits.writes_first and self._writes_to_model(args):
            return args[0]  # functionalisation writes mutated buffers back at the end; the model stays as it is
        node_args, node_kwargs = self._written(args), self._written(kwargs)
        if traits.drops:
            func, args, kwargs, node_args, node_kwargs = undrawn(func, args, kwargs, node_args, node_kwargs)
            traits = traits_of(func)
        noise = traits.is_random and self._chance.is_noise((*args, *kwargs.values()))
        site = call_site(self._paths, skip=2)
        if traits.may_decide and decides(func, args):
            self._need_numbers(func)
            from_data, line = _from_data(node_args, node_kwargs), str(site.source)
            result, decision = self.decisions.run(func, args, kwargs, from_data=from_data, line=line)
        else:
            result, decision = _run(func, args, kwargs), None
        if traits.rewritten:
            func, node_args = plain_form(func, args, node_args)
        node = self._write_call(func, node_args, node_kwargs, site)
        if decision is not None:
            node.meta["decision"] = decision
        if traits.is_random:
            node.meta["noise"] = noise
            self._chance.go_on()
        if traits.reads_indices:
            self._keep_indices(func, args, kwargs)
        self._bind(node, result)
        return result

    def _in_parts(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call gives that is recorded as several; NotImplemented of any other."""
        parts = parts_of(func)
        if parts is not None:
            with self:
                return parts(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # the forward's own: composite operators arrive whole
            with self:
                return func.decompose(*args, **kwargs)
        return NotImplemented

    def _write(
        self, kind: str, target: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        """A new node; fx looks through operands that it is given at once for symbolic sizes, which nobody has here."""
        node = self.graph.create_node(kind, target, name=_node_name(target))
        node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def _write_call(self, func: OpOverload, args: Any, kwargs: dict[str, Any], site: Site) -> fx.Node:
        node = self._write("call_function", func, args, _recordable(kwargs))
        node.meta["site"] = site
        node.meta["extra"] = self.extra
        node.meta["data"] = any(source.meta.get("data") for source in node.all_input_nodes)
        return node

    def _written(self, value: Any) -> Any:
        """The operands of a call with nodes for tensors (they nest in lists and tuples alone)."""
        if type(value) in _ATOMS:
            return value
        if isinstance(value, Tensor):
            return self.node(value)
        if isinstance(value, list | tuple):
            return type(value)([self._written(part) for part in value])
        return {key: self._written(part) for key, part in value.items()} if isinstance(value, dict) else value

    def _bind(self, node: fx.Node, result: Any) -> None:
        if isinstance(result, Tensor):
            self._describe(node, result)
            self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for index, item in enumerate(result):
                if isinstance(item, Tensor):
                    part = self._write("call_function", operator.getitem, (node, index))
                    part.meta |= {"site": node.meta["site"], "data": node.meta["data"]}
                    self._bind(part, item)
        else:
            node.meta["value"] = result

    def _attribute(self, tensor: Tensor) -> fx.Node:
        # A parameter is recognised by its storage: models reach theirs through .data, detach() or an alias too.
        name = self._known.get(id(tensor)) or self._stored.get(_memory_of(tensor)) or f"{_OWN}{len(self.tensors)}"
        if name not in self._attributes:
            if name.startswith(_OWN):
                self._need_numbers(name)
            # fx would resolve dotted names to owners; the recorder keeps the tensors itself
            node = self._write("get_attr", name)
            node.meta["data"] = not name.startswith(_OWN)
            self._describe(node, tensor)
            self._attributes[name] = node
            self.tensors[name] = tensor
        node = self._attributes[name]
        self._nodes[tensor] = node
        return node

    def _writes_to_model(self, args: tuple[Any, ...]) -> bool:
        target = args[0] if args else None
        return isinstance(target, Tensor) and _storage_of(target) in self._storages

    def _keep_indices(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._blind and not in_range(func, args):
            self._need_numbers("an index")
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and not leaf.is_floating_point() and 0 < leaf.numel() <= _MAX_INDEX:
                self.node(leaf).meta["value"] = leaf

    def _need_numbers(self, what: object) -> None:
        if self._blind:
            raise RuntimeError(f"{what} needs numbers")

    def further_pass(self, run: Callable[[], Any]) -> bool:
        """Record a pass behind the first; whether it is kept: one that fails or reaches no more tensors is dropped."""
        nodes, tensors, decided = len(self.graph.nodes), set(self.tensors), len(self.decisions.taken)
        before, finished = self.extra, False
        self.extra = True
        with contextlib.suppress(Exception):
            run()
            finished = True
        kept = finished and any(name not in tensors and not name.startswith(_OWN) for name in self.tensors)
        if not kept:
            self.extra = before
            self._forget(nodes)
            del self.decisions.taken[decided:]
        return kept

    def _forget(self, mark: int) -> None:
        """Drop what was recorded after the first `mark` nodes."""
        for node in reversed(list(self.graph.nodes)[mark:]):
            if node.op == "get_attr":
                del self.tensors[str(node.target)], self._attributes[str(node.target)]
            self.graph.erase_node(node)

    def _describe(self, node: fx.Node, tensor: Tensor) -> None:
        node.meta["shape"] = tensor.shape
        node.meta["dtype"] = tensor.dtype
        if self._blind and tensor.device.type != "meta":
            node.meta["known"] = True


def _node_name(target: Any) -> str:
    """What a node is called before a number is appended (fx would take every target's name apart anew)."""
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _run(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return run_meta(func, args, kwargs) if all_meta(args) else func(*args, **kwargs)


def _from_data(args: Any, kwargs: Any) -> bool:
    """Whether a call's operands depend on inputs or weights, not on sizes alone."""
    return any(node.meta.get("data") for node in _operands((args, kwargs.values())))


def _operands(values: Iterable[Any]) -> Iterator[fx.Node]:
    for value in values:
        if isinstance(value, fx.Node):
            yield value
        elif isinstance(value, list | tuple | ValuesView):
            yield from _operands(value)


def _memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same numbers in the same order: storage, offset, shape and strides."""
    if tensor.layout is not torch.strided:
        return (_storage_of(tensor),)
    return (_storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _storage_of(tensor: Tensor) -> int:
    """What tensors over the same memory have in common; a sparse one has only itself."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else -id(tensor)


def _recordable(kwargs: dict[str, Any]) -> dict[str, Any]:
    """All but a generator, given or not: a recording keeps none."""
    return {key: value for key, value in kwargs.items() if key != "generator"}
