"""surgeon train, from the options to a file that other commands take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon.checkpoint import read_header
from surgeon.data import Preprocess
from surgeon_cli import weights as sources
from tests import factories
from tests.cli_run import Ran, surgeon_cli
from tests.factories import sized
from tests.pictures import draw

MODEL = "cifar:resnet20-x0.1"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with photographs of two kinds, an empty cache and no network."""

    def reach(url: str) -> None:
        raise sources.Unreachable(f"no answer from {url}")

    monkeypatch.setattr(sources, "reach", reach)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos" / "train", 10)
    draw(tmp_path / "photos" / "test", 4, seed=1)


def train(*words: object, model: str = MODEL, epochs: int = 1, data: str = "photos") -> Ran:
    return surgeon_cli(
        "train", "--model", model, "--data", data, "--epochs", epochs, "--batch-size", 6, "--device", "cpu", *words
    )


def test_norms_of_a_file_are_settled_first(tmp_path: Path) -> None:
    assert train("--output", "net.safetensors").code == 0
    model = surgeon.load("net.safetensors")
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():  # as a regression leaves it: what arrives is not what the statistics are of
        norm.running_var.mul_(100)  # type: ignore[union-attr]
    header = read_header("net.safetensors")
    surgeon.save("healed.safetensors", model, header.plan, header.origin)
    assert train("--lr", 1e-9, "--output", "again.safetensors", model="healed.safetensors").code == 0
    again = surgeon.load("again.safetensors")
    x = torch.randn(4, 3, 32, 32)
    small = next(module for module in again.modules() if isinstance(module, nn.BatchNorm2d))
    assert float(small.running_var.mean()) < 0.1 * float(norm.running_var.mean())  # type: ignore[union-attr]
    torch.testing.assert_close(again.eval()(x), model.eval()(x), rtol=0.2, atol=0.1)


def test_from_scratch_to_a_file_that_knows_its_images() -> None:
    ran = train("--lr", 0.02, "--output", "net.safetensors", "--json", epochs=2)
    assert ran.code == 0, ran.err
    for told in ("2 classes; images: 18 train, 2 validation, 8 test", "new head: linear.weight, linear.bias",
                 "all layers, epoch 2 of 2: loss", "written: net.safetensors"):  # fmt: skip
        assert told in ran.err
    rows = [json.loads(line) for line in Path("net/metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["all", "all", "final"]
    assert ran.json["epochs"] == rows[:2]
    assert ran.json["test"] == rows[2]["test"]
    model = surgeon.load("net.safetensors")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    origin = read_header("net.safetensors").origin
    assert origin is not None
    assert origin["classes"] == ["blue", "green"]
    assert Preprocess.from_dict(origin["preprocess"]) == Preprocess(32, 32)


def test_the_file_goes_into_prune_inspect_and_training_again() -> None:
    assert train("--output", "net.safetensors").code == 0
    ran = surgeon_cli("prune", "--model", "net.safetensors", "--ratio", 0.3, "--data", "photos", "--samples", 6,
                      "--output", "small.safetensors", "--device", "cpu")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "ranked on 6 images of photos/train (2 classes)" in ran.err  # photos/test is no class
    assert "the folder's 2 classes" in ran.err
    small = surgeon.load("small.safetensors")
    assert small(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert surgeon_cli("inspect", "small.safetensors").code == 0
    again = train("--output", "tuned.safetensors", model="small.safetensors")
    assert again.code == 0, again.err
    tuned = surgeon.load("tuned.safetensors")
    assert [p.shape for p in tuned.parameters()] == [p.shape for p in small.parameters()]
    assert not torch.equal(next(tuned.parameters()), next(small.parameters()))


def test_a_cut_file_is_cut_further_and_opens_as_one_cut_of_the_dense_model() -> None:
    assert train("--output", "net.safetensors").code == 0
    for source, target in (("net", "one"), ("one", "two")):
        ran = surgeon_cli("prune", "--model", f"{source}.safetensors", "--ratio", 0.3, "--criterion", "magnitude",
                          "--output", f"{target}.safetensors", "--device", "cpu", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
    gone = [sum(map(len, read_header(f"{name}.safetensors").plan.removed.values())) for name in ("net", "one", "two")]
    assert gone == sorted(set(gone))
    small = surgeon.load("two.safetensors")
    assert sum(p.numel() for p in small.parameters()) == ran.json["report"]["params_after"]


def test_weights_of_a_trained_file_and_a_new_head() -> None:
    assert train("--output", "net.safetensors").code == 0
    draw(Path("three"), 6, classes=3)
    ran = train("--weights", "net.safetensors", "--frozen-epochs", 1, "--lr", 1e-9, "--output", "head.safetensors",
                data="three")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "new head: linear.weight, linear.bias" in ran.err
    assert "head alone, epoch 1" in ran.err
    old, new = surgeon.load("net.safetensors"), surgeon.load("head.safetensors")
    assert new(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert torch.allclose(old.get_parameter("conv1.weight"), new.get_parameter("conv1.weight"), atol=1e-6)


def test_a_torchvision_network_gets_a_head_for_the_folder() -> None:
    ran = train("--image-size", 32, "--output", "net.safetensors", model="squeezenet1_1")
    assert ran.code == 0, ran.err
    assert "new head: classifier.1.weight, classifier.1.bias" in ran.err
    assert surgeon.load("net.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("words", "rate", "told"),
    [
        (("--model", MODEL), 0.1, "starts from random weights; --weights FILE, or DEFAULT"),
        (("--model", MODEL, "--weights", "none"), 0.1, ""),
        (("--model", MODEL, "--optimizer", "adamw", "--weights", "none"), None, ""),
        (("--model", MODEL, "--lr", 0.3, "--weights", "none"), 0.3, ""),
        (("--model", "tests.factories:two_classes"), None, "the rate is that of fine-tuning; from scratch: --lr 0.1"),
        (("--model", "tests.factories:two_classes", "--lr", 0.3), 0.3, ""),
        (("--model", "tests.factories:two_classes", "--weights", "random-no-more.pt"), None, ""),
    ],
)
def test_the_rate_is_that_of_the_weights(
    words: tuple[object, ...], rate: float | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(factories.two_classes().state_dict(), "random-no-more.pt")
    asked: list[object] = []

    def stop(*_: object, **options: object) -> None:
        asked.append(options.get("lr"))
        raise surgeon.TuningError("seen")

    monkeypatch.setattr(surgeon, "train", stop)
    ran = train(*words)
    assert "seen" in ran.err
    assert asked == [rate]
    for line in ("starts from random weights", "the rate is that of fine-tuning"):
        assert (line in ran.err) == (line in told)
    assert told in ran.err


def test_a_loss_that_is_lost_is_a_failure_and_no_mistake() -> None:
    ran = train("--lr", 1e30, "--output", "net.safetensors", epochs=3)
    assert ran.code == 1
    assert "the loss is not finite" in ran.err
    assert not Path("net.safetensors").exists()


def test_cifar_from_a_local_copy() -> None:
    from tests.test_data import write_binary

    write_binary(Path("copies"))
    ran = train("--data-root", "copies", "--val-share", 0.2, "--cutout", 8, "--json", data="cifar10")
    assert ran.code == 0, ran.err
    assert "10 classes; images: 80 train, 20 validation, 10 test" in ran.err
    assert 0 <= ran.json["val"]["top5"] <= 1
    assert Path("resnet20-x0.1-trained.safetensors").exists()


def test_an_interrupted_run_says_how_it_goes_on_and_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from surgeon_cli import baseline as module

    assert train("--output", "whole.safetensors", epochs=3).code == 0
    line = module._epochs

    def stopping(epochs: int) -> Any:
        tell = line(epochs)

        def told(rows: Any) -> None:
            tell(rows)
            if len(rows) == 2:
                raise KeyboardInterrupt

        return told

    monkeypatch.setattr(module, "_epochs", stopping)
    ran = train("--output", "net.safetensors", epochs=3)
    assert ran.code == 130
    assert "the same command with --resume goes on" in ran.err
    assert not Path("net.safetensors").exists()
    monkeypatch.setattr(module, "_epochs", line)
    ran = train("--output", "net.safetensors", epochs=3)
    assert ran.code == 2
    assert "holds a run; go on with it (--resume)" in ran.err
    ran = train("--output", "net.safetensors", "--resume", epochs=3)
    assert ran.code == 0, ran.err
    whole, net = (surgeon.load(f"{name}.safetensors").state_dict() for name in ("whole", "net"))
    assert all(torch.equal(whole[name], net[name]) for name in whole)


def test_a_file_may_have_any_name_and_brings_its_weights() -> None:
    ran = train("--output", "net")
    assert ran.code == 0, ran.err
    assert Path("net").is_file()
    assert Path("net-run/metrics.jsonl").exists()
    for name in ("net", "./net"):
        ran = train("--weights", "none", model=name)
        assert ran.code == 2
        assert f"--model {name} brings its weights: leave --weights out" in ran.err
    ran = train("--output", "again", model="./net")
    assert ran.code == 0, ran.err
    assert "new head" not in ran.err
    assert (Path("again").is_file(), Path("again-run").is_dir()) == (True, True)


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no such network": (("--model", "cifar:resnet21"), "resnet20"),
    "no data": (("--data", "nowhere"), "nowhere: no such folder"),
    "no copy of cifar": (("--data", "cifar10"), "Nothing is downloaded"),
    "no run": (("--resume",), "holds no run to go on with"),
    "rate": (("--lr", -1), "--lr -1.0"),
    "share": (("--val-share", 2), "between 0 and 1"),
    "plot": (("--plot", "gone/curves.png"), "no such folder"),
    "no weights": (("--weights", "DEFAULT"), "there are none"),
    "a factory of other classes": (("--model", "tests.factories:small"), "2 outputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_message(name: str) -> None:
    words, told = BAD[name]
    ran = train(*words)
    assert ran.code == 2, ran.err
    assert told in ran.err
    assert not list(Path().glob("*.safetensors"))


@pytest.mark.parametrize("broken", [b"", b"<html>not found</html>"])
def test_files_that_are_no_images_are_told_before_anything_is_trained(broken: bytes, tmp_path: Path) -> None:
    assert train("--output", "net.safetensors").code == 0
    for name in ("0.png", "3.png"):
        (tmp_path / "photos" / "train" / "green" / name).write_bytes(broken)
    cut = surgeon_cli("prune", "--model", "net.safetensors", "--filters", 1, "--device", "cpu", "--data", "photos",
                      "--epochs", 1, "--output", "small.safetensors")  # fmt: skip
    for ran in (train("--output", "again.safetensors"), cut):
        assert ran.code == 2
        assert "photos/train/green/0.png: can't be read" in ran.err
        assert "1 more of 28 are broken, too; remove what is broken" in ran.err
        assert "epoch" not in ran.err
    assert not Path("again").exists()
    assert not Path("small").exists()


def test_classes_of_other_names_are_told(tmp_path: Path) -> None:
    assert train("--output", "net.safetensors").code == 0
    draw(tmp_path / "others", 4, classes=2)
    assert "WARNING: classes" not in surgeon_cli("evaluate", "net.safetensors", "--data", "photos").err
    (tmp_path / "others" / "blue").rename(tmp_path / "others" / "indigo")  # and so the order is another one
    told = "classes: green, indigo; net.safetensors was trained on blue, green"
    cut = ("prune", "--model", "net.safetensors", "--filters", 1, "--device", "cpu", "--samples", 4)
    for words in (("evaluate", "net.safetensors"), cut, (*cut, "--epochs", 1, "--train-batch-size", 6),
                  ("sensitivity", "--model", "net.safetensors", "--ratios", 0.5)):  # fmt: skip
        ran = surgeon_cli(*words, "--data", "others")
        assert ran.code == 0, ran.err
        assert told in ran.err


# ---------------------------------------------------------------- models from elsewhere

OWN = "tests.factories:sized"


def test_a_factory_that_takes_num_classes_gets_a_head_and_says_how_its_images_are_made() -> None:
    ran = train("--output", "net.safetensors", model=OWN)
    assert ran.code == 0, ran.err
    assert "new head: head.weight, head.bias" in ran.err
    assert f"use it as --model net.safetensors --factory {OWN}," in ran.err
    origin = read_header("net.safetensors").origin
    assert origin is not None
    assert (origin["factory"], origin["kwargs"]) == (OWN, {"num_classes": 2})
    assert Preprocess.from_dict(origin["preprocess"]) == sized.preprocess  # type: ignore[attr-defined]
    ran = train(model="tests.factories:small")
    assert ran.code == 2
    assert "has not the 2 outputs that the data needs: make it so, or let its factory take num_classes=" in ran.err


def test_its_file_goes_through_every_command_with_the_factory() -> None:
    assert train("--output", "net.safetensors", "--keep-epoch", 0, model=OWN).code == 0
    seen = ("--data", "photos", "--device", "cpu")
    cut = ("prune", "--model", "net.safetensors", "--filters", 4, *seen, "--train-batch-size", 6, "--epochs", 1)
    ran = surgeon_cli(*cut)
    assert ran.code == 2
    assert f"that {OWN} made; a file makes no code run by itself: give --factory {OWN}" in " ".join(ran.err.split())
    made = ("--factory", OWN)
    ran = surgeon_cli(*cut, *made, "--rewind", "net/epoch-0.safetensors", "--output", "small.safetensors")
    assert ran.code == 0, ran.err
    for words in (
        ("evaluate", "net.safetensors", "small.safetensors", *seen),
        ("bench", "small.safetensors", "--against", "net.safetensors", "--rounds", 2, "--device", "cpu", "--cpu-time"),
        ("inspect", "small.safetensors"),
        ("sensitivity", "--model", "net.safetensors", *seen, "--ratios", 0.5),
        ("compare", "--model", "net.safetensors", *seen, "--criteria", "magnitude,random"),
        ("sparsify", "--model", "small.safetensors", "--amount", 0.5),
        ("train", "--model", "net.safetensors", *seen, "--epochs", 0, "--output", "again.safetensors"),
        ("prune", "--model", "small.safetensors", "--filters", 2, "--criterion", "magnitude", "--device", "cpu",
         "--output", "smaller.safetensors"),
    ):  # fmt: skip
        ran = surgeon_cli(*words, *made)
        assert ran.code == 0, (words, ran.err)
    twice = surgeon.load("smaller.safetensors", lambda: sized(2))
    assert twice(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
    assert sum(m.out_channels for m in twice.modules() if isinstance(m, nn.Conv2d)) == 14


def test_outputs_that_a_file_does_not_have_are_not_made_for_it() -> None:
    """The number in a header, which anyone may have written, makes no head larger than the file's own tensors."""
    asked: list[int] = []

    def make(num_classes: int = 5) -> nn.Module:
        asked.append(num_classes)
        return sized(num_classes)

    factories.counting = make  # type: ignore[attr-defined]
    model = sized(2).eval()
    plan = surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(model, torch.zeros(1, 3, 16, 16))))
    for count in (2, 10**6):
        surgeon.save("net.safetensors", model, plan, {"factory": OWN, "kwargs": {"num_classes": count}})
        surgeon_cli("inspect", "net.safetensors", "--factory", "tests.factories:counting")
    assert asked == [2, 5]
