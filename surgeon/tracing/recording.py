"""Record a model's forward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.contents import Contents, reachable
from surgeon.exclusive import ALONE
from surgeon.tracing.canonical import CanonicalProducts
from surgeon.tracing.decisions import Decisions
from surgeon.tracing.detours import Detour
from surgeon.tracing.functions import plain_functions
from surgeon.tracing.guard import Blind, plain_kernels, set_mode, untouched
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.members import named_parameters, named_tensors
from surgeon.tracing.recorder import Recorder
from surgeon.tracing.unread import drop_unread


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
        Structure of the forward's return value, with what is in it beside tensors.
    returned:
        The type of the forward's return value.
    closed:
        Types of what it returns that can't be looked into but leads to its tensors (an iterator, a generator, a
        closure). All that such a value leads to counts as a result; what it computes later isn't in the recording.
    decisions:
        What the data decided on the way; empty unless the forward's path depends on the data.
    passes:
        What was recorded behind the first pass, each marked ``meta["extra"]``: ``"train"`` a pass in train mode,
        ``"detour"`` one that decides otherwise than the data.
    unexplored:
        Source lines behind whose decisions there may be more of the model than was reached.
    functional:
        Whether writes in place were taken apart; a few forwards can only be recorded as they are.
    by_shapes:
        Whether no number of an input or a weight was computed with: the forward ran on the meta device.
    """

    graph: fx.Graph
    model: nn.Module
    inputs: Inputs
    tensors: Mapping[str, Tensor]
    outputs: Contents
    returned: str
    closed: tuple[str, ...]
    decisions: Sequence[tuple[str, Any]]
    passes: tuple[str, ...] = ()
    unexplored: tuple[str, ...] = ()
    functional: bool = True
    by_shapes: bool = False

    @functools.cached_property
    def order(self) -> Mapping[fx.Node, int]:
        """When each node runs."""
        return {node: index for index, node in enumerate(self.graph.nodes)}

    @property
    def results(self) -> list[fx.Node]:
        """The nodes that the forward's return value is made of."""
        last: fx.Node = next(iter(reversed(self.graph.nodes)))  # no iterator before torch 2.9
        return last.all_input_nodes

    @property
    def reusable(self) -> bool:
        """Whether it holds for other numbers of the same shapes: nothing that the data decided or made is in it."""
        return not self.decisions and not any(name.startswith("_constant_") for name in self.tensors)

    @property
    def calls(self) -> list[fx.Node]:
        """The operator calls, in order of execution (picking one of several results is no call)."""
        return [n for n in self.graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload)]


class Unfinished(Exception):
    """A forward that failed while it was recorded; `graph` holds what came before, `__cause__` the user's error."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__("the forward failed")
        self.graph = graph


def record(model: nn.Module, inputs: Inputs, like: Trace | None = None, *, explore: bool = False) -> Trace:
    """Run `model` once in eval mode and record every ATen call; a failing forward raises :class:`Unfinished`.

    The model is as before afterwards (mode, buffers, RNG, hooks), also when its forward raises. Where eval mode
    leaves parameters unused (auxiliary heads), a second pass in train mode is recorded behind the first, so that what
    feeds them is known; a model that can't run so keeps the first pass alone. With `explore` passes that decide
    otherwise than the data follow, as long as parameters are unused. `like`: an earlier recording, whose passes are
    run, whose decisions are followed and whose way of recording is taken.
    """
    if like is not None:
        return record_once(model, inputs, like, functional=like.functional)
    try:
        return record_once(model, inputs, explore=explore)
    except Unfinished:
        # the user's own error comes from a plain run; a forward that only functionalisation can't follow (numpy) is
        # recorded without it
        return record_once(model, inputs, functional=False)


def record_once(
    model: nn.Module,
    inputs: Inputs,
    like: Trace | None = None,
    *,
    functional: bool = True,
    blind: bool = False,
    explore: bool = False,
) -> Trace:
    """:func:`record` in one way; `blind` ends it where the forward asks for numbers."""
    known = {name: _plain(tensor) for name, tensor in named_tensors(model).items()}
    given = Contents((inputs.args, dict(inputs.kwargs)))
    tensors = [_plain(leaf) for leaf in given.tensors]
    recorder = Recorder(model, known, Decisions(None if like is None else like.decisions), blind=blind)
    recorder.add_inputs(tensors)
    returned: list[_Returned] = []
    passes: list[str] = []

    def forward(state: dict[str, Tensor], ours: list[Tensor]) -> list[Tensor]:
        feed = iter(ours)
        args, kwargs = given.rebuilt([next(feed) if isinstance(v, Tensor) else v for v in given.leaves])

        def once() -> Any:
            with Blind() if blind else contextlib.nullcontext():
                return torch.func.functional_call(model, state, args, kwargs)

        def again(detour: Detour | None) -> None:
            with contextlib.nullcontext() if detour is None else recorder.decisions.on(detour):
                returned.append(_Returned(once()))

        again(None)
        for kind, detour in _further(model, recorder, like, explore=explore) if functional else ():
            set_mode(model, kind == "train")
            if recorder.further_pass(functools.partial(again, detour)):
                passes.append(kind)
            del returned[1 + len(passes) :]
        return [tensor for result in returned for tensor in (*result.contents.tensors, *result.held)]

    with ALONE, untouched(model), plain_kernels(model):
        try:
            with CanonicalProducts(), plain_functions() if functional else contextlib.nullcontext(), recorder:
                run = torch.func.functionalize(forward) if functional else forward
                outputs = iter(run(known, tensors))
        except Exception as error:
            raise Unfinished(recorder.graph) from error
        leaves: list[Any] = []
        held: list[Tensor] = []
        for result in returned:
            leaves += [next(outputs) if isinstance(v, Tensor) else v for v in result.contents.leaves]
            held += [next(outputs) for _ in result.held]
        recorder.add_output(leaves, held)
    drop_unread(recorder.graph)
    first, closed = returned[0], tuple(dict.fromkeys(name for result in returned for name in result.closed))
    first.contents.let_go()
    unexplored = tuple(recorder.decisions.lines.open) if _unused(model, recorder) else ()
    return Trace(
        recorder.graph, model, inputs, recorder.tensors, first.contents, first.kind, closed, recorder.decisions.taken,
        tuple(passes), unexplored, functional,
    )  # fmt: skip


class _Returned:
    """What a forward returned.

    Attributes
    ----------
    held:
        Tensors that what can't be looked into may lead to.
    closed:
        The types of what leads to some.
    """

    def __init__(self, value: Any) -> None:
        self.kind, self.contents = type(value).__name__, Contents(value)
        self.held: list[Tensor] = []
        self.closed: list[str] = []
        for part in self.contents.closed:
            held = reachable(part)
            self.held += held
            if held and not isinstance(part, set | frozenset):  # these hold tensors, and compute nothing
                self.closed.append(type(part).__name__)


def _further(
    model: nn.Module, recorder: Recorder, like: Trace | None, *, explore: bool
) -> Iterator[tuple[str, Detour | None]]:
    """The passes behind the first: those of an earlier recording, or as long as they may reach more."""
    if like is not None:
        yield from ((kind, None) for kind in like.passes)
        return
    if _unused(model, recorder):
        yield "train", None
    for detour in recorder.decisions.lines.detours() if explore else ():
        if not _unused(model, recorder):
            return
        yield "detour", detour


def _unused(model: nn.Module, recorder: Recorder) -> bool:
    return any(name not in recorder.tensors for name, _ in named_parameters(model))


def _plain(tensor: Tensor) -> Tensor:
    """The same numbers without a history; a tensor made in inference mode would hide what composite operators do."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()
