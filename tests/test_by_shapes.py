"""Tracing by shapes alone: what a real forward would say, or else the real forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

import surgeon
from surgeon.errors import InputError
from surgeon.tracing import trace
from surgeon.trial import same_calls
from tests.test_zoo import build, inputs_of
from tests.zoo import ZOO

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Says(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.says = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.says(self, x)


def conv(inputs: int = 3, filters: int = 8, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, filters, kernel)


def described(graph: fx.Graph) -> list[Any]:
    """Every value that isn't scratch or a copy, and what it is."""
    return [
        (node.op, str(node.target), node.meta["shape"], node.meta["dtype"], node.meta["site"].path)
        for node in graph.nodes
        if node.op == "call_function" and "shape" in node.meta and not {"empty", "clone"} & {node.name.split("_")[0]}
    ]


@pytest.mark.parametrize("name", ZOO)
def test_it_is_what_the_real_forward_gives(name: str) -> None:
    model, inputs = build(name), inputs_of(name)
    found, real = trace(model, inputs), trace(model, inputs, real=True)
    assert not real.by_shapes
    if not found.by_shapes:
        return
    assert same_calls(found.graph, real.graph)
    assert described(found.graph) == described(real.graph)
    assert found.tensors.keys() == real.tensors.keys()
    assert all(found.tensors[key].data_ptr() == real.tensors[key].data_ptr() for key in found.tensors)
    assert found.model is model
    assert found.inputs.key == real.inputs.key
    assert not any(leaf.device.type == "meta" for leaf in found.inputs.leaves() if isinstance(leaf, Tensor))


def test_most_of_the_zoo_needs_no_numbers() -> None:
    found = [trace(build(name), inputs_of(name)).by_shapes for name in ZOO]
    assert sum(found) > len(found) / 2


def _item(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    return x * 2 if x.mean().item() < 9 else x


ASKS: dict[str, Callable[[Any, Tensor], Any]] = {
    "a number": _item,
    "a mask": lambda s, x: s.a(x)[x[:, :1, 1:-1, 1:-1].expand(1, 8, 14, 14) > 0],
    "an index": lambda s, x: s.a(x)[:, torch.tensor([1, 0, 3])],
    "a place": lambda s, x: s.a(x).flatten(2).max(2),
    "its device": lambda s, x: s.a(x) if x.device.type == "cpu" else s.a(x).relu(),
    "whether it is on a GPU": lambda s, x: s.a(x).relu() if x.is_cuda else s.a(x),
    "its text": lambda s, x: s.a(x) * len(repr(x)),
    "its strides": lambda s, x: s.a(x) * x.stride(0),
    "its address": lambda s, x: s.a(x) if x.data_ptr() else s.a(x).relu(),
    "another type": lambda s, x: s.a(x).double(),
    "memory": lambda s, x: s.a(x).as_strided((2, 2), (2, 1)),
    "a constant": lambda s, x: s.a(x) * torch.tensor(2.0),
    "numpy": lambda s, x: torch.from_numpy(s.a(x).numpy()),
}


@pytest.mark.parametrize("what", ASKS)
def test_a_forward_that_asks_for_numbers_is_run(what: str) -> None:
    assert not trace(Says(ASKS[what], a=conv()).eval(), X).by_shapes


class Table(nn.Module):
    """Numbers that say where to look, from a buffer."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers).view(-1, 1))


KNOWN: dict[str, Callable[[Any, Tensor], Any]] = {
    "made by the forward": lambda s, x: s.a(x)[:, :, (torch.arange(14)[:, None] * 0.5).long()].sum(3),
    "a buffer's": lambda s, x: s.a(x)[:, s.t.numbers.flatten()],
    "a part of a buffer's": lambda s, x: s.a(x).index_select(3, s.t.numbers[1:3, 0]),
    "counted from the end": lambda s, x: s.a(x)[:, :, torch.arange(3) - 14],
    "rows of a weight": lambda s, x: s.a(x) + F.embedding(s.t.numbers[:1, 0], s.a.weight.flatten(1)).mean(),
    "a mask's": lambda s, x: s.a(x).masked_fill(x[:, :1, 1:-1, 1:-1] > 0, 0.0),
}


@pytest.mark.parametrize("what", KNOWN)
def test_places_that_no_input_and_no_weight_says_are_known(what: str) -> None:
    table = Table(3, 1, 4, 0)
    model = Says(KNOWN[what], a=conv(), t=table).eval()
    found, real = trace(model, X), trace(model, X, real=True)
    assert found.by_shapes
    assert same_calls(found.graph, real.graph)
    assert described(found.graph) == described(real.graph)
    values = [[n.meta["value"] for n in t.graph.nodes if "value" in n.meta and n.op != "output"] for t in (found, real)]
    assert all(torch.equal(one, other) for one, other in zip(*values, strict=True))
    assert torch.equal(table.numbers, torch.tensor([[3], [1], [4], [0]]))  # type: ignore[arg-type]  # a buffer


UNKNOWN: dict[str, Callable[[Any, Tensor], Any]] = {
    "from the input": lambda s, x: s.a(x)[:, :, (x[0, 0, 0, :5] > 0).long()],
    "out of range": lambda s, x: s.a(x)[:, :, torch.arange(15)],
    "below the range": lambda s, x: s.a(x)[:, :, torch.arange(3) - 15],
    "a row that isn't there": lambda s, x: s.a(x) + F.embedding(s.t.numbers + 5, s.a.weight.flatten(1)).mean(),
    "a place that isn't there": lambda s, x: s.a(x).index_select(1, s.t.numbers.flatten() + 5),
    "factors": lambda s, x: s.a(x) * s.t.numbers[0],
    "a factor": lambda s, x: s.a(x) * s.t.numbers[0, 0],
    "written to": lambda s, x: torch.zeros(14).index_add(0, s.t.numbers.flatten(), s.a(x).flatten()[:4]),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_other_places_are_for_the_real_forward_to_find(what: str) -> None:
    model = Says(UNKNOWN[what], a=conv(), t=Table(3, 1, 4, 0)).eval()
    try:
        model(X)
    except (IndexError, RuntimeError) as problem:
        with pytest.raises(type(problem)):
            trace(model, X)
    else:
        assert not trace(model, X).by_shapes


@pytest.mark.parametrize(
    "inputs",
    [torch.zeros(1, 3, 16, 16, dtype=torch.int64), torch.zeros(1, 3, 16, 16, dtype=torch.float64)],
    ids=["whole numbers", "other types"],
)
def test_inputs_of_another_kind_are_run(inputs: Tensor) -> None:
    model = Says(lambda s, x: s.a(x.float()), a=conv()).eval()
    assert trace(model, X).by_shapes
    assert not trace(model, inputs).by_shapes


def test_under_autocast_it_is_run() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not trace(nn.Sequential(conv()), X).by_shapes


def test_tensors_made_on_its_device_are_replayed_there() -> None:
    model = Says(lambda s, x: s.a(x) + x.new_ones(14) * torch.ones_like(x[..., 1:-1, :1]).mean(), a=conv())
    result = surgeon.prune(nn.Sequential(model, conv(8)).eval(), X, ratio=0.5, criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"


class Memory:
    """No module: nobody would put back what it holds."""

    def __init__(self) -> None:
        self.held: dict[Any, Tensor] = {}


class Caching(nn.Module):
    """Makes a table at its first forward, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.memory = conv(), conv(8), Memory()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape not in self.memory.held:
            self.memory.held[x.shape] = torch.ones_like(x) * 3
        return self.b(x * self.memory.held[x.shape]) if self.memory.held else x


def test_nothing_without_numbers_stays_behind() -> None:
    model = Caching().eval()
    before = model(X)
    model.memory.held.clear()
    surgeon.prune(model, X, ratio=0.5, criterion="random")
    assert torch.equal(model(X), before)
    assert all(tensor.device.type == "cpu" for tensor in model.memory.held.values())


BROKEN: dict[str, nn.Module] = {
    "another width": nn.Sequential(conv(), conv(4)),
    "statistics": nn.Sequential(conv(), nn.BatchNorm2d(16)),
    "features": nn.Sequential(conv(), nn.Flatten(), nn.Linear(100, 10)),
    "transposed": nn.Sequential(conv(), nn.ConvTranspose2d(4, 4, 3)),
    "axis": nn.Sequential(conv(), nn.Softmax(7), conv(8)),
    "sum": Says(lambda s, x: s.a(x) + s.b(x), a=conv(), b=conv(3, 6)),
    "out of range": Says(lambda s, x: s.a(x)[:, [1, 9]], a=conv()),
    "types": Says(lambda s, x: F.linear(s.a(x).double(), s.b.weight), a=conv(), b=nn.Linear(14, 3)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_forward_that_fails_is_named_as_ever(name: str) -> None:
    with pytest.raises(InputError, match="rejects the example inputs"):
        surgeon.prune(BROKEN[name].eval(), X, ratio=0.5, criterion="magnitude")


class Sly(nn.Module):
    """Goes another way where there are no numbers, and looks at that in a way that nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(), conv(3, 8), conv(8)

    def forward(self, x: Tensor) -> Tensor:
        real = torch._C._dispatch_keys(x).has(torch._C.DispatchKey.CPU)
        out: Tensor = self.c(self.a(x) * self.b(x) if real else torch.tanh(self.a(x)))
        return out


def test_a_forward_that_runs_otherwise_is_traced_again() -> None:
    model = Sly().eval()
    result = surgeon.prune(model, X, ratio=0.5, criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.b.out_channels == 4  # type: ignore[union-attr]


def called(target: Any) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"),)))
    return graph


def test_a_devices_own_kernel_is_the_same_call() -> None:
    aten = torch.ops.aten
    plain, own = called(aten.native_batch_norm.default), called(aten.cudnn_batch_norm.default)
    assert same_calls(own, plain)
    assert not same_calls(called(aten.native_layer_norm.default), plain)


def test_a_move_to_another_device_is_no_call_of_its_own() -> None:
    """What a forward makes on the CPU and then moves is moved on the meta device alone."""
    model = Says(lambda m, x: m.a(x) * torch.ones(1).to(x.device), a=conv()).eval()
    here, elsewhere = trace(model, X), trace(copy.deepcopy(model).to("meta"), X.to("meta"))
    assert len(elsewhere.graph.nodes) == len(here.graph.nodes) + 1
    assert same_calls(elsewhere.graph, here.graph)


def test_another_type_is_a_call_of_its_own() -> None:
    plain, other = Says(lambda m, x: m.a(x).to(x.dtype), a=conv()), Says(lambda m, x: m.a(x).double(), a=conv())
    assert not same_calls(trace(other, X).graph, trace(plain, X).graph)
