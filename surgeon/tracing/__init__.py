"""Trace: one real forward of any eager module, recorded as a ``torch.fx.Graph`` of ATen calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.tracing.guard import check_model, plain_kernels, untouched, unwrap
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.recorder import Recorder
from surgeon.tracing.source import Site, Source

__all__ = [
    "Call", "Inputs", "Replay", "Site", "Source", "Trace", "Unfinished", "check_model", "plain_call", "record", "trace",
    "unwrap",
]  # fmt: skip

#: Calls whose outcome steers the Python program: another batch may take another path.
_STEERING = ("_local_scalar_dense", "nonzero", "nms", "is_nonzero", "unique", "masked_select")


@dataclass(frozen=True)
class Trace:
    """One recorded forward.

    Attributes
    ----------
    graph:
        ATen calls; every node carries ``meta["shape"]`` and ``meta["site"]`` (module path and source line).
    model:
        The module that ran (unwrapped), untouched.
    inputs:
        What it was called with.
    tensors:
        The tensor behind each ``get_attr`` target: qualified parameter and buffer names, ``_constant_N`` for others.
    outputs:
        Structure of the forward's return value.
    """

    graph: fx.Graph
    model: nn.Module
    inputs: Inputs
    tensors: Mapping[str, Tensor]
    outputs: Any

    @property
    def calls(self) -> list[fx.Node]:
        """The operator calls, in order of execution (picking one of several results is no call)."""
        return [n for n in self.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)]

    @property
    def steered(self) -> bool:
        """Whether the forward's path depends on the data."""
        return any(node.target.overloadpacket.__name__ in _STEERING for node in self.calls)  # type: ignore[union-attr]


class Unfinished(Exception):
    """A forward that failed while it was recorded; `graph` holds what came before, `__cause__` the user's error."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__("the forward failed")
        self.graph = graph


def trace(model: nn.Module, example_inputs: Any) -> Trace:
    """Run `model` once in eval mode and record every ATen call.

    The model is as before afterwards (mode, buffers, RNG, hooks), also when its forward raises.

    Parameters
    ----------
    model:
        Any eager module, on any device, in any floating-point type.
    example_inputs:
        A tensor, a tuple of arguments, or :class:`Inputs`.

    Raises
    ------
    ModelError
        For what can't be traced: a ScriptModule, a quantised or lazily initialised model.
    InputError
        If `example_inputs` holds no tensor.
    Exception
        Whatever the model's own forward raises comes through as it is.
    """
    module, inputs = check_model(model), Inputs.of(example_inputs)
    try:
        return record(module, inputs)
    except Unfinished as stop:
        error = stop.__cause__
        assert error is not None
        with untouched(module), plain_kernels():
            module(*inputs.args, **inputs.kwargs)  # the user's own error, with the user's own stack
        raise error from None


def record(model: nn.Module, inputs: Inputs) -> Trace:
    """:func:`trace` for inside use: a failing forward raises :class:`Unfinished` with the part that ran."""
    known = {name: tensor.detach() for name, tensor in _named_tensors(model)}
    flat, structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
    tensors = [leaf.detach() for leaf in flat if isinstance(leaf, Tensor)]
    recorder = Recorder(model, known)
    recorder.add_inputs(tensors)
    returned: list[Any] = []

    def forward(state: dict[str, Tensor], given: list[Tensor]) -> Any:
        feed = iter(given)
        leaves = [next(feed) if isinstance(leaf, Tensor) else leaf for leaf in flat]
        args, kwargs = pytree.tree_unflatten(leaves, structure)
        result = torch.func.functional_call(model, state, args, kwargs)
        leaves, spec = pytree.tree_flatten(result)
        returned[:] = [spec, leaves]
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    with untouched(model), plain_kernels():
        try:
            with recorder:
                outputs = iter(torch.func.functionalize(forward)(known, tensors))
        except Exception as error:
            raise Unfinished(recorder.graph) from error
        spec, leaves = returned
        leaves = [next(outputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        recorder.add_output(leaves)
    constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return Trace(recorder.graph, model, inputs, recorder.tensors, (spec, constants))


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*itertools.chain(model.named_parameters(), model.named_buffers())]


#: Runs one call of a replay: the node and its arguments give its value.
Call = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def plain_call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call as it was recorded."""
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function target is callable


class Replay(fx.Interpreter):
    """Runs a recorded graph again, on other weights or inputs of the same shapes.

    Parameters
    ----------
    trace:
        What to run.
    tensors:
        Values of the ``get_attr`` targets; missing ones are taken from the trace.
    call:
        Runs each operator call; may change its operands or its result.
    """

    def __init__(self, trace: Trace, tensors: Mapping[str, Tensor] | None = None, call: Call = plain_call) -> None:
        super().__init__(nn.Module(), graph=trace.graph)
        self.extra_traceback = False  # the recorded graph has no source text of its own
        self._trace = trace
        self._tensors = {**trace.tensors, **(tensors or {})}
        self._call = call

    def forward(self, inputs: Inputs | None = None) -> Any:
        """Run on `inputs` (default: the example's) and give back the forward's own structure."""
        flat = self.run(*self._leaves(inputs))
        spec, constants = self._trace.outputs
        filled = [constant if value is None else value for value, constant in zip(flat, constants, strict=True)]
        return pytree.tree_unflatten(filled, spec)

    def steps(self, inputs: Inputs | None = None) -> Iterator[tuple[fx.Node, Any]]:
        """Run node by node; values are let go after their last use."""
        self.env = {}
        self.args_iter = iter(self._leaves(inputs))
        for node in self._trace.graph.nodes:
            self.env[node] = value = self.run_node(node)
            yield node, value
            for dead in self.user_to_last_uses.get(node, []):
                del self.env[dead]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002  # fx's signature
        """The parameter, buffer or constant of that name."""
        return self._tensors[target]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; calls go through the replay's own `call`."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self._call(n, args, kwargs)

    def _leaves(self, inputs: Inputs | None) -> list[Tensor]:
        return [leaf for leaf in (inputs or self._trace.inputs).leaves() if isinstance(leaf, Tensor)]
