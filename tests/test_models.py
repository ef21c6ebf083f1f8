"""The zoo: names, sizes known from the papers, and that what comes along can be cut and loaded like any model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import surgeon
from surgeon import models
from surgeon.checkpoint import check_origin
from surgeon.errors import CheckpointError, SelectionError

#: Millions of parameters with 10 classes: He et al. 2016 (table 6), Zagoruyko & Komodakis 2016 (table 4).
PAPERS = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7, "wrn16-8": 11.0,
          "wrn40-4": 8.9, "wrn22-8": 17.2}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_as_many_parameters_as_in_the_papers(name: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in models.build(name).parameters())
    assert count / 1e6 == pytest.approx(PAPERS[name], rel=0.025)


@pytest.mark.parametrize("name", models.names())
def test_every_name_gives_scores(name: str) -> None:
    with torch.device("meta"):
        scores = models.build(f"{name}-x0.25", 7).eval()(torch.zeros(2, 3, 32, 32))
    assert scores.shape == (2, 7)


def test_names_in_state_dicts_are_those_of_public_weights() -> None:
    with torch.device("meta"):
        resnet, projected = models.build("resnet20").state_dict(), models.build("resnet20b").state_dict()
        vgg = models.build("vgg16_bn-x0.25").state_dict()
    assert {"conv1.weight", "bn1.bias", "layer2.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= set(
        resnet
    )
    assert {"layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.bias"} == set(projected) & {
        "layer1.0.shortcut.0.weight", "layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.bias",
    }  # fmt: skip
    assert vgg["features.40.weight"].shape == (128, 128, 3, 3)
    assert "features.0.bias" not in vgg


@pytest.mark.parametrize(("name", "told"), [("resnet21", "resnet20"), ("vgg16-x99", "0.01 to 16"), ("", "There are")])
def test_names_that_are_none(name: str, told: str) -> None:
    with pytest.raises(SelectionError, match=told):
        models.build(name)


@pytest.mark.parametrize("name", ["resnet20", "resnet20b", "wrn16-4-x0.25", "vgg11"])
def test_the_zoo_is_cut_saved_and_opened_without_a_factory(name: str, tmp_path: Path) -> None:
    dense = models.build(name, 5).eval()
    images = torch.randn(2, 3, 32, 32)
    result = surgeon.prune(dense, images, ratio=0.3, criterion="magnitude")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    origin = {"surgeon": name, "kwargs": {"num_classes": 5}}
    surgeon.save(tmp_path / "small.safetensors", result.model, result.plan, origin=origin)
    assert torch.equal(surgeon.load(tmp_path / "small.safetensors").eval()(images), result.model.eval()(images))


def test_the_reason_of_a_padded_shortcut_names_its_own_line() -> None:
    """The zoo's files are the user's as far as messages go, though they lie in surgeon's folder."""
    result = surgeon.prune(models.build("resnet20").eval(), torch.randn(1, 3, 32, 32), ratio=0.3, criterion="magnitude")
    constants = [pin for pin in result.report.pinned if pin.reason.startswith("constant")]
    assert constants
    assert all("models/resnets.py" in str(pin.source) for pin in constants)


@pytest.mark.parametrize(
    "origin",
    [{"surgeon": "resnet21"}, {"surgeon": "os.system"}, {"surgeon": 3}, {"surgeon": "vgg11", "kwargs": {"a": 1}}],
)
def test_origins_that_are_not_followed(origin: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        check_origin(origin)
