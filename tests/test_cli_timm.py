"""timm's models on the command line, by one of its smallest; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon_cli import weights as sources
from surgeon_cli.models import resolve
from tests.cli_run import Ran, surgeon_cli
from tests.pictures import draw

timm: Any = pytest.importorskip("timm")

NAME = "timm:test_resnet"
SMALL = ("--image-size", 32, "--device", "cpu")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty folder and no network; gives the addresses that were asked for."""
    from huggingface_hub import constants

    asked: list[str] = []

    def reach(url: str) -> None:
        asked.append(url)
        raise sources.Unreachable(f"no answer from {url}")

    monkeypatch.setattr(sources, "reach", reach)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The hub has weights: those of the model that this gives."""
    create = timm.create_model
    torch.manual_seed(7)
    trained: nn.Module = create("test_resnet")

    def fetched(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = create(name, **options)
        if pretrained:
            model.load_state_dict(trained.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", fetched)
    return trained


def first_of(model: nn.Module) -> torch.Tensor:
    return next(model.parameters())


@pytest.mark.parametrize("words", [("inspect", "--json"), ("bench", "--rounds", 1, "--device", "cpu", "--json")])
def test_what_looks_at_shapes_or_times_fetches_no_weights(words: tuple[Any, ...], offline: list[str]) -> None:
    ran = surgeon_cli(words[0], NAME, "--image-size", 32, *words[1:])
    assert ran.code == 0, ran.err
    assert offline == []
    assert "WEIGHTS" not in ran.err


def test_weights_are_fetched_or_missed_aloud(published: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve(NAME, None)
    assert (found.weights, found.random, found.warnings) == ("pretrained (timm)", False, ())
    assert torch.equal(first_of(found.model), first_of(published))
    assert found.origin["timm"] == "test_resnet"

    def unreachable(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route")
        return published

    monkeypatch.setattr(timm, "create_model", unreachable)
    missed = resolve(NAME, None)
    assert missed.random
    assert (
        "RANDOM WEIGHTS: the pretrained weights of timm:test_resnet can't be reached (no route)" in missed.warnings[0]
    )


def test_a_name_that_timm_does_not_have() -> None:
    ran = surgeon_cli("inspect", "timm:test_resnte")
    assert ran.code == 2
    assert "timm has no model 'test_resnte'" in ran.err
    assert "did you mean test_resnet" in ran.err


def cut(*words: Any) -> Ran:
    return surgeon_cli("prune", *SMALL, "--ratio", 0.3, "--criterion", "magnitude", *words)


def test_it_is_cut_and_its_file_asks_for_its_maker(published: nn.Module) -> None:
    ran = cut("--model", NAME, "--output", "small.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["weights"] == "pretrained (timm)"
    assert ran.json["report"]["check"]["status"] == "passed"
    small = surgeon.load("small.safetensors", lambda: timm.create_model("test_resnet"))
    assert small.eval()(torch.zeros(1, 3, 32, 32)).shape == published.eval()(torch.zeros(1, 3, 32, 32)).shape
    told = surgeon_cli("inspect", "small.safetensors")
    assert told.code == 2
    assert f"give --factory {NAME}" in " ".join(told.err.split())
    assert surgeon_cli("inspect", "small.safetensors", "--factory", NAME).code == 0


def test_it_gets_a_head_for_the_folder_and_keeps_the_rest(published: nn.Module) -> None:
    draw(Path("photos"), 6)
    words = ("--data", "photos", "--batch-size", 6, *SMALL, "--lr", 1e-9, "--epochs", 1)
    ran = surgeon_cli("train", "--model", NAME, "--weights", "DEFAULT", *words, "--output", "net.safetensors")
    assert ran.code == 0, ran.err
    assert "new head: fc.weight, fc.bias" in ran.err
    net = surgeon.load("net.safetensors", lambda: timm.create_model("test_resnet", num_classes=2))
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert torch.allclose(first_of(net), first_of(published), atol=1e-6)
    again = cut("--model", "net.safetensors", "--factory", NAME, "--output", "small.safetensors")
    assert again.code == 0, again.err
