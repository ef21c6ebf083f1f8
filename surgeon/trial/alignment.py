"""Which call of one recording is which of another: by order where they run alike, else by place in the program."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from surgeon.tracing import is_copy, operator_name
from surgeon.tracing.unread import with_unread

#: Calls that allocate scratch memory differ between devices and mean nothing.
_SCRATCH = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
_VIEWS = frozenset({"view", "_unsafe_view", "reshape"})
#: What a device calls its own kernel of an operator.
_KERNELS = {
    "cudnn_batch_norm": "native_batch_norm",
    "miopen_batch_norm": "native_batch_norm",
    "cudnn_grid_sampler": "grid_sampler_2d",
}


def _name(node: fx.Node) -> str:
    """The operator's name; a reshape makes or saves a copy depending on the sizes, so its forms are one."""
    name = operator_name(node)
    return "view" if name in _VIEWS else _KERNELS.get(name, name)


def meaningful_calls(graph: fx.Graph) -> list[fx.Node]:
    """The calls that matter, in order."""
    return _mattering(graph.nodes)


def _mattering(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    found = [n for n in nodes if n.op == "call_function" and n.target is not operator.getitem]
    return [n for n in found if _name(n) not in _SCRATCH and not is_copy(n)]


def _scratch(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and _name(n) in _SCRATCH]


def _keyed(nodes: Sequence[fx.Node]) -> dict[Any, fx.Node]:
    seen: Counter[Any] = Counter()
    keyed = {}
    for node in nodes:
        key = _address(node)
        keyed[key, seen[key]] = node
        seen[key] += 1
    return keyed


def align(small: fx.Graph, dense: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The dense node of each node of `small`, as far as there is one."""
    ours, theirs = meaningful_calls(small), meaningful_calls(dense)
    found = _in_step(ours, theirs)
    if found is None and not small.find_nodes(op="output"):  # unfinished: nothing that nobody reads is dropped yet
        found = _in_step(ours, _mattering(with_unread(dense)), set(theirs))
    if found is None:
        keyed = _keyed(theirs)
        found = {node: keyed[key] for key, node in _keyed(ours).items() if key in keyed}
    _align_attributes(small, dense, found)
    scratch = _keyed(_scratch(dense))
    found |= {node: scratch[key] for key, node in _keyed(_scratch(small)).items() if key in scratch}
    for node in small.nodes:
        if node.op == "call_function" and node.target is operator.getitem:
            _align_part(node, found)
        elif node.op == "call_function" and is_copy(node):
            _align_copy(node, found)
    return found


def _in_step(
    ours: Sequence[fx.Node], theirs: Sequence[fx.Node], there: Container[fx.Node] | None = None
) -> dict[fx.Node, fx.Node] | None:
    """Each call's like, of those that are `there`, if ours run as the first of theirs do (an unfinished run stops)."""
    if [_name(n) for n in ours] != [_name(n) for n in theirs[: len(ours)]]:
        return None
    pairs = zip(ours, theirs, strict=False)
    return {our: their for our, their in pairs if there is None or their in there}


def _align_attributes(small: fx.Graph, dense: fx.Graph, found: dict[fx.Node, fx.Node]) -> None:
    named = {(n.op, str(n.target)): n for n in dense.nodes if n.op in ("get_attr", "placeholder")}
    for node in small.nodes:
        match = named.get((node.op, str(node.target)))
        if match is not None:
            found[node] = match


def _align_part(node: fx.Node, found: dict[fx.Node, fx.Node]) -> None:
    """One of several results: the same one of the dense call."""
    source, index = node.args
    for user in found[source].users if source in found else ():  # type: ignore[index]  # args[0] is a node
        if user.target is operator.getitem and user.args[1] == index:
            found[node] = user


def _align_copy(node: fx.Node, found: dict[fx.Node, fx.Node]) -> None:
    """A copy: that of the dense value, or, where the dense run made none, the value itself."""
    theirs = found.get(node.all_input_nodes[0])
    if theirs is not None:
        found[node] = next((u for u in theirs.users if _name(u) == _name(node) and is_copy(u)), theirs)


def partners(nodes: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """The small node of each dense node; of a call and copies of its result, which share a dense node, the call."""
    found: dict[fx.Node, fx.Node] = {}
    for small, dense in nodes.items():
        found.setdefault(dense, small)
    return found


def same_calls(small: fx.Graph, dense: fx.Graph) -> bool:
    """Whether both run the same operators in the same order."""
    return [_name(n) for n in meaningful_calls(small)] == [_name(n) for n in meaningful_calls(dense)]


def strays(small: fx.Graph, dense: fx.Graph) -> fx.Node | None:
    """The first dense call where `small` took another way through the program; None if both ran the same lines."""
    ours, theirs = [_address(n) for n in meaningful_calls(small)], [_address(n) for n in meaningful_calls(dense)]
    common = set(ours) & set(theirs)
    lost = next((i for i, place in enumerate(theirs) if place not in common), None)
    added = next((i for i, place in enumerate(ours) if place not in common), None)
    first = min((i for i in (lost, added) if i is not None), default=None)
    return None if first is None else meaningful_calls(dense)[min(first, len(theirs) - 1)]


def _address(node: fx.Node) -> Any:
    """Operator and place in the program."""
    site = node.meta["site"]
    return site.path, site.source, _name(node)


def next_call(part: fx.Graph, dense: fx.Graph) -> fx.Node | None:
    """The dense call that comes after the last one that `part` has too: where an unfinished run failed."""
    reached = set(align(part, dense).values())
    theirs = meaningful_calls(dense)
    last = max((index for index, node in enumerate(theirs) if node in reached), default=-1)
    return theirs[last + 1] if last + 1 < len(theirs) else None
