"""Results and inputs in objects of any kind: what they hold stays as it is, and what can't be looked into is named."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.contents import Contents, reachable, tensors_in
from surgeon.rewriting import fit
from surgeon.tracing import Replay
from tests.oracle import compare

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Extra:
    """As a frozen dataclass."""

    features: Tensor
    scale: float = 2.0


class Slotted:
    """As a class with slots, one of them private, one of them never set."""

    __slots__ = ("__features", "unset")

    def __init__(self, features: Tensor) -> None:
        self.__features = features

    @property
    def features(self) -> Tensor:
        return self.__features


class Plain:
    """As an object that refers to itself, and to tensors in containers."""

    def __init__(self, features: Tensor) -> None:
        self.parts, self.me, self.name = {"all": [features, None]}, self, "plain"

    @property
    def features(self) -> Tensor:
        found = self.me.parts["all"][0]
        assert isinstance(found, Tensor)
        return found


class Named(dict[str, Any]):
    """As a dict with attributes, which pytree doesn't know."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Kept(list[Any]):
    """As a list of a class of its own."""


Make = Callable[[Tensor], Any]
Read = Callable[[Any], Tensor]
#: Ways to return a tensor, and how a caller gets at it.
OPEN: dict[str, tuple[Make, Read]] = {
    "tuple": (lambda f: (f,), lambda o: o[0]),
    "dataclass": (Extra, lambda o: o.features),
    "slots": (Slotted, lambda o: o.features),
    "plain object": (Plain, lambda o: o.features),
    "namespace": (lambda f: {"deep": SimpleNamespace(features=f)}, lambda o: o["deep"].features),
    "dict of its own": (lambda f: Named(features=f), lambda o: o.features),
    "list of its own": (lambda f: Kept([1, f]), lambda o: o[1]),
    "distribution": (lambda f: torch.distributions.Normal(f, 1.0), lambda o: o.mean),
    "set": (lambda f: {f}, lambda o: next(iter(o))),
}
CLOSED: dict[str, tuple[Make, Read]] = {
    "iterator": (lambda f: iter([f]), next),
    "generator": (lambda f: (part for part in [f]), next),
    "closure": (lambda f: lambda: f, lambda o: o()),
    "partial": (lambda f: functools.partial(torch.add, f, 0), lambda o: o()),
    "method": (lambda f: Extra(f).__class__.__eq__.__get__(Extra(f)), lambda o: o.__self__.features),
    "closure in an object": (lambda f: SimpleNamespace(get=lambda: f), lambda o: o.get()),
    "deque of its own": (lambda f: type("Mine", (collections.deque,), {})([f]), lambda o: o[0]),
}


class Net(nn.Module):
    """`b` makes features that are returned beside scores, in some way; nothing keeps `a` from being cut."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        features = torch.relu(self.b(torch.relu(self.a(x))))
        return self.o(features.mean((2, 3))), self.make(features)


class Opened(nn.Module):
    """A network whose result is read as a caller reads it."""

    def __init__(self, net: nn.Module, read: Read) -> None:
        super().__init__()
        self.net, self.read = net, read

    def forward(self, x: Tensor) -> Any:
        scores, extra = self.net(x)
        return scores, self.read(extra)


def net(make: Make) -> Net:
    torch.manual_seed(0)
    return Net(make).double().eval()


def cut(model: nn.Module) -> surgeon.Result:
    return surgeon.prune(model, X, ratio=0.5, scope="local", criterion="magnitude")


@pytest.mark.parametrize("kind", [*OPEN, *CLOSED])
def test_results_stay_whole_however_they_are_returned(kind: str) -> None:
    make, read = {**OPEN, **CLOSED}[kind]
    model = net(make)
    result = cut(model)
    assert [(pin.layer, pin.reason) for pin in result.report.pinned] == [("b", "output"), ("o", "output")]
    assert result.model.get_parameter("a.weight").shape[0] == 4
    source = fit(model, result.plan, X).source
    compare(Opened(model, read), Opened(result.model, read), lambda name: source(name.removeprefix("net.")), X)


@pytest.mark.parametrize("kind", OPEN)
def test_what_can_be_looked_into_is_proven(kind: str) -> None:
    result = cut(net(OPEN[kind][0]))
    assert result.report.check is not None
    assert (result.report.check.status, result.report.notes) == ("passed", ())


@pytest.mark.parametrize("kind", CLOSED)
def test_what_cannot_be_looked_into_is_never_passed_over(kind: str) -> None:
    result = cut(net(CLOSED[kind][0]))
    assert result.report.check is not None
    assert result.report.check.status == "unproven"
    assert any("may compute more than was recorded" in row for row in result.report.check.unproven)
    assert any("what it holds stays whole" in note for note in result.report.notes)


class Later(nn.Module):
    """Returns scores, and a generator that runs a layer again when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        layer = self.a
        return self.o(torch.relu(self.b(torch.relu(layer(x)))).mean((2, 3))), (layer(part) for part in [x])


def test_a_layer_that_a_generator_may_run_stays_whole() -> None:
    result = cut(Later().double().eval())
    assert {pin.layer: pin.reason for pin in result.report.pinned} == {"a": "output", "o": "output"}
    assert next(result.model(X)[1]).shape[1] == 8


class Lazy(Later):
    def forward(self, x: Tensor) -> Iterator[Any]:
        yield self.o(torch.relu(self.a(x)).mean((2, 3)))


class Silent(Later):
    def forward(self, x: Tensor) -> None:
        self.o(torch.relu(self.a(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "told"),
    [(Lazy, "a result of type generator, which may compute"), (Silent, r"no tensor \(it returned NoneType\)")],
)
def test_a_refusal_says_what_the_forward_returned(kind: type[nn.Module], told: str) -> None:
    with pytest.raises(surgeon.NothingToCutError, match=told):
        cut(kind().double().eval())


@pytest.mark.parametrize("kind", ["dataclass", "slots", "plain object", "dict of its own", "list of its own"])
def test_a_replay_gives_the_results_own_structure(kind: str) -> None:
    make, read = OPEN[kind]
    model = net(make)
    scores, extra = Replay(surgeon.trace(model, X)).forward()
    expected = model(X)
    assert type(extra) is type(expected[1])
    torch.testing.assert_close((scores, read(extra)), (expected[0], read(expected[1])))


def test_losses_see_results_in_objects() -> None:
    model = net(Extra)
    data = [(X, torch.zeros(2, dtype=torch.long))]
    scores = surgeon.prune(
        model, X, ratio=0.5, scope="local", criterion="taylor", dataloader=data,
        loss_fn=lambda out, target: nn.functional.cross_entropy(out[0], target) + out[1].features.square().mean(),
    )  # fmt: skip
    assert scores.report.check is not None
    assert scores.report.check.status == "passed"


# --- inputs


class Reads(nn.Module):
    """Takes its image in an object, and writes to that."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, batch: Any) -> Any:
        batch.seen = self.a(batch.image)
        return self.o(batch.seen.mean((2, 3))) * batch.scale


def test_inputs_in_an_object_are_inputs_and_stay_as_they_are() -> None:
    batch = SimpleNamespace(image=X, scale=2.0)
    model = Reads().double().eval()
    result = surgeon.prune(model, batch, ratio=0.5, scope="local", criterion="magnitude")
    assert vars(batch).keys() == {"image", "scale"}
    assert batch.image is X
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert sum(node.op == "placeholder" for node in surgeon.trace(model, batch).graph.nodes) == 1
    moved = surgeon.Inputs.of(batch).to(dtype=torch.float32).args[0]
    assert (moved.image.dtype, moved.scale, batch.image.dtype) == (torch.float32, 2.0, torch.float64)


# --- taken apart


@dataclass
class Ring:
    """Refers to a neighbour that refers back."""

    value: Tensor
    other: Ring | None = None
    words: list[str] = field(default_factory=lambda: ["a"])


def test_cycles_and_shared_objects_keep_their_shape() -> None:
    one, two = Ring(torch.zeros(1)), Ring(torch.ones(1))
    one.other, two.other = two, one
    contents = Contents((one, two))
    assert [float(tensor) for tensor in contents.tensors] == [0.0, 1.0]
    first, second = contents.rebuilt([leaf + 2 if isinstance(leaf, Tensor) else leaf for leaf in contents.leaves])
    assert first.other is second
    assert second.other is first
    assert (float(first.value), float(second.value), float(one.value)) == (2.0, 3.0, 0.0)


def test_objects_without_tensors_are_shared() -> None:
    config = SimpleNamespace(width=3, table={"a": [1]})
    contents = Contents({"x": X, "config": config})
    assert contents.rebuilt(contents.leaves)["config"] is config
    assert contents.closed == []


def test_very_long_chains_end() -> None:
    first = last = Ring(torch.zeros(1))
    for _ in range(5000):
        last.other = Ring(torch.zeros(1))
        last = last.other
    contents = Contents(first)
    assert contents.closed
    assert len(reachable(first)) == 5001
    assert len(tensors_in(first)) < 5001


def test_a_function_does_not_lead_to_its_modules_names() -> None:
    assert reachable(lambda: X) == []
    assert [tensor is X for tensor in reachable((lambda held: lambda: held)(X))] == [True]
