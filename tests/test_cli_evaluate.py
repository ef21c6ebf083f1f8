"""surgeon evaluate: accuracy, size and zeros of several models, as tables and pictures; filters as images."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks

import surgeon
from surgeon import finegrained
from surgeon.data import Preprocess, batches, open_data
from surgeon.errors import InputError
from surgeon.plots import errors, filters, weight_histograms
from surgeon_cli import evaluating
from tests.cli_run import surgeon_cli
from tests.factories import Small

MADE = Preprocess(8, 8)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dense model, the same cut, and the cut one with masks; each knows its images."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    dense = surgeon.models.build("vgg7_bn-x0.1").eval()
    result = surgeon.prune(dense, torch.zeros(1, 3, 8, 8), ratio=0.5, criterion="magnitude")
    origin = {"surgeon": "vgg7_bn-x0.1", "kwargs": {"num_classes": 10}, "preprocess": MADE.to_dict()}
    surgeon.save("cut.safetensors", result.model, result.plan, origin)
    finegrained.sparsify(result.model, 0.75)
    finegrained.pack("masked.safetensors", result.model, result.plan, origin)
    return tmp_path


def test_all_models_are_looked_at_before_the_first_is_evaluated(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "evaluate", lambda *_: pytest.fail("evaluated"))
    ran = surgeon_cli("evaluate", files / "cut.safetensors", "tests.factories:small", "--data", "digits")
    assert ran.code == 2
    assert "tests.factories:small hasn't one output for each of the 10 classes" in " ".join(ran.err.split())


def test_a_row_for_each_model_with_accuracy_size_and_zeros(files: Path) -> None:
    ran = surgeon_cli(
        "evaluate", "cifar:vgg7_bn-x0.1", "cut.safetensors", "masked.safetensors", "--weights", "none", "--image-size",
        8, "--data", "digits", "--json", "--layers", "--csv", "t.csv", "--plot", "p.svg", "--histograms", "h.svg",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    dense, cut, masked = ran.json["models"]
    test = open_data("digits").test
    assert test is not None
    for row, name in ((cut, "cut.safetensors"), (masked, "masked.safetensors")):
        seen = surgeon.evaluate(surgeon.load(name), batches(test, MADE, 50))
        assert (row["accuracy"], row["top5"]) == (seen.accuracy, seen.top5)
        assert row["loss"] == pytest.approx(seen.loss, rel=1e-5)
        assert row["file_bytes"] == (files / name).stat().st_size
    assert ran.json["images"] == len(test)
    assert cut["macs"] < dense["macs"]
    assert (cut["params"], cut["nonzero"]) == (masked["params"], 1.0)
    assert masked["nonzero"] == pytest.approx(0.25, abs=0.01)
    assert sum(layer["nonzero"] for layer in masked["layers"].values()) < sum(
        layer["nonzero"] for layer in cut["layers"].values()
    )
    rows = list(csv.DictReader(io.StringIO((files / "t.csv").read_text())))
    assert [float(row["macs"]) for row in rows] == [dense["macs"], cut["macs"], masked["macs"]]
    assert "weights that are not zero" in ran.err
    for name, told in (("p.svg", "million parameters"), ("h.svg", "not zero")):
        assert (files / name).read_text().count("<path") > 10, told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cut.safetensors", "--data", "nowhere"), "no such folder"),
        (("cut.safetensors", "--data", "digits", "--part", "val"), "--part val: digits has none"),
        (("tests.factories:small", "--data", "digits"), "give it a head for them first"),
        (("nothing.safetensors", "--data", "digits"), "nothing.safetensors"),
    ],
)
def test_bad_input_is_one_clear_message(files: Path, words: tuple[str, ...], told: str) -> None:
    ran = surgeon_cli("evaluate", *words)
    assert ran.code == 2, ran.err
    assert told in " ".join(ran.err.split())


def test_a_file_from_elsewhere_with_its_factory(files: Path) -> None:
    del files
    model = Small(10).eval()
    result = surgeon.prune(model, torch.zeros(1, 3, 8, 8), ratio=0.3, criterion="magnitude")
    surgeon.save("own.safetensors", result.model, result.plan, {"factory": "tests.factories:Small"})
    words = ("evaluate", "own.safetensors", "--data", "digits", "--image-size", 8, "--samples", 50)
    assert (
        "that tests.factories:Small made; a file makes no code run by itself: give --factory tests.factories:Small"
        in " ".join(surgeon_cli(*words).err.split())
    )
    ran = surgeon_cli(*words, "--factory", "tests.test_cli_evaluate:ten")
    assert ran.code == 0, ran.err


def ten() -> nn.Module:
    return Small(10)


def test_zeros_are_counted_with_masks_and_tied_weights_once() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    mask = torch.tensor([1.0, 1, 1, 0] * 2).view(2, 1, 2, 2)
    masks.custom_from_mask(model[0], "weight", mask)  # type: ignore[no-untyped-call]  # torch's
    model.append(nn.Linear(2, 3))
    model[3].weight = model[2].weight
    assert finegrained.nonzero(model) == {"0": (6, 8), "2": (6, 6)}
    assert finegrained.nonzero(model)["0"].share == 0.75


def test_filters_become_images(tmp_path: Path) -> None:
    filters(Small(), tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    filters(nn.Conv2d(1, 5, 3), tmp_path / "grey.png")
    with pytest.raises(InputError, match="no convolution of images"):
        filters(nn.Linear(2, 2), tmp_path / "none.png")
    with pytest.raises(InputError, match="no convolution or linear layer"):
        weight_histograms({"a": nn.ReLU()}, tmp_path / "none.png")


def test_the_line_of_what_nothing_beats(tmp_path: Path) -> None:
    rows = [
        {"name": "small", "accuracy": 0.5, "macs": 1e6, "params": 1e6},
        {"name": "beaten", "accuracy": 0.4, "macs": 2e6, "params": 2e6},
        {"name": "large", "accuracy": 0.9, "macs": 3e6, "params": 3e6},
    ]
    errors(rows, tmp_path / "e.svg")
    assert "beaten" in (tmp_path / "e.svg").read_text()
