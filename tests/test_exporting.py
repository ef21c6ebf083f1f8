"""What is exported computes what the model does, needs nothing of surgeon, and is refused where it doesn't."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

import surgeon
from surgeon import exporting
from surgeon.errors import ExportError, InexactExportError, InputError
from surgeon.exporting.layers import constructor
from surgeon.exporting.source import write_module
from surgeon.tracing import as_graph
from tests import factories
from tests.cli_run import surgeon_cli

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
SUFFIX = {"onnx": ".onnx", "pt2": ".pt2", "python": ".py"}
FORMATS = [
    pytest.param("onnx", marks=pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="no onnx extra")),
    "pt2",
    "python",
]


def small() -> surgeon.Result:
    torch.manual_seed(0)
    return surgeon.prune(factories.small().eval(), X, filters=6, criterion="magnitude", verify=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    result = small()
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan, origin={"factory": "tests.factories:small"})
    return tmp_path / "s.safetensors"


# ---------------------------------------------------------------- each format


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_exported_for_any_batch_size(kind: str, fold_bn: bool, file: Path, tmp_path: Path) -> None:
    target = tmp_path / f"out{SUFFIX[kind]}"
    done = surgeon.export(file, target, factory=factories.small, fold_bn=fold_bn)
    assert done.format == kind
    assert done.files[0] == str(target)
    assert done.error < 1e-4
    assert done.batch_sizes == (2, 3)
    assert done.any_batch
    given = X[:1]
    expected = surgeon.load(file, factories.small).eval()(given)
    (found,) = torch.utils._pytree.tree_leaves(exporting.FORMATS[kind].run(target, [surgeon.Inputs((given,))]))
    assert torch.allclose(found, expected, atol=1e-5)


class OneSizeOnly(nn.Module):
    """Writes its batch size into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).reshape(2, 4 * 14 * 14)
        return y


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_of_one_batch_size_is_exported_for_that_one(kind: str, tmp_path: Path) -> None:
    done = surgeon.export(OneSizeOnly(), tmp_path / f"one{SUFFIX[kind]}", example_inputs=X)
    assert done.batch_sizes == (2,)
    assert not done.any_batch


class ManyInAndOut(nn.Module):
    """Keyword arguments, a nested result, and one output that is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        y = self.conv(x) * scale.view(-1, 1, 1, 1)
        return {"features": (y, y.mean(1)), "best": y.flatten(1).argmax(1)}


@pytest.mark.parametrize("kind", FORMATS)
def test_several_inputs_and_outputs(kind: str, tmp_path: Path) -> None:
    inputs = surgeon.Inputs((X,), {"scale": torch.tensor([1.0, 2.0])})
    done = surgeon.export(ManyInAndOut(), tmp_path / f"many{SUFFIX[kind]}", example_inputs=inputs)
    assert done.any_batch


def test_nothing_in_a_pt2_archive_is_pickled(tmp_path: Path) -> None:
    surgeon.export(small().model, tmp_path / "m.pt2", example_inputs=X)
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        for name in archive.namelist():
            assert not archive.read(name).startswith((b"\x80", b"PK")), name


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = small().model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    surgeon.export(model, tmp_path / "m.pt2", example_inputs=X, fold_bn=True, channels_last=True)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.get_parameter("first.weight").is_contiguous()


# ---------------------------------------------------------------- source


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_source_is_one_that_a_person_would_write(tmp_path: Path) -> None:
    model = small().model
    surgeon.export(model, tmp_path / "net.py", example_inputs=X, channels_last=True)
    source = (tmp_path / "net.py").read_text()
    width = model.get_submodule("first").out_channels
    assert f"self.first = nn.Conv2d(3, {width}, 3, padding=1)" in source
    assert "def forward(self, x: Tensor) -> Tensor:" in source
    assert "        x = self.norm(x)\n        x = torch.relu(x)\n" in source
    assert "surgeon" not in source
    assert set(load_file(tmp_path / "net_weights.safetensors")) == set(
        imported(tmp_path / "net.py").load().state_dict()
    )


class HardToWrite(nn.Module):
    """Tied weights, a bare parameter and a buffer, slices, an input read twice, a name that the source uses itself."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.again = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.again.weight = self.once.weight
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.register_buffer("table", torch.arange(3), persistent=False)
        self.table: Tensor
        self.add_module("F", nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.get_submodule("F")(self.again(self.once(x))) * self.scale
        z = -y[:, 1:, ..., ::2] / 2 + x[:, 1:, :, ::2] ** 2
        return x[:, self.table].mean((2, 3)), torch.cat([z, x[:, :1, :, ::2]], 1)


def test_source_that_is_hard_to_write(tmp_path: Path) -> None:
    surgeon.export(HardToWrite(), tmp_path / "hard.py", example_inputs=X)
    model = imported(tmp_path / "hard.py").load()
    assert model.again.weight is model.once.weight
    assert "-> tuple[Tensor, ...]" in (tmp_path / "hard.py").read_text()


LAYERS = [
    nn.Conv1d(4, 6, 3, groups=2, bias=False),
    nn.Conv2d(4, 6, (3, 5), (1, 2)),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    nn.Linear(4, 7, bias=False),
    nn.BatchNorm2d(5, eps=1e-3, momentum=None, affine=False),
    nn.LayerNorm((3, 3), elementwise_affine=False),
    nn.LayerNorm(8, bias=False),
    nn.GroupNorm(2, 8),
    nn.PReLU(4),
    nn.GELU("tanh"),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AdaptiveAvgPool2d((1, 2)),
    nn.Dropout(0.3, inplace=True),
    nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True),
    nn.GRU(4, 6, bias=False),
    nn.MultiheadAttention(8, 2, dropout=0.1, bias=False, batch_first=True),
    nn.Embedding(5, 3, padding_idx=0),
    nn.Upsample(scale_factor=2, mode="bilinear"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_call_that_makes_a_layer_makes_one_like_it(layer: nn.Module) -> None:
    made = eval(constructor("layer", layer), {"nn": nn})
    assert str(made) == str(layer)
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}


def test_a_layer_that_no_call_makes_is_refused() -> None:
    layer = nn.Linear(3, 4)
    layer.in_features = 5
    with pytest.raises(ExportError, match=r"head: no call of nn\.Linear makes a layer like it"):
        constructor("head", layer)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0", "densenet121", "convnext_tiny", "swin_t"])
def test_torchvision_as_source(name: str) -> None:
    model = torchvision.models.get_model(name).eval()
    written = write_module(as_graph(model, X), type(model).__name__, name)
    space: dict[str, Any] = {"__file__": f"{name}.py", "__name__": name}
    exec(compile(written.source, name, "exec"), space)
    again = space[type(model).__name__]()
    again.load_state_dict(written.tensors)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


# ---------------------------------------------------------------- what is refused


def test_what_gives_other_outputs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting.FORMATS["pt2"]
    wrong = exporting.Format(".pt2", real.write, lambda path, inputs: [out * 1.001 for out in real.run(path, inputs)])
    monkeypatch.setitem(exporting.FORMATS, "pt2", wrong)
    with pytest.raises(InexactExportError, match=r"gives other outputs than the model \(relative error 1\.0e-03"):
        surgeon.export(small().model, tmp_path / "m.pt2", example_inputs=X)
    assert list(tmp_path.iterdir()) == []
    ran = surgeon_cli("export", "tests.factories:small", "--image-size", 8, "--format", "pt2", "-o", tmp_path / "m.pt2")
    assert ran.code == 1
    assert "gives other outputs than the model" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_source_that_fails_in_the_fresh_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def load():\n    raise KeyError('weights')\n")
    with pytest.raises(InexactExportError, match="doesn't run in a fresh process: KeyError: 'weights'"):
        exporting.FORMATS["python"].run(tmp_path / "m.py", [surgeon.Inputs((X,))])


class ByData(nn.Module):
    """Takes its way by data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("kind", FORMATS)
def test_a_forward_that_can_not_be_written_is_told(kind: str, tmp_path: Path) -> None:
    with pytest.raises(surgeon.SurgeonError, match="ByData"):
        surgeon.export(ByData(), tmp_path / f"m{SUFFIX[kind]}", example_inputs=X)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "options", "told"),
    [
        ("m.bin", {}, "expected one of onnx, pt2, python"),
        ("m.pt2", {"format": "torchscript"}, "expected one of"),
        ("9m.py", {}, "with a NAME that can be imported"),
        ("m.onnx", {"channels_last": True}, "says nothing to ONNX"),
    ],
)
def test_wrong_usage(path: str, options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        surgeon.export(small().model, tmp_path / path, example_inputs=X, **options)


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(InputError, match=r"needs onnxruntime: python -m pip install 'filter-surgeon\[onnx\]'"):
        surgeon.export(small().model, tmp_path / "m.onnx", example_inputs=X)


def test_a_model_needs_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass example_inputs"):
        surgeon.export(small().model, tmp_path / "m.pt2")


def test_outputs_that_prove_nothing_are_told(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)  # type: ignore[arg-type]  # it has one
    with pytest.raises(ExportError, match="all zero, or not finite"):
        surgeon.export(model, tmp_path / "m.pt2", example_inputs=X)


# ---------------------------------------------------------------- the command


def test_the_command(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("export", file, "--format", "python", "--model", "tests.factories:small", "--fold-bn", "--json")
    ran = surgeon_cli(*words)
    assert ran.code == 0, ran.err
    assert ran.json["files"] == ["s.py", "s_weights.safetensors"]
    assert "compared with the model at batch size 2 and 3" in ran.err
    assert "BatchNorm" not in Path("s.py").read_text()


def test_the_command_refuses_before_it_works(file: Path, tmp_path: Path) -> None:
    where = tmp_path / "no" / "m.pt2"
    ran = surgeon_cli("export", file, "--format", "pt2", "--model", "tests.factories:small", "-o", where)
    assert ran.code == 2
    assert "no such folder" in ran.err


# ---------------------------------------------------------------- what a fresh process is given


class Two(nn.Module):
    """Adds what it is given, if it is to."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, a: Tensor, b: Tensor, *, how: Any = None) -> Tensor:
        """A layer of the sum."""
        y: Tensor = self.fc(a + b)
        return y


def test_one_tensor_may_be_given_twice_to_source(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    assert surgeon.export(Two(), tmp_path / "two.py", example_inputs=(x, x)).error < 1e-6
    assert surgeon.export(Two(), tmp_path / "part.py", example_inputs=(x, x[:1])).error < 1e-6


def test_source_that_cannot_be_given_its_inputs_is_told(tmp_path: Path) -> None:
    given = surgeon.Inputs((torch.randn(2, 8),) * 2, {"how": {"by": object()}})
    with pytest.raises(ExportError, match=r"kwargs\['how'\]\['by'\] is of type object, which can't be given"):
        surgeon.export(Two(), tmp_path / "two.py", example_inputs=given)


def test_source_that_does_not_finish_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.modules, "_SECONDS", 0.01)
    with pytest.raises(ExportError, match=r"doesn't finish in 0.01 s"):
        surgeon.export(Two(), tmp_path / "two.py", example_inputs=(torch.randn(2, 8),) * 2)
