"""A forward written down symbolically, with the number of axes known and every size left open."""

from __future__ import annotations

import inspect
import linecache
import math
import operator
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from surgeon.tracing.inputs import Inputs
from surgeon.tracing.source import LINES, call_site

#: They make a tensor from sizes alone, and torch tells fx of no call that has only sizes to go by.
_MAKERS = (
    torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange, torch.linspace, torch.eye,
)  # fmt: skip
#: Sequences of these have as many parts at every size of the input.
_EVEN_PARTS = frozenset({"chunk", "tensor_split", "shape", "size"})
_COMPOUND = re.compile(r"\b(not|or|and|if .* if|else)\b")
_PLAIN = (int, float, str, type(None))


class RankTracer(fx.Tracer):
    """Traces with shapes on the meta device beside it.

    They answer how many axes a tensor has (``x.dim()``, ``*x.shape[2:]``) and what no size decides; a forward that asks
    more of them is refused by fx.

    Parameters
    ----------
    inputs:
        Example inputs. Arguments that hold no tensor, or that are left to their defaults, are fixed.
    """

    def __init__(self, inputs: Inputs | None = None) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=_MAKERS)
        self._autowrap_search.append(torch)  # `torch.zeros` is looked up in torch, not in the user's module
        self._inputs = inputs
        self._values: dict[fx.Node, Any] = {}
        self._given: dict[str, Any] = {}
        self._working = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows how many axes it has."""
        return _Ranked(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders; arguments that hold no tensor keep the values of the example."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        if self._inputs is not None:
            bound = inspect.signature(root_fn).bind(self.root, *self._inputs.args, **self._inputs.kwargs)
            bound.apply_defaults()
            self._given = bound.arguments
        return function, [self._fixed(arg) if isinstance(arg, fx.Proxy) else arg for arg in args]

    def _fixed(self, arg: fx.Proxy) -> Any:
        """The value of an argument that holds no tensor, with a check that it stays the same; else the proxy."""
        name = str(arg.node.target)
        value = self._given.get(name, arg)
        if not isinstance(value, _PLAIN):
            self._values[arg.node] = pytree.tree_map_only(Tensor, _on_meta, value)
            return arg
        compared = operator.is_ if value is None else operator.eq
        same = self.create_proxy("call_function", compared, (arg, value), {})
        self.create_proxy("call_function", torch._assert, (same, f"{name} was {value!r} when it was traced"), {})
        return value

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        """Write a node, and note what it gives on the meta device."""
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        proxy.node.meta[LINES] = str(call_site({}).source)
        if kind != "placeholder":
            self._work_out(proxy.node)
        return proxy

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As fx does it; a layer that only works out shapes is left alone."""
        return forward(*args, **kwargs) if self._working else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As fx does it; a layer that only works out shapes is left alone."""
        return attr_val if self._working else super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: Any) -> Iterator[Any]:
        """The parts of a sequence whose length no size decides."""
        length = self.length(obj.node)
        return super().iter(obj) if length is None else iter([operator.getitem(obj, index) for index in range(length)])

    def to_bool(self, obj: Any) -> bool:
        """What a check of a size must find (``assert``, ``if ...: raise``); the graph makes the same check."""
        frame: Any = sys._getframe(2)
        line, after = (linecache.getline(frame.f_code.co_filename, frame.f_lineno + more).strip() for more in (0, 1))
        if _COMPOUND.search(line):
            return super().to_bool(obj)
        if line.startswith("assert "):
            self.create_proxy("call_function", torch._assert, (obj, line), {})
            return True
        if line.startswith("if ") and line.endswith(":") and after.startswith("raise "):
            passed = self.create_proxy("call_function", operator.not_, (obj,), {})
            self.create_proxy("call_function", torch._assert, (passed, after), {})
            return False
        return super().to_bool(obj)

    def rank(self, node: fx.Node) -> int | None:
        """How many axes the tensor has, if that is known."""
        value = self._values.get(node)
        return value.dim() if isinstance(value, Tensor) else None

    def length(self, node: fx.Node) -> int | None:
        """How many parts a sequence has, if no size decides that."""
        value, target = self._values.get(node), getattr(node.target, "__name__", node.target)
        even = isinstance(value, torch.Size) or target in _EVEN_PARTS or _split_by_list(node)
        return len(value) if even and isinstance(value, tuple | list) else None

    def _work_out(self, node: fx.Node) -> None:
        self._working = True
        try:
            with torch.no_grad():
                self._values[node] = self._result(node)
        except Exception:  # noqa: BLE001  # what can't be worked out is not known; fx itself says so where it matters
            self._values.pop(node, None)
        finally:
            self._working = False

    def _result(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        target: Any = node.target
        if node.op == "call_function":
            return target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        found = operator.attrgetter(target)(self.root)
        if node.op == "get_attr":
            return _on_meta(found)
        state = {name: _on_meta(tensor) for name, tensor in (*found.named_parameters(), *found.named_buffers())}
        return torch.func.functional_call(found, state, args, kwargs)


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.detach().to("meta")


def _split_by_list(node: fx.Node) -> bool:
    """Whether the sizes of the parts are written down one by one."""
    name = getattr(node.target, "__name__", node.target)
    return name in ("split", "split_with_sizes") and len(node.args) > 1 and isinstance(node.args[1], list | tuple)


class _Ranked(fx.Proxy):
    """Answers what the tracer knows, and writes down what it doesn't."""

    tracer: RankTracer

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        rank = self.tracer.rank(self.node) if name == "ndim" else None
        return super().__getattr__(name) if rank is None else rank

    def dim(self) -> Any:
        """How many axes it has."""
        rank = self.tracer.rank(self.node)
        return super().__getattr__("dim")() if rank is None else rank

    def __len__(self) -> int:
        length = self.tracer.length(self.node)
        return super().__len__() if length is None else length
