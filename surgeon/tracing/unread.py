"""What a recording holds that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from surgeon.tracing.source import is_copy


def drop_unread(graph: fx.Graph) -> None:
    """Drop what nobody reads, but not layers, nor what is made of their results: their operands have to fit.

    Functionalisation makes some views twice; a program may compute what it returns in train mode only, or a shortcut
    that no block follows. Of a forward that gives nothing back nothing stays: there is nothing to tell a cut right by.
    (fx's own function keeps nothing, and asks more of every node.)
    """
    (output,) = graph.find_nodes(op="output")
    kept = _behind_layers(graph, _unread(graph)) if output.all_input_nodes else set()
    order, dropped, copies = list(graph.nodes), set[fx.Node](), set[fx.Node]()
    for node in reversed(order):
        if not node.users and not node.is_impure() and node not in kept:
            (copies if is_copy(node) else dropped).add(node)
            graph.erase_node(node)
    _note([node for node in order if node not in copies], dropped)


def with_unread(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes as they were recorded, with those that were dropped, but copies: an unfinished recording has them."""
    for node in graph.nodes:
        yield from node.meta.get("unread", ())
        yield node


def _note(order: list[fx.Node], dropped: set[fx.Node]) -> None:
    """Leave with each node that stays the dropped ones in front of it."""
    waiting: list[fx.Node] = []
    for node in order:
        if node in dropped:
            waiting.append(node)
        elif waiting:
            node.meta["unread"], waiting = tuple(waiting), []


def _unread(graph: fx.Graph) -> set[fx.Node]:
    """Nodes from which no way leads to a result."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op != "output" and not node.is_impure() and found.issuperset(node.users):
            found.add(node)
    return found


def _behind_layers(graph: fx.Graph, unread: set[fx.Node]) -> set[fx.Node]:
    """Unread calls that take weights and data, and those that take their results."""
    if all(node.op != "call_function" for node in unread):
        return set()
    weights: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        taken = weights.intersection(sources)
        if _is_weight(node) or (sources and len(taken) == len(sources)):
            weights.add(node)
        elif node in unread and (taken or not found.isdisjoint(sources)):
            found.add(node)
    return found


def _is_weight(node: fx.Node) -> bool:
    return node.op == "get_attr" and not str(node.target).startswith("_constant_")
