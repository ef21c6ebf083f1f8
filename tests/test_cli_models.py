"""What --model and --weights accept."""

from __future__ import annotations

import pickle
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surgeon.errors import InputError, SelectionError
from surgeon_cli import weights as sources
from surgeon_cli.images import Preprocess
from surgeon_cli.models import _tidied, resolve
from tests.factories import Small

State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return dict(Small().state_dict())


def as_torch(state: State, path: Path) -> None:
    torch.save(state, path)


def as_safetensors(state: State, path: Path) -> None:
    save_file(state, path)


def nested(state: State, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state}, path)


def parallel(state: State, path: Path) -> None:
    torch.save({f"module.{name}": value for name, value in state.items()}, path)


@pytest.mark.parametrize("write", [as_torch, as_safetensors, nested, parallel])
def test_state_dicts_in_every_dress(write: Any, state: State, tmp_path: Path) -> None:
    write(state, tmp_path / "w")
    model = resolve("tests.factories:small", str(tmp_path / "w")).model
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


class Wrapper(nn.Module):
    """A model of which a part is called module."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Small()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_part_called_module_keeps_its_name(prefix: str, tmp_path: Path) -> None:
    source, model = Wrapper(), Wrapper()
    torch.save({f"{prefix}{name}": value for name, value in source.state_dict().items()}, tmp_path / "w.pt")
    sources.fill(model, sources.read(tmp_path / "w.pt"), "w.pt")
    assert torch.equal(model.module.head.weight, source.module.head.weight)


def test_a_zoo_models_weights_from_several_devices(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in resolve("squeezenet1_1", "none").model.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    model = resolve("squeezenet1_1", str(tmp_path / "w.pt"), seed=1).model
    assert torch.equal(next(model.parameters()), next(iter(state.values())))


def test_weights_that_came_and_do_not_fit_are_no_reason_for_random_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "fetch", lambda *_, **__: {"features.0.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"squeezenet1_1-.*\.pth: features\.0\.bias of SqueezeNet is missing"):
        resolve("squeezenet1_1", None)


def test_a_folder_that_is_no_model_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    with pytest.raises(SelectionError, match=r"unknown model 'data' \(data is a folder here\)"):
        resolve("data", "none")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nonexistent/owned").touch, ())


def test_pickled_objects_are_refused_not_run(tmp_path: Path) -> None:
    with (tmp_path / "w.pt").open("wb") as file:
        pickle.dump({"a": Evil()}, file, protocol=2)
    with pytest.raises(InputError, match=r"w\.pt"):
        sources.read(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02cut", b"plain text, no weights at all"])
def test_damaged_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pt"):
        sources.read(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("head.bias"), "head.bias of Small is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra doesn't belong"),
        (lambda state: state.update({"head.bias": torch.zeros(7)}), "head.bias has shape"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_difference(change: Any, told: str, state: State) -> None:
    change(state)
    with pytest.raises(InputError, match=told):
        sources.fill(Small(), state, "w.pt")


def test_a_file_with_other_classes_sets_the_models(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "w.pt")
    subject = resolve("resnet18", str(tmp_path / "w.pt"))
    made = {"torchvision": "resnet18", "kwargs": {"num_classes": 7}, "weights": "w.pt"}
    assert subject.origin == made | {"preprocess": subject.preprocess.to_dict()}
    fc = subject.model.get_submodule("fc")
    assert isinstance(fc, nn.Linear)
    assert fc.out_features == 7


def test_densenets_files_have_older_names(tmp_path: Path) -> None:
    from torchvision.models import densenet121

    with torch.device("meta"):
        names = densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): torch.zeros(1) for name in names}
    assert list(_tidied(old)) == list(names)
    assert list(old) != list(names)


def test_pretrained_weights_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / "w.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert sources.fetch("http://127.0.0.1:9/w.pth").keys() == state.keys()


@pytest.fixture
def silent_server() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(silent_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TIMEOUT", 0.2)
    start = time.monotonic()
    with pytest.raises(sources.Unreachable, match=r"127\.0\.0\.1"):
        sources.reach(f"http://127.0.0.1:{silent_server}/w.pth")
    assert time.monotonic() - start < 5


def test_a_factory_has_no_default_weights() -> None:
    with pytest.raises(InputError, match="no zoo model"):
        resolve("tests.factories:small", "DEFAULT")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "fcn_resnet50"])
def test_auxiliary_heads_are_left_out(name: str) -> None:
    with torch.device("meta"):
        model = resolve(name, "none").model
    assert not [n for n, _ in model.named_parameters() if "aux" in n.lower()]


def test_preprocessing_follows_the_weights_entry() -> None:
    from torchvision.models import Inception_V3_Weights

    made = Preprocess.of_torchvision(Inception_V3_Weights.DEFAULT)
    assert (made.size, made.resize) == (299, 342)
    assert made.sized(64) == Preprocess(64, 64, made.mean, made.std)
    assert Preprocess.of_torchvision(None) == Preprocess()
