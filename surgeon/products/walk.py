"""Two recordings of one batch, run side by side and stopped where a layer is to be healed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from surgeon.tracing import Replay, Trace


class Walk:
    """A replay that goes from node to node and may be set back.

    Parameters
    ----------
    trace:
        The recording of this batch.
    tensors:
        Values of parameters and buffers; may be shared with other walks. Who changes them calls :meth:`refresh`.

    Attributes
    ----------
    nodes:
        The recording's nodes by name.
    """

    def __init__(self, trace: Trace, tensors: Mapping[str, Tensor]) -> None:
        self.trace = trace
        self._replay = Replay(trace, tensors)
        self._shared = tensors
        self.nodes: dict[str, fx.Node] = {node.name: node for node in trace.graph.nodes}
        self._order = list(trace.graph.nodes)
        self._at = {name: number for number, name in enumerate(self.nodes)}
        self._position = 0
        self._env: dict[fx.Node, Any] = {}
        self._inputs = trace.inputs.leaves()
        self._constants = _constants(trace)

    def run_until(self, name: str, *, including: bool) -> None:
        """Run up to the node of that name, or up to and with it."""
        stop = self._at[name] + including
        replay = self._replay
        replay.env, replay.tensors = self._env, {**self.trace.tensors, **self._shared}
        replay.args_iter = iter([leaf for leaf in self._inputs if isinstance(leaf, Tensor)][self._fed() :])
        while self._position < stop:
            node = self._order[self._position]
            self._env[node] = replay.run_node(node)
            for dead in replay.user_to_last_uses.get(node, []):
                self._env.pop(dead, None)
            self._position += 1

    def value(self, name: str) -> Any:
        """The value of a node that ran and is still of use."""
        return self._env[self.nodes[name]]

    def mark(self) -> tuple[int, dict[fx.Node, Any]]:
        """Where it is; to come back to."""
        return self._position, dict(self._env)

    def back(self, mark: tuple[int, dict[fx.Node, Any]]) -> None:
        """Go back to a mark; tensors that changed since then count."""
        self._position, self._env = mark[0], dict(mark[1])
        self.refresh()

    def refresh(self) -> None:
        """Take up changed parameters and buffers, also where they wait behind views."""
        tensors = {**self.trace.tensors, **self._shared}
        for node in [node for node in self._env if node in self._constants]:
            self._env[node] = self._again(node, tensors)

    def _again(self, node: fx.Node, tensors: Mapping[str, Tensor]) -> Any:
        if node.op == "get_attr":
            return tensors[str(node.target)]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda part: self._again(part, tensors))
        return self._replay.call(node, args, kwargs) if node.op == "call_function" else None

    def _fed(self) -> int:
        return sum(node.op == "placeholder" for node in self._order[: self._position])


def _constants(trace: Trace) -> set[fx.Node]:
    """Nodes that depend on parameters and buffers alone."""
    found: set[fx.Node] = set()
    for node in trace.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and found.issuperset(inputs)):
            found.add(node)
    return found
