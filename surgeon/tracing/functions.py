"""Custom autograd functions, followed while a forward is recorded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.autograd_function import custom_function_call
from torch.autograd.function import Function, FunctionCtx

#: The context that a thread's latest forward of the older form wrote to.
_LATEST = threading.local()


@contextlib.contextmanager
def plain_functions() -> Iterator[None]:
    """Let functionalisation run the forwards of custom autograd functions as plain code.

    It is a transform like ``vmap``: torch wants functions of the newer form for it (with ``setup_context``), and then
    has no rule of its own for them. Nothing asks for gradients here, so what is left of a function is its forward. The
    classes are changed for a while, since programs keep ``apply = Own.apply``, which nothing can stand in for; those
    who train in other threads get their gradients all the same.
    """
    older = [kind for kind in _kinds(Function) if kind.setup_context is Function.setup_context]
    saved = [(kind, kind.__dict__["forward"]) for kind in older if "forward" in kind.__dict__]
    table = custom_function_call.functorch_table
    rule = table[TransformType.Functionalize]
    try:
        table[TransformType.Functionalize] = _forward_alone
        for kind, _ in saved:
            kind.setup_context, kind.forward = staticmethod(_take_over), staticmethod(_newer(kind.forward))
        yield
    finally:
        for kind, forward in saved:
            kind.forward = forward
            del kind.setup_context
        table[TransformType.Functionalize] = rule


def _kinds(kind: type[Any]) -> list[type[Any]]:
    """All classes that are derived from this one."""
    return list(dict.fromkeys(kind for child in kind.__subclasses__() for kind in (child, *_kinds(child))))


def _forward_alone(_: Any, function: type[Function], *args: Any) -> Any:
    return function.forward(*args)


def _newer(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward of the older form as one of the newer; programs that call it themselves give it a context."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], FunctionCtx):
            return forward(*args, **kwargs)
        context: Any = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(value, Tensor) and value.requires_grad for value in args)
        result = forward(context, *args, **kwargs)
        _LATEST.context = context
        return result

    return run


def _take_over(context: Any, *_: Any) -> None:
    """Write to a context what the forward wrote to its own."""
    for name, value in vars(_LATEST.context).items():
        if name != "needs_input_grad":
            setattr(context, name, value)
