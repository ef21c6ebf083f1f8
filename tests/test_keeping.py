"""Hooks and forwards that keep what they see: copies hold it, and recordings leave nothing of theirs behind."""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.tracing.copying import copied

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """Leaves its activation on itself, in some container."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.o, self.wrap, self.kept = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1), wrap, None

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.a(x))
        self.kept = self.wrap(h)
        return self.o(h)


@dataclass
class Store:
    """An object of the caller's that keeps activations."""

    parts: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    last: Any = None

    def keep(self, *call: Any) -> None:
        self.parts["seen"].append(call[-1])
        self.last = call[-1]


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda h: h,
    "list": lambda h: [h],
    "tuple": lambda h: (h, h),
    "dict": lambda h: {"h": {"deep": h}},
    "object": lambda h: Store(last=h),
    "namespace": lambda h: SimpleNamespace(h=h),
}


@pytest.mark.parametrize("options", [{}, {"steps": 2}, {"inplace": True}, {"as_graph": True}], ids=str)
@pytest.mark.parametrize("wrap", WRAPS)
def test_models_that_hold_a_graph_are_cut(wrap: str, options: dict[str, Any]) -> None:
    model = Keeps(WRAPS[wrap])
    model(X).sum().backward()
    model.eval()
    held = model.kept
    result = surgeon.prune(model, X, ratio=0.5, criterion="magnitude", **options)
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert options.get("inplace") or model.kept is held


def test_a_copy_holds_the_same_numbers_without_their_history() -> None:
    model = Keeps(lambda h: [h, {"again": h}])
    model(X)
    kept: Any = copied(model, {}).kept
    assert torch.equal(kept[0], model.kept[0])  # type: ignore[index]  # typed as None
    assert kept[0] is kept[1]["again"]
    assert kept[0].grad_fn is None


class Making(dict[str, Any]):
    """Makes a new thing whenever it is asked, as registries of classes do."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def __iter__(self) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


ACTIVATIONS = Making(relu=nn.ReLU)


class Hooked(nn.Module):
    """Two layers, for hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.o(torch.relu(self.a(x)))


SEEN: list[Any] = []
LAST: Any = None


def into_a_global_list(*call: Any) -> None:
    SEEN.append(call[-1])


def into_a_global_name(*call: Any) -> None:
    global LAST
    LAST = call[-1]


def closure() -> tuple[Callable[..., None], Callable[[], Any]]:
    seen: list[Any] = []
    return lambda *call: seen.append(call[-1]), lambda: list(seen)


def nested() -> tuple[Callable[..., None], Callable[[], Any]]:
    seen: tuple[dict[str, Any], deque[Any]] = {"a": {0}, "b": [[]]}, deque([1])

    def hook(*call: Any) -> None:
        seen[0]["b"][0].append(call[-1])
        seen[0]["a"].add(call[-1])
        seen[1].append(call[-1])

    return hook, lambda: ({*seen[0]["a"]}, [*seen[0]["b"][0]], [*seen[1]])


def rebound() -> tuple[Callable[..., None], Callable[[], Any]]:
    last: Any = None

    def hook(*call: Any) -> None:
        nonlocal last
        last = call[-1]

    return hook, lambda: last


def of_an_object() -> tuple[Callable[..., None], Callable[[], Any]]:
    store = Store()
    return store.keep, lambda: (dict(store.parts), store.last)


def partial() -> tuple[Callable[..., None], Callable[[], Any]]:
    seen: list[Any] = []
    return functools.partial(lambda into, *call: into.append(call[-1]), seen), lambda: list(seen)


HOOKS: dict[str, Callable[[], tuple[Callable[..., None], Callable[[], Any]]]] = {
    "closure": closure,
    "nested": nested,
    "rebound": rebound,
    "object": of_an_object,
    "partial": partial,
    "global list": lambda: (into_a_global_list, lambda: list(SEEN)),
    "global name": lambda: (into_a_global_name, lambda: LAST),
}


@pytest.mark.parametrize("before", [False, True], ids=["nothing yet", "one call before"])
@pytest.mark.parametrize("kind", HOOKS)
def test_what_hooks_write_to_is_as_before_each_time(kind: str, before: bool) -> None:
    hook, state = HOOKS[kind]()
    model = Hooked().eval()
    model.a.register_forward_hook(hook)
    if before:
        model(X)
    expected = repr(state())
    for _ in range(3):
        result = surgeon.prune(model, X, ratio=0.5, criterion="magnitude")
        assert result.report.check is not None
        assert result.report.check.status == "passed"
        assert repr(state()) == expected


class Collects(Hooked):
    """Writes to an object, and to a list of the module's, in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()

    def forward(self, x: Tensor) -> Any:
        self.note(x)
        return super().forward(x) * (1.0 if float(x.sum()) > -1e9 else 2.0)  # it asks: it is recorded as it is

    def note(self, x: Tensor) -> None:
        self.store.keep(x)
        SEEN.append(x)


def test_objects_and_lists_that_a_forward_writes_to_are_as_before() -> None:
    model, seen = Collects().eval(), list(SEEN)
    assert not surgeon.trace(model, X).by_shapes
    assert (model.store.last, dict(model.store.parts)) == (None, {})
    assert list(map(id, SEEN)) == list(map(id, seen))


class Chooses(Hooked):
    """Refers to a container that does more than hold things."""

    def forward(self, x: Tensor) -> Any:
        return self.o(ACTIVATIONS["relu"](self.a(x)))


def test_containers_of_a_class_of_their_own_are_not_asked() -> None:
    surgeon.trace(Chooses().eval(), X)
    assert list(dict.values(ACTIVATIONS)) == [nn.ReLU]


@functools.cache
def triangle(size: int) -> Tensor:
    return torch.ones(size, size).tril()


@functools.lru_cache(maxsize=8)
def slopes(size: int, device: torch.device) -> tuple[Tensor, int]:
    return torch.arange(1.0, size + 1, device=device) / size, size


@functools.cache
def settings(name: str) -> dict[str, int]:
    return {name: 4}


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """As libraries write it: the function that remembers is in a closure."""
    cached = functools.lru_cache(maxsize=4)(function)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return cached(*args)

    run.cached = cached  # type: ignore[attr-defined]
    return run


@remembered
def offsets(size: int, device: torch.device) -> Tensor:
    return torch.linspace(0, 1, size, device=device)


def weights(x: Tensor) -> Tensor:
    size = x.shape[-1]
    share: Tensor = slopes(size, x.device)[0] + offsets(size, x.device)
    return share


class Attention(nn.Module):
    """Its masks are made once for each length."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = settings("heads")["heads"], 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        scores = (q @ k.mT).masked_fill(triangle(x.shape[1]) == 0, -9.0) - self.distances(x.shape[1], x.device)
        scores = scores.softmax(-1)
        y: Tensor = self.out(((scores * weights(scores)) @ v).transpose(1, 2).flatten(2))
        return y

    @staticmethod
    @functools.lru_cache(maxsize=2)
    def distances(size: int, device: torch.device) -> Tensor:
        places = torch.arange(size, device=device)
        return (places[:, None] - places).abs()


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(6, 16), nn.ModuleList([Attention(), Attention()])
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x)


def test_functions_that_remember_tensors_hinder_nothing() -> None:
    """A trial that finds a mask remembered makes other calls than the recording did, and was taken for another way."""
    caches = [triangle, slopes, offsets.cached, Attention.distances]  # type: ignore[attr-defined]
    model, x = Remembering().eval(), torch.randn(2, 7, 6)
    kept = settings("heads")
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="magnitude")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.report.params_after < 0.35 * result.report.params_before
    assert [cache.cache_info().currsize for cache in caches] == [0, 0, 0, 0]
    assert settings("heads") is kept, "what is no tensor stays: it may be there but once"
    assert result.model(x).shape == model(x).shape == (2, 7, 5)
