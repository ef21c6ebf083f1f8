"""surgeon prune --heal: what is told, and what the file computes then."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import surgeon
from surgeon import data
from surgeon.data import Preprocess
from tests import factories
from tests.cli_run import Ran, surgeon_cli
from tests.pictures import draw

MADE = Preprocess(16, 16)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def normed() -> nn.Module:
    """A norm behind each of two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def prune(*words: object, model: str = "tests.factories:small") -> Ran:
    return surgeon_cli("prune", "--model", model, "--image-size", 16, "--ratio", 0.5, *words)


def loaded(photos: Path) -> torch.Tensor:
    """All images of a folder, as the networks under test take them."""
    pixels = data.open_data(str(photos)).train.loaded(MADE).pixels
    assert pixels is not None
    return MADE.normalise(pixels)


def used_to(photos: Path) -> nn.Module:
    """A network whose norms have the statistics of these images."""
    torch.manual_seed(0)
    model = normed()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(loaded(photos))
    return model.eval()


@pytest.mark.parametrize(("level", "left"), [("bn", 0.7), ("bias", 0.4), ("gram", 0.3), ("lstsq", 0.02)])
def test_what_is_healed_on_some_images_is_nearer_on_others(level: str, left: float, tmp_path: Path) -> None:
    shown, others = draw(tmp_path / "shown", 40, classes=3), draw(tmp_path / "others", 20, classes=3, seed=1)
    dense = used_to(shown)
    torch.save(dense.state_dict(), "w.pt")
    words = ("--weights", "w.pt", "--criterion", "random", "--data", shown, "--samples", 120)
    images, apart = loaded(others), []
    for heal in ("none", level):
        ran = prune(*words, "--heal", heal, "--output", heal, model="tests.test_cli_healing:normed")
        assert ran.code == 0, ran.err
        with torch.no_grad():
            apart.append(float((surgeon.load(heal, normed).eval()(images) - dense(images)).square().mean()))
    assert apart[1] < left * apart[0], apart


@pytest.mark.parametrize("level", ["bn", "bias", "gram", "lstsq"])
def test_healing_is_told_and_goes_into_the_file(level: str) -> None:
    plain, healed = (
        prune("--samples", 4, "--criterion", "obs-mac", "--heal", heal, "--output", f"{heal}.safetensors", "--json")
        for heal in ("none", level)
    )
    assert (plain.code, healed.code) == (0, 0), healed.err
    assert "two photographs: give --data" in healed.err
    rows = healed.json["report"]["healing"]
    assert ("healed: " in healed.err) == bool(rows) == (level != "bn")
    assert all(row["healed"] <= row["sliced"] for row in rows)
    models = [surgeon.load(f"{heal}.safetensors", factories.small) for heal in ("none", level)]
    assert not torch.equal(*(model.eval()(torch.ones(1, 3, 16, 16)) for model in models))
