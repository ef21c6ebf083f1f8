"""Models as graphs: numbers in the forward are rewritten, and the file opens without the user's class."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import surgeon
from surgeon.errors import CheckpointError, ModelError
from surgeon.rewriting import fit
from surgeon.tracing import as_graph
from tests import graph_networks as networks
from tests.cli_run import surgeon_cli
from tests.networks import redraw
from tests.oracle import compare
from tests.zoo.base import draw

X = draw(2, 3, 8, 8)
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda row=row: networks.Written(*row) for name, row in networks.LINES.items()},  # type: ignore[misc]
    "norms and groups": networks.Normed,
    "flattened": networks.Flattened,
    "attention": networks.Tokens,
}


def healthy(model: nn.Module) -> nn.Module:
    return redraw(model.double(), 0).eval()


def build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return healthy(MODELS[name]())


def cut(model: nn.Module, ratio: float = 0.3, x: Tensor = X, **more: Any) -> surgeon.Result:
    return surgeon.prune(model, x, ratio=ratio, scope="local", criterion="random", as_graph=True, **more)


# ---------------------------------------------------------------- literals


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_follow_and_other_sizes_run(name: str, ratio: float) -> None:
    model = build(name)
    graph = as_graph(model, X)
    result = surgeon.prune(graph, X, ratio=ratio, scope="local", criterion="random")
    assert [pin.reason for pin in result.report.pinned] == ["output"]
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    source = fit(graph, result.plan, X).source
    sizes = [] if name == "flattened" else [(1, 3, 12, 16)]  # written for images of 8 x 8
    for shape in ((2, 3, 8, 8), (5, 3, 8, 8), *sizes):
        x = draw(*shape, seed=3)
        assert compare(graph, result.model, source, x).removed > 0


def test_without_a_graph_the_line_stays_and_is_the_reason() -> None:
    result = surgeon.prune(build("flattened"), X, ratio=0.3, scope="local", criterion="random")
    kept = {pin.layer: pin.reason for pin in result.report.pinned}
    assert "constant in" in kept["second"]
    assert "graph_networks.py" in kept["second"]


def test_as_graph_leaves_the_model_as_it_was_and_keeps_its_names() -> None:
    model = build("flattened").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = cut(model)
    assert type(model) is networks.Flattened
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(result.model, fx.GraphModule)
    assert type(result.model).__name__ == "Flattened"
    assert list(result.model.state_dict()) == list(before)
    assert result.model.training
    assert all(module.training for module in result.model.modules())


def test_a_graph_drops_out_in_train_mode_only() -> None:
    small = cut(build("flattened")).model
    assert torch.equal(small(X), small(X))
    small.train()
    assert not torch.equal(small(X), small(X))


def test_a_graph_trains() -> None:
    small = cut(build("attention")).model.train()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(small(X), torch.tensor([1, 3]))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_nothing_but_the_class_changes_where_no_number_is_in_the_way() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model, x = resnet18(num_classes=7).eval(), torch.randn(1, 3, 64, 64)
    plain = surgeon.prune(model, x, ratio=0.3, criterion="magnitude", verify=False)
    graph = surgeon.prune(model, x, ratio=0.3, criterion="magnitude", verify=False, as_graph=True)
    assert graph.plan.removed == plain.plan.removed
    small, other = plain.model.state_dict(), graph.model.state_dict()
    assert list(small) == list(other)
    assert all(torch.equal(tensor, other[name]) for name, tensor in small.items())
    assert torch.equal(plain.model(x), graph.model(x))


def test_tied_weights_stay_tied() -> None:
    from tests import factories

    x = torch.randn(2, 3, 16, 16)
    small = surgeon.prune(factories.tied().eval(), x, filters=4, criterion="magnitude", as_graph=True).model
    assert small.get_parameter("again.weight") is small.get_parameter("once.weight")


def test_layers_that_are_given_as_modules_are_ignored() -> None:
    model = build("attention")
    result = cut(model, ignored_layers=[model.get_submodule("blocks.0")])
    rows = {row.name: row for row in result.report.layers}
    assert rows["blocks.0.qkv"].after == 96
    assert rows["blocks.1.qkv"].after < 96


# ---------------------------------------------------------------- refusals


def test_a_way_that_the_data_decides_is_refused_with_its_line() -> None:
    with pytest.raises(ModelError, match=r"graph_networks\.py:\d+.*control flow.*leave as_graph out"):
        cut(networks.ByTheData().eval().double())


class Hyper(nn.Module):
    """One layer makes the weights of a convolution, whose sizes stand in the forward as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(6))
        self.w, self.h = nn.Linear(6, 12 * 8 * 9), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.h(torch.conv2d(self.a(x), self.w(self.z).view(12, 8, 3, 3)).mean((2, 3)))


def test_where_all_that_could_be_cut_differs_there_is_nothing_to_cut() -> None:
    with pytest.raises(surgeon.NothingToCutError) as caught:
        cut(Hyper().eval().double())
    told = str(caught.value)
    assert told.startswith("without the channels that can't be cut exactly: nothing in this model can be cut:")
    assert all(f"\n  {layer}: mixes channels in convolution" in told for layer in ("a", "w"))
    assert isinstance(caught.value, surgeon.VerificationError)  # for who waits for that


def test_a_graph_is_a_new_module() -> None:
    with pytest.raises(ModelError, match="not both"):
        cut(build("flattened"), inplace=True)


# ---------------------------------------------------------------- files


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    if name == "swin":
        swin: nn.Module = models.SwinTransformer([2, 2], 24, [1, 1], [2, 4], [4, 4], num_classes=7)
        return swin
    model: nn.Module = models.get_model(name, num_classes=7)
    return model


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "swin"])
def test_torchvision_models_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = torchvision_model(name).eval(), torch.randn(1, 3, 32, 32)
    result = surgeon.prune(model, x, ratio=0.25, criterion="magnitude", as_graph=True, verify=name == "swin")
    assert result.report.params_after < result.report.params_before
    surgeon.save(tmp_path / "s", result.model, result.plan)
    back = surgeon.load(tmp_path / "s")
    assert list(back.state_dict()) == list(result.model.state_dict())
    torch.testing.assert_close(back(x), result.model(x))
    back.train()
    torch.autograd.backward(back(x.repeat(2, 1, 1, 1)).sum())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    result = cut(build("attention"))
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    save_file({"x": X, "y": result.model(X).detach()}, tmp_path / "xy")
    return tmp_path / "s.safetensors"


def test_a_new_process_needs_no_class(file: Path) -> None:
    code = (
        "import surgeon, sys, torch, safetensors.torch as st; t = st.load_file('xy'); "
        "assert torch.equal(surgeon.load('s.safetensors')(t['x']), t['y']); assert 'tests' not in sys.modules"
    )
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], cwd=file.parent, env=env, check=True)


class Unusual(nn.Module):
    """A layer of torch with a hook that computes its weight: no plain attributes tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.stem(x).mean((2, 3)))


def test_what_cannot_be_described_is_refused_by_name(tmp_path: Path) -> None:
    result = cut(healthy(Unusual()))
    with pytest.raises(CheckpointError, match=r"layer stem.*Parametrized.*without as_graph"):
        surgeon.save(tmp_path / "s", result.model, result.plan)
    assert not (tmp_path / "s").exists()


def opened(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as stored:
        header = json.loads(stored.metadata()["surgeon"])
        return header, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # it is no dict


def refuses(file: Path, header: dict[str, Any], tensors: dict[str, Tensor], told: str = "") -> None:
    save_file(tensors, file, metadata={"surgeon": json.dumps(header)})
    with pytest.raises(CheckpointError, match=told):
        surgeon.load(file)


def _first(header: dict[str, Any], op: str) -> list[Any]:
    node: list[Any] = next(node for node in header["graph"]["nodes"] if node[0] == op)
    return node


def _layer(header: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = header["graph"]["modules"]["fc"]
    return layer


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "graph of text": (lambda h: h.update(graph="import os"), "graph"),
    "no nodes": (lambda h: h["graph"].pop("nodes"), "nodes"),
    "nodes missing": (lambda h: h["graph"].update(nodes=[]), "output"),
    "unknown function": (lambda h: _first(h, "call_function").__setitem__(2, "os.system"), "os.system"),
    "a function that reads files": (lambda h: _first(h, "call_function").__setitem__(2, "torch.load"), "torch.load"),
    "builtin": (lambda h: _first(h, "call_function").__setitem__(2, "builtins.eval"), "eval"),
    "private attribute": (lambda h: _first(h, "call_function").__setitem__(3, [{"node": "x"}, "__class__"]), "getattr"),
    "unknown method": (lambda h: _first(h, "call_method").__setitem__(2, "__reduce__"), "__reduce__"),
    "code in a method": (lambda h: _first(h, "call_method").__setitem__(2, "relu(); import os #"), "import os"),
    "code in a name": (lambda h: _first(h, "call_method").__setitem__(1, "a=1\nimport os"), "import os"),
    "code in an argument": (lambda h: _first(h, "placeholder").__setitem__(2, "x=print()"), "print"),
    "code in a keyword": (lambda h: _first(h, "call_method").__setitem__(4, {"a=print(),b": 1}), "print"),
    "code in a path": (lambda h: _first(h, "call_module").__setitem__(2, 'fc"); import os'), "import os"),
    "missing layer": (lambda h: _first(h, "call_module").__setitem__(2, "gone"), "gone"),
    "itself": (lambda h: _first(h, "call_method").__setitem__(3, [{"node": _first(h, "call_method")[1]}]), "later"),
    "missing node": (lambda h: _first(h, "call_method").__setitem__(3, [{"node": "gone"}]), "gone"),
    "huge number": (lambda h: _first(h, "call_method").__setitem__(3, [10**40]), "argument"),
    "unknown layer": (lambda h: _layer(h).update({"class": "Evil"}), "Evil"),
    "no layer": (lambda h: _layer(h).update({"class": "functional"}), "functional"),
    "a method as attribute": (lambda h: _layer(h)["attributes"].update(forward=1), "forward"),
    "hooks": (lambda h: _layer(h)["attributes"].update(_forward_hooks={"dict": {}}), "_forward_hooks"),
    "class": (lambda h: _layer(h)["attributes"].update(__class__=1), "__class__"),
    "missing tensor": (lambda h: _layer(h)["parameters"].update(more=True), "fc.more"),
    "forgotten tensor": (lambda h: _layer(h)["parameters"].pop("bias"), "fc.bias"),
    "deep": (lambda h: _first(h, "call_method").__setitem__(3, [_deep()]), "s.safetensors"),
}


def _deep() -> Any:
    value: Any = 1
    for _ in range(400):
        value = {"list": [value]}
    return value


@pytest.mark.parametrize("name", FORGERIES)
def test_forged(name: str, file: Path) -> None:
    change, told = FORGERIES[name]
    header, tensors = opened(file)
    change(header)
    refuses(file, header, tensors, told)


def test_random_damage_is_a_checkpoint_error_or_harmless(file: Path) -> None:
    header, tensors = opened(file)
    chance = random.Random(0)
    junk = [
        None,
        True,
        -1,
        10**30,
        1e300,
        "",
        "x.y",
        "__import__('os')",
        [],
        {},
        {"node": "x"},
        [[1]],
        {"a": 1, "b": 2},
    ]
    for _ in range(200):
        damaged = copy.deepcopy(header)
        place, key = chance.choice(list(_places(damaged["graph"])))
        place[key] = chance.choice(junk)
        save_file(tensors, file, metadata={"surgeon": json.dumps(damaged)})
        try:
            loaded = surgeon.load(file)
        except CheckpointError:
            continue
        assert isinstance(loaded, fx.GraphModule)


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# ---------------------------------------------------------------- the command line


def test_the_command_line_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--image-size", 8, "--samples", 4, "--ratio", 0.3, "--criterion", "random", "--output", "s.safetensors")
    ran = surgeon_cli("prune", "--model", "tests.graph_networks:flattened", "--as-graph", *words)
    assert ran.code == 0, ran.err
    assert "surgeon.load('s.safetensors')" in ran.err
    model = surgeon.load("s.safetensors")
    assert isinstance(model, fx.GraphModule)
    assert model(torch.zeros(3, 3, 8, 8)).shape == (3, 5)
    assert surgeon_cli("inspect", "s.safetensors").code == 0
