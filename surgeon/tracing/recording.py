"""Record a model's forward."""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.contents import Contents, reachable
from surgeon.exclusive import ONE_AT_A_TIME
from surgeon.tracing.canonical import CanonicalProducts
from surgeon.tracing.decisions import Decisions
from surgeon.tracing.detours import Detour
from surgeon.tracing.functions import plain_functions
from surgeon.tracing.guard import Blind, plain_kernels, set_mode, untouched
from surgeon.tracing.inputs import Inputs
from surgeon.tracing.members import named_parameters, named_tensors
from surgeon.tracing.recorder import Recorder
from surgeon.tracing.unread import drop_unread


class Way(enum.Enum):
    """How a forward is recorded; one that can't be recorded in one way is in the next."""

    FUNCTIONAL = "writes in place are taken apart"
    FUNCTIONS = "the same, with custom autograd functions run as plain code"
    AS_IT_IS = "writes in place stay, and there is one pass"


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
    way:
        How it was recorded.
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
    way: Way = Way.FUNCTIONAL
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
        return record_once(model, inputs, like, way=like.way)
    for way in Way:
        try:
            return record_once(model, inputs, way=way, explore=explore)
        except Unfinished as failed:  # noqa: PERF203  # three at most; the user's own error comes from a plain run
            last = failed
    raise last


def record_once(
    model: nn.Module,
    inputs: Inputs,
    like: Trace | None = None,
    *,
    way: Way = Way.FUNCTIONAL,
    blind: bool = False,
    explore: bool = False,
) -> Trace:
    """:func:`record` in one way; `blind` ends it where the forward asks for numbers.

    Raises
    ------
    Unfinished
        If the forward fails.
    """
    known = {name: _plain(tensor) for name, tensor in named_tensors(model).items()}
    given = Contents((inputs.args, dict(inputs.kwargs)))
    tensors = [_plain(leaf) for leaf in given.tensors]
    recorder = Recorder(model, known, Decisions(None if like is None else like.decisions), blind=blind)
    recorder.add_inputs(tensors)
    functional = way is not Way.AS_IT_IS
    further = _further(model, recorder, like, explore=explore) if functional else ()
    passes = _Passes(model, given, recorder, further, blind=blind)
    with ONE_AT_A_TIME, untouched(model), plain_kernels(model):
        try:
            with CanonicalProducts(), plain_functions() if way is Way.FUNCTIONS else contextlib.nullcontext(), recorder:
                run = torch.func.functionalize(passes.run) if functional else passes.run
                computed = run(known, tensors)
        except Exception as error:
            raise Unfinished(recorder.graph) from error
        recorder.add_output(*passes.outputs(computed))
    drop_unread(recorder.graph)
    first = passes.returned[0]
    first.contents.let_go()
    return Trace(
        graph=recorder.graph,
        model=model,
        inputs=inputs,
        tensors=recorder.tensors,
        outputs=first.contents,
        returned=first.kind,
        closed=tuple(dict.fromkeys(name for result in passes.returned for name in result.closed)),
        decisions=recorder.decisions.taken,
        passes=tuple(passes.kinds),
        unexplored=tuple(recorder.decisions.lines.open) if _unused(model, recorder) else (),
        way=way,
    )


class _Passes:
    """The model's forward, and the further passes behind it, all on the same arguments.

    Attributes
    ----------
    returned:
        What each pass gave back.
    kinds:
        Of each further pass what it was: ``"train"`` or ``"detour"``.
    """

    def __init__(
        self,
        model: nn.Module,
        given: Contents,
        recorder: Recorder,
        further: Iterable[tuple[str, Detour | None]],
        *,
        blind: bool,
    ) -> None:
        self.returned: list[_Returned] = []
        self.kinds: list[str] = []
        self._model, self._given, self._recorder = model, given, recorder
        self._further, self._blind = further, blind

    def run(self, state: dict[str, Tensor], ours: list[Tensor]) -> list[Tensor]:
        """Run them all with these weights and inputs; the tensors in what they gave back."""
        feed = iter(ours)
        args, kwargs = self._given.rebuilt([next(feed) if isinstance(v, Tensor) else v for v in self._given.leaves])
        once = functools.partial(self._once, state, args, kwargs)
        once(None)
        for kind, detour in self._further:
            set_mode(self._model, kind == "train")
            if self._recorder.further_pass(functools.partial(once, detour)):
                self.kinds.append(kind)
            del self.returned[1 + len(self.kinds) :]  # of a pass that isn't kept
        return [tensor for result in self.returned for tensor in (*result.contents.tensors, *result.held)]

    def _once(
        self, state: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], detour: Detour | None
    ) -> None:
        with contextlib.nullcontext() if detour is None else self._recorder.decisions.on(detour):
            with Blind() if self._blind else contextlib.nullcontext():
                value = torch.func.functional_call(self._model, state, args, kwargs)
            self.returned.append(_Returned(value))

    def outputs(self, computed: Iterable[Tensor]) -> tuple[list[Any], list[Tensor]]:
        """The leaves of what was given back, and the tensors behind it, made of what :meth:`run` computed."""
        tensors = iter(computed)
        leaves: list[Any] = []
        held: list[Tensor] = []
        for result in self.returned:
            leaves += [next(tensors) if isinstance(v, Tensor) else v for v in result.contents.leaves]
            held += [next(tensors) for _ in result.held]
        return leaves, held


class _Returned:
    """What a forward returned.

    Attributes
    ----------
    held:
        Tensors that parts which can't be looked into may lead to.
    closed:
        The types of the parts that do.
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
