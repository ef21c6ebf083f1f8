"""surgeon sparsify and surgeon share, from the options to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon
from surgeon import finegrained
from surgeon.checkpoint import read_header
from surgeon_cli.files import is_file
from tests import factories
from tests.cli_run import Ran, surgeon_cli
from tests.pictures import draw
from tests.test_cli_prune import folder
from tests.test_data import write_binary

MODEL = "tests.factories:two_classes"
CODEBOOK = "second.parametrizations.weight.original"


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(command: str, *words: object, model: object = MODEL) -> Ran:
    size = () if is_file(str(model)) else ("--image-size", 16)  # a file knows it
    return surgeon_cli(command, "--model", model, *size, *words)


def test_sparsify_writes_a_file_with_masks() -> None:
    ran = run("sparsify", "--amount", 0.75, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["sparsity"] == 0.75
    assert ran.json["output"] == "two_classes-sparse.safetensors"
    assert ran.json["file_bytes"] == Path("two_classes-sparse.safetensors").stat().st_size
    assert "smaller, not faster" in ran.err
    model = finegrained.unpack("two_classes-sparse.safetensors", factories.two_classes)
    zero = sum(int((~mask.bool()).sum()) for name, mask in model.named_buffers() if name.endswith("_mask"))
    assert zero == 0.75 * ran.json["weights"]


def test_cifar_is_looked_for_where_that_is_said() -> None:
    write_binary(Path("copies"))
    for command, words in (("sparsify", ("--amount", 0.5)), ("share", ())):
        words = (*words, "--data", "cifar10", "--data-root", "copies", "--samples", 8)
        ran = run(command, *words, model="cifar:resnet20-x0.1")
        assert ran.code == 0, ran.err
        assert "the right class" in ran.err


def test_kinds_apart_and_layers_that_stay() -> None:
    ran = run("sparsify", "--amount", "conv=0.5,linear=0.25", "--ignore", "first", "--output", "s", "--json")
    assert ran.code == 0, ran.err
    assert {row["name"]: row["after"] for row in ran.json["layers"]} == {"second": 432, "head": 18}
    assert "first: ignored" in ran.err


def test_by_gradient_on_a_folder(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=3, dog=3)
    ran = run("sparsify", "--amount", 0.3, "--by", "gradient", "--data", data, "--json")
    assert ran.code == 0, ran.err
    assert 0 <= ran.json["accuracy"] <= 1
    assert 0 <= ran.json["agreement"] <= 1
    assert "of 6 images" in ran.err


@pytest.mark.parametrize(("command", "how"), [("sparsify", ("--amount", 0.6)), ("share", ("-k", 2))])
def test_healing_changes_what_is_left_and_nothing_else(tmp_path: Path, command: str, how: tuple[Any, ...]) -> None:
    data = folder(tmp_path / "d", cat=8, dog=8)
    words = (*how, "--data", data, "--samples", 6, "--output")
    plain, healed = run(command, *words, "plain", "--json"), run(command, *words, "healed", "--heal", "lstsq", "--json")
    assert plain.code == healed.code == 0, healed.err
    assert "6 of them heal, 6 judge" in healed.err
    assert "of 6 images" in healed.err
    assert {**healed.json, **dict.fromkeys(("output", "agreement", "accuracy", "file_bytes"))} == {
        **plain.json, **dict.fromkeys(("output", "agreement", "accuracy", "file_bytes")),
    }  # fmt: skip
    models = [finegrained.unpack(name, factories.two_classes) for name in ("plain", "healed")]
    tensors = [dict(model.named_buffers()) | dict(model.named_parameters()) for model in models]
    kinds = ("_mask", "index", "first.weight_orig", "first.parametrizations.weight.original")
    for some in tensors:  # which weights are there; one that is may go over to another of the values
        some.update({name: tensor != 0 for name, tensor in some.items() if name.endswith("index")})
    same = {name: torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items() if name.endswith(kinds)}
    assert all(equal == name.endswith(kinds[:2]) for name, equal in same.items())
    assert len(same) >= 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sparsify", "--amount", 0.5, "--heal", "lstsq"), "--heal needs images: give --data DIR"),
        (("share", "--sweep", "2,3", "--heal", "bn"), "leave out --heal"),
        (("share", "--heal", "gram"), "'gram' is not one of"),
    ],
)
def test_healing_that_cannot_be_is_refused(words: tuple[Any, ...], told: str) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert told in ran.err


def test_one_image_cannot_both_heal_and_judge(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=1) / "cat"
    ran = run("sparsify", "--amount", 0.5, "--data", data, "--heal", "lstsq")
    assert ran.code == 2
    assert "--heal needs two images at least" in ran.err
    assert not list(Path().glob("*.safetensors"))


def test_a_seed_draws_random_weights_and_images_alike_each_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(factories.two_classes().state_dict(), "w.pt")
    data = folder(tmp_path / "d", cat=8, dog=8)
    drawn = ("--weights", "w.pt", "--data", data, "--samples", 3, "--heal", "lstsq")
    for words in ((), drawn):  # random weights; the same weights, healed on images that are drawn
        values = []
        for seed in (1, 1, 2):
            ran = run("share", "-k", 4, *words, "--seed", seed, "--output", "shared")
            assert ran.code == 0, ran.err
            values.append(finegrained.unpack("shared", factories.two_classes).get_parameter(CODEBOOK))
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2])


def test_share_writes_a_file_with_codebooks() -> None:
    ran = run("share", "-k", 4, "--json")
    assert ran.code == 0, ran.err
    assert [row["values"] for row in ran.json["layers"]] == [4, 4, 4]
    assert ran.json["rate"] > 5
    model = finegrained.unpack("two_classes-shared.safetensors", factories.two_classes)
    assert model.get_parameter(CODEBOOK).shape == (4,)


def test_training_keeps_masks_and_trains_shared_values_as_such() -> None:
    draw(Path("photos"), 10)
    assert run("sparsify", "--amount", 0.75, "--output", "sparse.safetensors").code == 0
    made = ("--factory", MODEL, "--data", "photos", "--epochs", 1, "--batch-size", 6, "--device", "cpu", "--lr", 0.1)
    ran = surgeon_cli("train", "--model", "sparse.safetensors", *made, "--keep-epoch", 1, "--output", "a.safetensors")
    assert ran.code == 0, ran.err
    assert "its masks stay" in ran.err
    before, after = (finegrained.unpack(f"{f}.safetensors", factories.two_classes) for f in ("sparse", "a"))
    for name, mask in before.named_buffers():
        if name.endswith("_mask"):
            assert torch.equal(mask.bool(), after.get_buffer(name).bool())
    assert not torch.equal(before.get_parameter("second.weight_orig"), after.get_parameter("second.weight_orig"))
    kept = surgeon.load("a/epoch-1.safetensors", factories.two_classes)
    assert torch.equal(
        kept.get_parameter("second.weight"), finegrained.plain_copy(after).get_parameter("second.weight")
    )

    assert run("share", "-k", 3, "--factory", MODEL, "--output", "shared.safetensors", model="a.safetensors").code == 0
    ran = surgeon_cli("train", "--model", "shared.safetensors", *made, "--output", "b.safetensors")
    assert ran.code == 0, ran.err
    before, after = (surgeon.load(f"{f}.safetensors", factories.two_classes) for f in ("shared", "b"))
    for name in ("first.weight", "second.weight", "head.weight"):
        old, new = (model.get_parameter(name) for model in (before, after))
        assert len(set(new.flatten().tolist())) <= 4  # three and zero
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)


def test_a_cut_says_that_masks_end_there() -> None:
    assert run("sparsify", "--amount", 0.75, "--output", "sparse.safetensors").code == 0
    words = ("--factory", MODEL, "--filters", 2, "--criterion", "magnitude", "--device", "cpu")
    ran = surgeon_cli("prune", "--model", "sparse.safetensors", *words)
    assert ran.code == 0, ran.err
    assert "its masks and shared values end here; cut first" in ran.err


def test_a_sweep_writes_nothing(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=2, dog=2)
    ran = run("share", "--sweep", "2,8", "--data", data, "--json")
    assert ran.code == 0, ran.err
    assert [row["k"] for row in ran.json["sweep"]] == [2, 8]
    assert ran.json["sweep"][0]["rate"] > ran.json["sweep"][1]["rate"]
    assert {"agreement", "accuracy"} <= ran.json["sweep"][0].keys()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_cut_file_goes_on_into_both() -> None:
    cut = run("prune", "--filters", 6, "--samples", 4, "--output", "cut.safetensors")
    assert cut.code == 0, cut.err
    sparse = run("sparsify", "--amount", 0.5, "--factory", MODEL, "--json", model="cut.safetensors")
    assert sparse.code == 0, sparse.err
    assert sparse.json["output"] == "cut-sparse.safetensors"
    shared = run("share", "-k", 3, "--factory", MODEL, "--json", model="cut-sparse.safetensors")
    assert shared.code == 0, shared.err
    assert sum(row["zeros"] for row in shared.json["layers"]) == sparse.json["weights"] - sparse.json["after"]
    file = shared.json["output"]
    assert read_header(file).plan.removed == read_header("cut.safetensors").plan.removed
    model = surgeon.load(file, factories.two_classes)
    assert len(set(model.get_parameter("second.weight").flatten().tolist())) == 4
    timed = surgeon_cli("inspect", file, "--model", MODEL, "--json")
    assert timed.code == 0, timed.err


BAD: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "no amount": ("sparsify", (), "nothing given"),
    "two amounts": ("sparsify", ("--amount", 0.5, "--std", 1), "--amount and --std"),
    "an amount of all": ("sparsify", ("--amount", 1), "--amount 1"),
    "no number": ("sparsify", ("--amount", "half"), "'half'"),
    "no such kind": ("sparsify", ("--amount", "covn=0.5"), "did you mean 'conv'"),
    "no images": ("sparsify", ("--amount", 0.5, "--by", "gradient"), "--data DIR"),
    "no folder": ("sparsify", ("--amount", 0.5, "--data", "nowhere"), "no such folder"),
    "no layer": ("sparsify", ("--amount", 0.5, "--ignore", "zz*"), "zz*"),
    "no place": ("sparsify", ("--amount", 0.5, "--output", "no/such/file"), "no such folder"),
    "no values": ("share", ("-k", 0), "--values 0"),
    "half a value": ("share", ("-k", "2.5"), "'2.5'"),
    "no list": ("share", ("--sweep", "4;9"), "4,9,13,35"),
    "a sweep to a file": ("share", ("--sweep", "4,9", "--output", "x"), "writes nothing"),
    "not finite": ("share", ("--model", "tests.factories:not_a_number"), "finite"),
    "no file": ("share", ("--model", "none.safetensors"), "none.safetensors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_writes_nothing(case: str, tmp_path: Path) -> None:
    command, words, told = BAD[case]
    ran = run(command, *words)
    assert ran.code == 2
    assert told in ran.err
    assert list(tmp_path.iterdir()) == []


def test_images_of_a_size_that_a_file_does_not_take_are_told() -> None:
    torch.manual_seed(0)
    finegrained.pack("own.safetensors", factories.flat(), example_inputs=torch.zeros(1, 3, 16, 16))
    data = folder(Path("d"), cat=2, dog=2)
    words = ("share", "--model", "own.safetensors", "--factory", "tests.factories:flat", "--data", data)
    assert surgeon_cli(*words).code == 0
    ran = surgeon_cli(*words, "--image-size", 20)
    assert ran.code == 2
    assert "rejects images of shape (1, 3, 20, 20)" in ran.err


def test_a_file_whose_model_is_unknown_says_what_to_give() -> None:
    torch.manual_seed(0)
    finegrained.pack("own.safetensors", factories.small(), example_inputs=torch.zeros(1, 3, 16, 16))
    ran = run("share", model="own.safetensors")
    assert ran.code == 2
    assert "--factory package.module:factory" in ran.err
