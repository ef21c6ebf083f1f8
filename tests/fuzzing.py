"""What a changed file may come to: a model that is what it says, or an error of surgeon's. Nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import SurgeonError
from surgeon.planning import Plan
from tests import factories

__all__ = ["Seed", "judge", "seeds"]

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Seed:
    """A valid file, how it is opened, and how often it is changed."""

    name: str
    data: bytes
    factory: Callable[[], nn.Module] | None
    share: int
    plan: bool = False


def seeds() -> tuple[Seed, ...]:
    """Small files of every kind, made anew; the same every time."""
    torch.manual_seed(0)
    small, tied, flat = factories.small().eval(), factories.tied().eval(), factories.small().eval()
    found = surgeon.prune(small, X, filters=6, criterion="magnitude", verify=False)
    twice = surgeon.prune(tied, X, filters=4, criterion="magnitude", verify=False)
    graph = surgeon.prune(flat, X, filters=6, criterion="magnitude", verify=False, as_graph=True)
    coarse = surgeon.prune(small, X, filters=6, criterion="magnitude", verify=False).model
    with torch.no_grad():
        for parameter in coarse.parameters():
            parameter.copy_((4 * parameter).round() / 4)
    cifar = surgeon.models.build("resnet20-x0.25").eval()
    image = torch.zeros(1, 3, 32, 32)
    named = surgeon.prune(cifar, image, filters=9, criterion="magnitude", verify=False)
    origin = {"surgeon": "resnet20-x0.25", "kwargs": {"num_classes": 10}}
    return (
        Seed("small", _file(found.model, found.plan), factories.small, 40),
        Seed("tied", _file(twice.model, twice.plan), factories.tied, 10),
        Seed("graph", _file(graph.model, graph.plan), None, 25),
        Seed("coded", _file(coarse, found.plan, compact=True), factories.small, 15),
        Seed("named", _file(named.model, named.plan, origin), None, 1),
        Seed("plan", found.plan.to_json().encode(), factories.small, 20, plan=True),
    )


def _file(model: nn.Module, plan: Plan, origin: Mapping[str, Any] | None = None, *, compact: bool = False) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        surgeon.save(path, model, plan, origin, compact=compact)
        return path.read_bytes()


def judge(seed: Seed, data: bytes, path: Path) -> str:
    """What opening the changed file comes to: ``"loaded"``, or the class of surgeon's error.

    Raises
    ------
    BaseException
        Whatever else comes, and AssertionError for a model that isn't what it says.
    """
    try:
        if seed.plan:
            _check_cut(seed, Plan.from_json(data))
        else:
            path.write_bytes(data)
            _check_loaded(seed, surgeon.load(path, seed.factory))
    except SurgeonError as problem:
        str(problem).encode()  # it can be shown
        return type(problem).__name__
    return "loaded"


def _check_cut(seed: Seed, plan: Plan) -> None:
    assert seed.factory is not None
    dense = seed.factory().eval()
    small = surgeon.rewrite(dense, plan, X)
    _check_small(small)
    first, second = (_left(plan, name, size) for name, size in (("first", 8), ("second", 12)))
    own, now = dense.state_dict(), small.state_dict()
    assert torch.equal(now["first.weight"], own["first.weight"][first])
    assert torch.equal(now["norm.running_var"], own["norm.running_var"][first])
    assert torch.equal(now["second.weight"], own["second.weight"][second][:, first])
    assert torch.equal(now["head.weight"], own["head.weight"][:, second])


def _left(plan: Plan, name: str, size: int) -> list[int]:
    return [channel for channel in range(size) if channel not in plan.removed.get(name, ())]


def _check_loaded(seed: Seed, model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        assert tensor.device.type == "cpu"
    if isinstance(model, factories.Small):
        _check_small(model)
    if seed.name == "named":
        model.eval()(torch.zeros(1, 3, 32, 32))


def _check_small(model: nn.Module) -> None:
    """It computes what its tensors say, read off them without any of surgeon's code."""
    state: dict[str, Tensor] = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    model.eval().float()
    with torch.no_grad():
        x = torch.conv2d(X, state["first.weight"], state["first.bias"], padding=1)
        x = torch.batch_norm(
            x, state["norm.weight"], state["norm.bias"], state["norm.running_mean"], state["norm.running_var"],
            False, 0.1, 1e-5, False,
        )  # fmt: skip
        x = torch.relu(torch.conv2d(torch.relu(x), state["second.weight"], state["second.bias"], padding=1))
        expected = torch.nn.functional.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
        assert torch.equal(model(X).nan_to_num(), expected.nan_to_num())
