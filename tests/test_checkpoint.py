"""Files: what is written comes back, what is damaged or forged is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import surgeon
from surgeon import checkpoint
from surgeon.errors import CheckpointError
from surgeon.files import write_beside
from surgeon.tracing import Inputs
from tests import factories

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def cut(model: nn.Module, filters: int = 6) -> surgeon.Result:
    return surgeon.prune(model, X, filters=filters, criterion="magnitude", verify=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    result = cut(factories.small().eval())
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan, origin={"factory": "tests.factories:small"})
    return tmp_path / "s.safetensors"


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("factory", [factories.small, factories.tied])
def test_outputs_are_equal_to_the_bit(factory: Callable[[], nn.Module], tmp_path: Path) -> None:
    result = cut(factory().eval(), 4)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    back = surgeon.load(tmp_path / "s", factory)
    assert torch.equal(back(X), result.model(X))
    assert type(back) is type(result.model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_model_is_saved_as_itself(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    result = cut(factories.small().eval(), 4)
    surgeon.save(tmp_path / "s", wrap(result.model), result.plan)
    assert torch.equal(surgeon.load(tmp_path / "s", factories.small)(X), result.model(X))


def test_a_tied_tensor_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    result = cut(factories.tied(), 4)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    header = checkpoint.read_header(tmp_path / "s")
    assert header.aliases == {"again.weight": "once.weight"}
    back = surgeon.load(tmp_path / "s", factories.tied)
    assert back.get_parameter("again.weight") is back.get_parameter("once.weight")


def test_tensors_that_share_a_part_and_strided_ones_survive(tmp_path: Path) -> None:
    result = cut(factories.small().eval())
    pool = torch.randn(64)
    with torch.no_grad():
        first, second = result.model.get_parameter("first.bias"), result.model.get_parameter("second.bias")
        first.data, second.data = pool[: len(first)], pool[2 : 2 + 2 * len(second) : 2]
    surgeon.save(tmp_path / "s", result.model, result.plan)
    assert torch.equal(surgeon.load(tmp_path / "s", factories.small)(X), result.model(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    result = cut(factories.small())
    model = result.model.to(dtype)
    surgeon.save(tmp_path / "s", model, result.plan)
    back = surgeon.load(tmp_path / "s", factories.small)
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert torch.equal(back.get_parameter("first.weight"), model.get_parameter("first.weight"))


def test_mixed_types_come_back(tmp_path: Path) -> None:
    result = cut(factories.small())
    result.model.get_submodule("head").to(torch.float64)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    back = surgeon.load(tmp_path / "s", factories.small)
    assert back.get_parameter("head.weight").dtype is torch.float64
    assert back.get_parameter("first.weight").dtype is torch.float32


def test_frozen_parameters_and_mode_come_back(tmp_path: Path) -> None:
    result = cut(factories.small())
    result.model.train().get_parameter("first.weight").requires_grad_(False)
    surgeon.save(tmp_path / "s", result.model, result.plan)
    back = surgeon.load(tmp_path / "s", factories.small)
    assert [n for n, p in back.named_parameters() if not p.requires_grad] == ["first.weight"]
    assert back.training


def test_a_new_process_gives_equal_outputs(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    x = torch.randn(1, 3, 48, 48)
    result = surgeon.prune(squeezenet1_1().eval(), x, filters=40, criterion="magnitude", verify=False)
    origin = {"torchvision": "squeezenet1_1", "kwargs": {}}
    surgeon.save(tmp_path / "s", result.model, result.plan, origin=origin)
    save_file({"x": x, "y": result.model(x).detach()}, tmp_path / "xy")
    code = (
        "import surgeon, torch, safetensors.torch as st; t = st.load_file('xy'); "
        "assert (surgeon.load('s')(t['x']) - t['y']).abs().max() < 1e-5"
    )
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)


# ---------------------------------------------------------------- writing


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path, no_more_than: Callable[[int], None]) -> None:
    result = cut(factories.small())
    target = tmp_path / "s"
    target.write_bytes(b"precious")
    no_more_than(512)
    with pytest.raises(OSError, match=str(tmp_path)):
        surgeon.save(target, result.model, result.plan)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def no_more_than() -> Iterator[Callable[[int], None]]:
    """The kernel refuses to write files beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("name", "kind"), [("gone/s", FileNotFoundError), (".", IsADirectoryError)])
def test_a_place_that_cannot_be_written_to(name: str, kind: type[OSError], tmp_path: Path) -> None:
    result = cut(factories.small())
    with pytest.raises(kind):
        surgeon.save(tmp_path / name, result.model, result.plan)


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_refused_and_stays(linked: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(OSError, match="no regular file"), write_beside(tmp_path / ("pipe", "link")[linked]):
        raise AssertionError
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_device_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(OSError, match="no regular file"), write_beside(tmp_path / "link"):
        raise AssertionError
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("exists", [False, True])
def test_the_target_of_a_link_is_replaced_and_the_link_stays(exists: bool, tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "deep" / "target"
    target.parent.mkdir()
    link.symlink_to("deep/target")
    if exists:
        target.write_text("old")
    with write_beside(link) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="leads to itself"), write_beside(tmp_path / "link"):
        raise AssertionError
    assert (tmp_path / "link").is_symlink()


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError) as caught, write_beside(tmp_path / "s"):
        raise AssertionError
    assert caught.value.filename == str(tmp_path / "s")


def test_the_file_has_the_rights_that_the_umask_says(file: Path) -> None:
    before = os.umask(0)
    os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~before


class Stateful(factories.Small):
    def get_extra_state(self) -> Any:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        """Nothing to do."""


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    result = cut(factories.small())
    with pytest.raises(CheckpointError, match="_extra_state"):
        surgeon.save(tmp_path / "s", Stateful(), result.plan)


# ---------------------------------------------------------------- damage and forgery


def forge(file: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Write the file again with a changed header or changed tensors."""
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["surgeon"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    change(header, tensors)
    save_file(tensors, file, metadata={"surgeon": json.dumps(header)})


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated(file: Path, keep: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"s\.safetensors"):
        surgeon.load(file, factories.small)


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match="not written by surgeon"):
        surgeon.load(tmp_path / "a", factories.small)


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        surgeon.load(tmp_path / "gone")


def test_another_model(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a Small, but the dense model is Tied; pass its factory"):
        surgeon.load(file, factories.tied)


def test_the_same_class_with_another_head(file: Path) -> None:
    with pytest.raises(CheckpointError, match="head"):
        surgeon.load(file, factories.two_classes)


def _removed(header: dict[str, Any]) -> dict[str, list[Any]]:
    removed: dict[str, list[Any]] = header["plan"]["removed"]
    return removed


def _shape(header: dict[str, Any]) -> list[int]:
    shape: list[int] = header["plan"]["inputs"]["args"]["list"][0]["tensor"]
    return shape


FORGERIES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "no format": (lambda h, t: h.pop("format"), "format"),
    "next format": (lambda h, t: h.update(format=2), "format 2"),
    "format true": (lambda h, t: h.update(format=True), "format"),
    "class a number": (lambda h, t: h.update({"class": 7}), "class"),
    "unknown field": (lambda h, t: h.update(run="rm"), "run"),
    "no plan": (lambda h, t: h.update(plan=None), "plan"),
    "empty plan": (lambda h, t: h.update(plan={}), "plan"),
    "plan of text": (lambda h, t: h["plan"].update(removed="all"), "plan"),
    "unknown group": (lambda h, t: _removed(h).update(nine=[0]), "nine"),
    "out of range": (lambda h, t: _removed(h).update(first=[0, 99]), "first"),
    "negative": (lambda h, t: _removed(h).update(first=[-1]), "first"),
    "twice": (lambda h, t: _removed(h).update(first=[1, 1]), "first"),
    "no integer": (lambda h, t: _removed(h).update(first=[1.5]), "first"),
    "everything": (lambda h, t: _removed(h).update(first=list(range(8))), "first"),
    "one more": (lambda h, t: _removed(h).update(first=[0, 1, 2, 3, 4, 5]), "first|shape"),
    "fewer": (lambda h, t: _removed(h).clear(), "shape"),
    "no inputs": (lambda h, t: h["plan"].update(inputs=None), "plan"),
    "inputs of text": (lambda h, t: h["plan"].update(inputs="x"), "plan"),
    "inputs of another shape": (lambda h, t: _shape(h).reverse(), "plan"),
    "inputs beyond all memory": (lambda h, t: _shape(h).append(10**12), "plan"),
    "missing tensor": (lambda h, t: t.pop("norm.bias"), "norm.bias"),
    "extra tensor": (lambda h, t: t.update(more=torch.zeros(1)), "more"),
    "wrong shape": (lambda h, t: t.update({"head.bias": torch.zeros(4)}), r"head.bias has shape \[4\]"),
    "wrong type": (lambda h, t: t.update({"head.bias": torch.zeros(5, dtype=torch.int32)}), "head.bias holds I32"),
    "alias of nothing": (lambda h, t: h.update(aliases={"head.bias2": "gone"}), "gone"),
    "alias of itself": (lambda h, t: h.update(aliases={"head.bias": "head.bias"}), "head.bias"),
    "frozen unknown": (lambda h, t: h.update(frozen=["gone"]), "gone"),
    "frozen twice": (lambda h, t: h.update(frozen=["head.bias", "head.bias"]), "twice"),
    "origin of text": (lambda h, t: h.update(origin="os:system"), "origin"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged(name: str, file: Path) -> None:
    change, told = FORGERIES[name]
    forge(file, lambda header, tensors: (change(header, tensors), None)[1])
    with pytest.raises(CheckpointError, match=told):
        surgeon.load(file, factories.small)


ORIGINS: dict[str, tuple[Any, str]] = {
    "none": (None, "pass factory="),
    "a factory is never followed": ({"factory": "os:getcwd"}, "pass factory="),
    "a hub name": ({"timm": "resnet18"}, "pass factory="),
    "no such model": ({"torchvision": "resnet18/../evil"}, "no torchvision model"),
    "no name": ({"torchvision": ["resnet18"]}, "no torchvision model"),
    "weights": ({"torchvision": "resnet18", "kwargs": {"weights": "DEFAULT"}}, "not allowed"),
    "norm layer": ({"torchvision": "resnet18", "kwargs": {"norm_layer": "os.system"}}, "not allowed"),
    "too many classes": ({"torchvision": "resnet18", "kwargs": {"num_classes": 10**9}}, "not allowed"),
    "bool classes": ({"torchvision": "resnet18", "kwargs": {"num_classes": True}}, "not allowed"),
    "kwargs of text": ({"torchvision": "resnet18", "kwargs": "num_classes=3"}, "kwargs"),
    "unknown to the builder": ({"torchvision": "resnet18", "kwargs": {"image_size": 3}}, "can't build"),
    "another class": ({"torchvision": "squeezenet1_1", "kwargs": {}}, "but the dense model is SqueezeNet"),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_origins_that_are_not_followed(name: str, file: Path) -> None:
    origin, told = ORIGINS[name]
    forge(file, lambda header, tensors: header.update(origin=origin))
    with pytest.raises(CheckpointError, match=told):
        surgeon.load(file)


def test_a_factory_must_give_a_module(file: Path) -> None:
    with pytest.raises(TypeError, match="int"):
        surgeon.load(file, factories.no_module)  # type: ignore[arg-type]  # the mistake under test


class Asking(factories.Small):
    """Its forward asks for a number, so that it runs with numbers or not at all."""

    def forward(self, x: Tensor) -> Tensor:
        """The small one's."""
        y: Tensor = super().forward(x)
        return y if float(x.detach().sum()) < 1e9 else -y


def test_inputs_may_be_on_any_device(tmp_path: Path) -> None:
    """They come to the CPU, where the model is."""

    class Elsewhere(Inputs):
        def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Inputs:
            asked.append(device)
            return super().to(device, dtype)

    asked = list[Any]()
    result = cut(Asking().eval())
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    found = surgeon.load(tmp_path / "s.safetensors", Asking, example_inputs=Elsewhere((X,)))
    assert torch.equal(found(X), result.model(X))
    assert "cpu" in asked
