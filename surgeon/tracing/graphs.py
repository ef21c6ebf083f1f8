"""A model as a ``torch.fx.GraphModule``: numbers that its forward spells out become arguments that can be changed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from surgeon.errors import ModelError
from surgeon.exclusive import one_at_a_time
from surgeon.tracing.guard import check_model, untouched
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.source import LINES, error_site
from surgeon.tracing.symbolic import RankTracer


@one_at_a_time
def as_graph(model: nn.Module, example_inputs: Any) -> fx.GraphModule:
    """`model` as a graph module: the same parameters and buffers under the same names, in the same mode.

    It shares them, and the layers that torch.nn defines, with `model`, which stays as it is. Where the forward asks
    whether it trains, so does the graph; a forward that takes another way then keeps that of eval mode.

    Parameters
    ----------
    example_inputs:
        They say how many axes each tensor has; no size of theirs is written into the graph.

    Raises
    ------
    ModelError
        If the forward takes its way by data or sizes (``if x.sum() > 0``); the message names the line.
    """
    module, inputs = check_model(model), Inputs.of(example_inputs)
    if isinstance(module, fx.GraphModule):
        return module
    with untouched(module):
        graph = _traced(module, inputs)
        for part in module.modules():
            part.training = True
        with contextlib.suppress(ModelError):  # it doesn't run like this: what eval mode does stands
            _ask_for_the_mode(graph, list(_traced(module, inputs).nodes))
        result = fx.GraphModule(module, graph, type(module).__name__)
    _complete(module, result)
    result.meta[LINES] = {node.name: node.meta.pop(LINES) for node in result.graph.nodes if LINES in node.meta}
    return result


def _traced(model: nn.Module, inputs: Inputs) -> fx.Graph:
    try:
        graph = RankTracer(inputs).trace(model)
    except Exception as problem:
        where = error_site(problem, {id(m): name for name, m in model.named_modules()})
        told = (str(problem).splitlines() or [""])[0]
        raise ModelError(
            f"{type(model).__name__} can't become a graph at {where}: {type(problem).__name__}: {told}. A forward that "
            "takes its way by data or sizes has no single graph: leave as_graph out, or write that line without it"
        ) from problem
    graph._tracer_cls = None  # copies and pickles need no tracer of ours
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # it is for tracing the graph once more, and spoils that for torch.zeros
    return graph


def _ask_for_the_mode(graph: fx.Graph, training: Sequence[fx.Node]) -> None:
    """Arguments that are False in eval mode and True in train mode become the graph's own ``training``."""
    nodes = list(graph.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in training]:
        return
    first = next(n for n in nodes if n.op != "placeholder")
    with graph.inserting_before(first):
        mode = graph.get_attr("training")
    for node, other in zip(nodes, training, strict=True):
        node.args = _merged(node.args, other.args, mode)
        node.kwargs = _merged(node.kwargs, other.kwargs, mode)
    if not mode.users:
        graph.erase_node(mode)


def _merged(ours: Any, theirs: Any, mode: fx.Node) -> Any:
    if ours is False and theirs is True:
        return mode
    if isinstance(ours, dict):
        return {key: _merged(value, theirs[key], mode) for key, value in ours.items()}
    if isinstance(ours, tuple | list) and len(ours) == len(theirs):
        return type(ours)(_merged(a, b, mode) for a, b in zip(ours, theirs, strict=True))
    return ours


def _complete(model: nn.Module, graph: nn.Module) -> None:
    """Give the graph what its nodes don't mention, all in the order of `model`; constants stay out of the state."""
    for name, part in model.named_children():
        known = graph._modules.get(name)
        if known is None:
            graph.register_module(name, part)
        elif known is not part:
            _complete(part, known)
    for name, parameter in model._parameters.items():
        graph._parameters.setdefault(name, parameter)
    for name, buffer in model._buffers.items():
        graph._buffers.setdefault(name, buffer)
    stay = model._buffers.keys() - model._non_persistent_buffers_set
    graph._non_persistent_buffers_set |= graph._buffers.keys() - stay
    graph.training = model.training
    for own, others in ((graph._modules, model._modules), (graph._parameters, model._parameters)):
        _order(own, list(others))
    _order(graph._buffers, list(model._buffers))


def _order(entries: dict[str, Any], names: list[str]) -> None:
    for name in (*names, *(n for n in list(entries) if n not in names)):
        if name in entries:
            entries[name] = entries.pop(name)
