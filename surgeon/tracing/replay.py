"""Run a recording again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.tracing.decisions import as_decided
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.recording import Trace

#: Runs one call of a replay: the node and its arguments give its value.
Call = Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]


def plain_call(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call as it was recorded.

    What the data decided is decided alike. A view is a reshape, since a replay's operands may lie otherwise in memory,
    and scratch memory is zeroed.
    """
    if "decision" in node.meta:
        return as_decided(node, args, kwargs)
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    if target in _VIEWS:
        return args[0].reshape(args[1])
    value = target(*args, **kwargs)
    return value.zero_() if packet in _SCRATCH else value


_aten = torch.ops.aten
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
_SCRATCH = frozenset({_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided})


class Replay(fx.Interpreter):
    """Runs a recorded graph again, on other weights or inputs of the same shapes.

    Parameters
    ----------
    trace:
        What to run.
    tensors:
        Values of the ``get_attr`` targets, each asked for when its turn comes; missing ones are taken from the trace.
    call:
        Runs each operator call; may change its operands or its result.

    Attributes
    ----------
    tensors, call:
        As given; others may be set between two runs.
    """

    def __init__(self, trace: Trace, tensors: Mapping[str, Tensor] | None = None, call: Call = plain_call) -> None:
        super().__init__(nn.Module(), graph=trace.graph)
        self.extra_traceback = False  # the recorded graph has no source text of its own
        self._trace = trace
        self.tensors = tensors or {}
        self.call = call

    def forward(self, inputs: Inputs | None = None) -> Any:
        """Run on `inputs` (default: the example's) and give back the forward's own structure."""
        flat = self.run(*self._leaves(inputs))
        outputs = self._trace.outputs
        # behind the eval pass's results stand those of a train pass, where there was one
        filled = [constant if value is None else value for value, constant in zip(flat, outputs.leaves, strict=False)]
        return outputs.rebuilt(filled)

    def steps(self, inputs: Inputs | None = None) -> Iterator[tuple[fx.Node, Any]]:
        """Run node by node; values are let go after their last use."""
        self.env = {}
        self.args_iter = iter(self._leaves(inputs))
        for node in self._trace.graph.nodes:
            self.env[node] = value = self.run_node(node)
            yield node, value
            for dead in self.user_to_last_uses.get(node, []):
                del self.env[dead]
            if not node.users:
                del self.env[node]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002  # fx's signature
        """The parameter, buffer or constant of that name."""
        found = self.tensors if target in self.tensors else self._trace.tensors
        return found[target]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; calls go through the replay's own `call`."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.call(n, args, kwargs)

    def _leaves(self, inputs: Inputs | None) -> list[Tensor]:
        return [leaf for leaf in (inputs or self._trace.inputs).leaves() if isinstance(leaf, Tensor)]
