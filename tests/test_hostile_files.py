"""Files as an attacker would make them."""

from __future__ import annotations

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import surgeon
from surgeon import checkpoint
from surgeon.checkpoint import values
from surgeon.errors import CheckpointError, PlanError
from surgeon.jsontext import dump_json, read_json
from surgeon.planning import Plan
from surgeon.tracing import Inputs
from tests import factories
from tests.fuzzing import Seed, X, judge, seeds
from tests.mutations import join, mutate, split

SEEDS = seeds()
BY_NAME = {seed.name: seed for seed in SEEDS}


# ---------------------------------------------------------------- changed at random


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_the_seeds_are_valid(seed: Seed, tmp_path: Path) -> None:
    assert judge(seed, seed.data, tmp_path / "s") == "loaded"


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), st.integers(0, 10**9))
def test_a_changed_file_is_an_error_of_surgeons_or_a_right_model(
    tmp_path_factory: pytest.TempPathFactory, seed: Seed, number: int
) -> None:
    judge(seed, mutate(seed.data, random.Random(number), plan=seed.plan), tmp_path_factory.getbasetemp() / "case")


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([s for s in SEEDS if not s.plan]), st.binary(max_size=400))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, seed: Seed, data: bytes) -> None:
    assert judge(seed, data, tmp_path_factory.getbasetemp() / "case") == "CheckpointError"


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "a": 2}', "'a' twice"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("[1e999]", "beyond all numbers"),
        (f"[{'9' * 65}]", "too many digits"),
        ("[" * 66 + "]" * 66, "nested deeper than 64"),
        ("[" * 100_000, "nested too deeply|more than its file"),
        ('{"a":' * 100_000, "nested too deeply|more than its file"),
        ("[[],[]," * 10**5 + "1]", "more than its file has room for"),
        (r'"\u001b[2J"', r"control character '\\x1b'"),
        (r'{"\ud800": 1}', "control character"),
        ("", "Expecting value"),
    ],
)
def test_texts_that_are_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_json(text)


def test_texts_that_are_read() -> None:
    deep = "[" * 64 + "1" + "]" * 64
    assert read_json(deep) == json.loads(deep)
    assert read_json('{"a": [1, -2.5, "x\\ty\\n", null, true]}') == {"a": [1, -2.5, "x\ty\n", None, True]}
    assert len(read_json("[" + "0," * 10**6 + "0]", 10**8)) == 10**6 + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(JSON)
def test_what_is_written_can_be_read(value: Any) -> None:
    assert read_json(dump_json(value)) == json.loads(dump_json(value))


# ---------------------------------------------------------------- what is not a file


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_not_waited_for(linked: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(OSError, match="no regular file"):
        surgeon.load(tmp_path / ("link" if linked else "pipe"), factories.small)


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="no regular file"):
        surgeon.load("/dev/zero", factories.small)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        surgeon.load(tmp_path, factories.small)


# ---------------------------------------------------------------- nothing is allocated before it is checked


def forged(name: str, path: Path, change: Callable[[dict[str, Any]], object]) -> Seed:
    """A seed's file with another header."""
    outer, rest = split(BY_NAME[name].data)
    fields = json.loads(outer["__metadata__"]["surgeon"])
    change(fields)
    outer["__metadata__"]["surgeon"] = json.dumps(fields)
    path.write_bytes(join(outer, rest))
    return BY_NAME[name]


@pytest.fixture
def nothing_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of a large model can't be made: neither by filling it nor by running it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was allocated")

    for function in ("uniform_", "normal_", "kaiming_normal_", "kaiming_uniform_", "zeros_", "ones_"):
        real = getattr(nn.init, function)
        monkeypatch.setattr(nn.init, function, _only_meta(real, refuse))
    monkeypatch.setattr(torch, "randn", refuse)


def _only_meta(real: Any, refuse: Any) -> Any:
    def run(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return real(tensor, *args, **kwargs) if tensor.device.type == "meta" or tensor.numel() < 10**5 else refuse()

    return run


@pytest.mark.usefixtures("nothing_large")
@pytest.mark.parametrize("origin", [
    {"torchvision": "regnet_y_128gf", "kwargs": {}},
    {"torchvision": "vit_h_14", "kwargs": {}},
    {"surgeon": "resnet20-x16", "kwargs": {}},
    {"surgeon": "resnet20-x0.25", "kwargs": {"num_classes": 1_000_000}},
])  # fmt: skip
def test_a_name_of_a_large_model_allocates_nothing(origin: dict[str, Any], tmp_path: Path) -> None:
    forged("named", tmp_path / "s", lambda fields: fields.update(origin=origin))
    with pytest.raises(CheckpointError):
        surgeon.load(tmp_path / "s")


@pytest.mark.usefixtures("nothing_large")
def test_large_inputs_of_a_plan_allocate_nothing(tmp_path: Path) -> None:
    def enlarge(fields: dict[str, Any]) -> None:
        fields["plan"]["inputs"]["args"]["list"][0]["tensor"] = [64, 3, 4096, 4096]

    forged("small", tmp_path / "s", enlarge)
    back = surgeon.load(tmp_path / "s", factories.small)
    assert judge(BY_NAME["small"], BY_NAME["small"].data, tmp_path / "t") == "loaded"
    assert all(parameter.device.type == "cpu" for parameter in back.parameters())


def test_inputs_have_room_for_so_many_numbers_together() -> None:
    one = {"tensor": [2**26], "dtype": "float32"}
    with pytest.raises(PlanError, match="out of bounds"):
        Inputs.from_spec({"args": {"list": [{"tensor": [2**32, 2**32], "dtype": "float32"}]}, "kwargs": {"dict": {}}})
    with pytest.raises(PlanError, match="out of bounds"):
        Inputs.from_spec({"args": {"list": [{"tensor": [2**28], "dtype": "int8"}]}, "kwargs": {"dict": {}}})
    with pytest.raises(PlanError, match="plain numbers"):
        Inputs.from_spec({"args": {"list": [{"tensor": [1], "dtype": "qint8"}]}, "kwargs": {"dict": {}}})
    several = {"args": {"list": [one] * 3}, "kwargs": {"dict": {}}}
    assert [t.shape[0] for t in Inputs.from_spec(several, device="meta").leaves()] == [2**26] * 3


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_bytes(BY_NAME["small"].data)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("", (), {"available": 1000}))
    with pytest.raises(CheckpointError, match="GB are free here"):
        surgeon.load(tmp_path / "s", factories.small)


def test_very_many_tensors_are_refused(tmp_path: Path) -> None:
    save_file({f"t{number}": torch.zeros(0) for number in range(70_000)}, tmp_path / "s", metadata={"surgeon": "{}"})
    with pytest.raises(CheckpointError, match="70000 tensors in"):
        surgeon.load(tmp_path / "s", factories.small)


def test_names_with_control_characters_are_refused(tmp_path: Path) -> None:
    save_file({"\x1b[2J": torch.zeros(1)}, tmp_path / "s", metadata={"surgeon": "{}"})
    with pytest.raises(CheckpointError, match="printable") as caught:
        surgeon.load(tmp_path / "s", factories.small)
    assert "\x1b" not in str(caught.value)


def test_a_tensor_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_bytes(BY_NAME["small"].data)
    monkeypatch.setattr(checkpoint, "_tensor", lambda *_: torch.zeros(1))
    with pytest.raises(CheckpointError, match="changed meanwhile"):
        surgeon.load(tmp_path / "s", factories.small)


def test_the_model_does_not_live_in_the_file(tmp_path: Path) -> None:
    for name in ("small", "graph"):
        (tmp_path / name).write_bytes(BY_NAME[name].data)
        model = surgeon.load(tmp_path / name, BY_NAME[name].factory)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        (tmp_path / name).write_bytes(b"\0" * len(BY_NAME[name].data))
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


# ---------------------------------------------------------------- nothing leads to foreign code


def test_loading_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision._internally_replaced_utils.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for name in ("fcn_resnet50", "ssdlite320_mobilenet_v3_large"):  # their backbones are trained ones by default
        forged("named", tmp_path / "s", lambda f, name=name: f.update(origin={"torchvision": name, "kwargs": {}}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match="but the dense model is"):
            surgeon.load(tmp_path / "s")
        checkpoint.build_origin({"torchvision": name, "kwargs": {}}, numbers=False)


def test_opening_a_file_imports_nothing_that_it_names(tmp_path: Path) -> None:
    """A module whose import leaves a trace lies where Python would find it; every field names it."""
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('trace').write_text('ran')\n")
    for number, name in enumerate(("small", "graph", "named")):
        for field in ("class", "origin", "graph", "model"):
            forged(name, tmp_path / f"{number}-{field}", lambda f, field=field: _name_it(f, field))  # type: ignore[misc]
    code = (
        "import pathlib, surgeon\n"
        "for path in sorted(pathlib.Path('.').glob('?-*')):\n"
        "    try: surgeon.load(path)\n"
        "    except surgeon.errors.SurgeonError as e: print(path, type(e).__name__)\n"
        "    else: print(path, 'loaded')\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert len(told.splitlines()) == 12
    assert not (tmp_path / "trace").exists()


def _name_it(fields: dict[str, Any], field: str) -> None:
    if field == "class":
        fields["class"] = "evil"
    elif field == "model":
        fields["plan"]["model"] = "evil:factory"
    elif field == "origin":
        fields["origin"] = {"factory": "evil:factory", "torchvision": "evil"}
    else:
        fields["graph"] = {"nodes": [["call_function", "x", "evil.factory", [], {}]], "modules": {}}


#: (what of the graph is changed, what the error says): each would reach beyond torch's operators.
ESCAPES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a function of os": (lambda g: _call(g, "os.system", ["id"]), "none that a file may name"),
    "eval": (lambda g: _call(g, "builtins.eval", ["1"]), "none that a file may name"),
    "torch.load": (lambda g: _call(g, "torch.load", ["x"]), "none that a file may name"),
    "packed bytes": (lambda g: _call(g, "torch.fbgemm_linear_fp16_weight", []), "none that a file may name"),
    "any attribute": (lambda g: _call(g, "builtins.getattr", [{"node": "x"}, "__class__"]), "getattr"),
    "getattr with a default": (lambda g: _call(g, "builtins.getattr", [{"node": "x"}, "data", 1]), "getattr"),
    "getattr passed on": (lambda g: _call(g, "torch.relu", [{"function": "builtins.getattr"}]), "no argument"),
    "a node called self": (lambda g: g["nodes"].insert(1, ["call_function", "self", "torch.relu", [], {}]), "self"),
    "code for a name": (lambda g: g["nodes"].insert(1, ["call_function", "x=1;y", "torch.relu", [], {}]), "no name"),
    "a method that is none of a tensor's": (
        lambda g: g["nodes"].insert(1, ["call_method", "y", "__reduce__", [{"node": "x"}], {}]), "none of a tensor's"
    ),
    "memory of the process": (
        lambda g: g["nodes"].insert(1, ["call_method", "y", "resize_", [{"node": "x"}, 9], {}]), "none of a tensor's"
    ),
    "what a call becomes": (
        lambda g: _attribute(g, "_compiled_call_impl", {"function": "torch.relu"}), "can't be set"
    ),
    "a forward": (lambda g: _attribute(g, "forward", 1), "can't be set"),
    "hooks": (lambda g: _attribute(g, "_forward_hooks", {"dict": {}}), "can't be set"),
    "a class of elsewhere": (lambda g: g["modules"]["first"].update({"class": "os.system"}), "no layer of torch.nn"),
    "a module that holds itself": (lambda g: g["modules"].update({"first.again": {"same": "first"}}), "recursion|hold"),
    "a node after the output": (lambda g: g["nodes"].append(["call_function", "z", "torch.relu", [], {}]), "after the"),
}  # fmt: skip


def _call(graph: dict[str, Any], target: str, args: list[Any]) -> None:
    graph["nodes"].insert(1, ["call_function", "escaped", target, args, {}])


def _attribute(graph: dict[str, Any], name: str, value: Any) -> None:
    graph["modules"]["first"]["attributes"][name] = value


@pytest.mark.parametrize("name", ESCAPES)
def test_a_graph_stays_within_torch(name: str, tmp_path: Path) -> None:
    change, told = ESCAPES[name]
    forged("graph", tmp_path / "s", lambda fields: change(fields["graph"]))
    with pytest.raises(CheckpointError, match=f"(?i){told}"):
        surgeon.load(tmp_path / "s")


def test_modules_that_multiply_are_refused(tmp_path: Path) -> None:
    """Each level holds the next one twice: 2^40 paths from 80 entries."""

    def multiply(fields: dict[str, Any]) -> None:
        empty = {"parameters": {}, "buffers": {}, "training": False}
        modules, path = fields["graph"]["modules"], "bomb"
        modules[path] = empty
        for _ in range(40):
            modules[f"{path}.a"] = empty
            modules[f"{path}.b"] = {"same": f"{path}.a"}
            path += ".a"

    forged("graph", tmp_path / "s", multiply)
    with pytest.raises(CheckpointError, match="more places than are named"):
        surgeon.load(tmp_path / "s")


def test_a_class_name_is_no_code(tmp_path: Path) -> None:
    forged("graph", tmp_path / "s", lambda fields: fields.update({"class": "X:\n  pass\nimport os\nclass Y"}))
    with pytest.raises(CheckpointError, match="no name"):
        surgeon.load(tmp_path / "s")


def test_no_function_that_a_graph_may_name_touches_files_or_code() -> None:
    bad = ("load", "save", "open", "eval", "exec", "import", "compile", "system", "from_file", "hub", "pickle", "call")
    for name in (*values._functions(), *values.methods()):
        last = name.rpartition(".")[2]
        assert last not in bad, name
        assert not last.startswith(("load", "save", "exec", "import")), name


# ---------------------------------------------------------------- belongs to another model


def test_a_file_whose_ties_are_two_tensors_is_refused(tmp_path: Path) -> None:
    def untie(fields: dict[str, Any]) -> None:
        fields["aliases"] = {"again.weight": "first.weight"}

    forged("tied", tmp_path / "s", untie)
    with pytest.raises(CheckpointError, match=r"again.weight"):
        surgeon.load(tmp_path / "s", factories.tied)


def test_names_that_share_a_tensor_in_the_file_alone_do_not_share_it_in_the_model(tmp_path: Path) -> None:
    result = surgeon.prune(factories.small(), X, filters=2, criterion="magnitude", verify=False)
    norm = result.model.get_submodule("norm")
    with torch.no_grad():
        norm.get_parameter("weight").data = norm.get_parameter("bias").data
    surgeon.save(tmp_path / "s", result.model, result.plan)
    assert checkpoint.read_header(tmp_path / "s").aliases
    back = surgeon.load(tmp_path / "s", factories.small)
    assert back.get_parameter("norm.weight").data_ptr() != back.get_parameter("norm.bias").data_ptr()


def test_a_plan_of_a_wider_model_is_refused() -> None:
    class Wider(factories.Small):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.Conv2d(9, 12, 3)

    plan = surgeon.prune(factories.small(), X, ratio=0.5, scope="local", criterion="magnitude", verify=False).plan
    read = Plan.from_json(plan.to_json())
    with pytest.raises(PlanError, match=r"made for 8 channels in group 'first', this model has 9; .* of a Small"):
        surgeon.rewrite(Wider(), read, X)


def test_the_sizes_of_a_plan_are_numbers() -> None:
    with pytest.raises(PlanError, match="'sizes'"):
        Plan.from_json('{"surgeon_plan": 1, "removed": {}, "sizes": {"first": "8"}}')


def test_a_plan_that_is_no_text_is_refused() -> None:
    with pytest.raises(PlanError, match="no JSON"):
        Plan.from_json(b"\xff\xfe")


# ---------------------------------------------------------------- and what is right still comes back


class WithConstants(nn.Module):
    """Numbers outside the state dict, which a file doesn't hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.shift = torch.rand(1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.conv(x) * self.scale + self.shift)


class Decides(nn.Module):
    """The data steers the forward, which then needs numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.conv(x)
        return self.head(x if float(x.detach().sum()) > 0 else -x)


@pytest.mark.parametrize("kind", [WithConstants, Decides])
def test_models_that_need_numbers_come_back_too(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(3)
    dense = kind()
    result = surgeon.prune(dense, X, filters=3, criterion="magnitude", verify=False)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    torch.manual_seed(3)  # the constants are the program's, not the file's
    assert torch.equal(surgeon.load(tmp_path / "s", kind)(X), result.model(X))


def test_the_memory_layout_of_the_architecture_stays(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return factories.small().to(memory_format=torch.channels_last)

    result = surgeon.prune(make(), X, filters=4, criterion="magnitude", verify=False)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    back = surgeon.load(tmp_path / "s", make)
    assert back.get_parameter("second.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back(X), result.model(X))
