"""surgeon prune, from the options to the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import surgeon
from surgeon_cli import weights as sources
from tests import factories
from tests.cli_run import Ran, surgeon_cli

SMALL = ("--image-size", 16, "--samples", 4)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, an empty cache and no network."""

    def reach(url: str) -> None:
        raise sources.Unreachable(f"no answer from {url} within 10 s")

    monkeypatch.setattr(sources, "reach", reach)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def prune(*words: object, model: str = "tests.factories:small") -> Ran:
    return surgeon_cli("prune", "--model", model, *SMALL, *words)


def folder(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 18), (number * 40 % 255, 80, 10)).save(root / name / f"{number}.png")
    return root


# ---------------------------------------------------------------- the way it should go


def test_removes_exactly_so_many_filters_and_the_file_opens() -> None:
    ran = prune("--filters", 6, "--output", "out.safetensors", "--json")
    assert ran.code == 0, ran.err
    report = ran.json["report"]
    assert report["filters_before"] - report["filters_after"] == 6
    assert report["check"]["status"] == "passed"
    model = surgeon.load("out.safetensors", factories.small)
    widths = [module.out_channels for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(widths) == 14
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_tells_the_numbers_the_check_and_the_place_on_standard_error() -> None:
    ran = prune("--filters", 3)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    for told in (
        "convolution filters",
        "1 multiply-add = 1",
        "parameters",
        "check: passed",
        "output",
        "own predictions",
    ):
        assert told in ran.err
    assert "written: small-pruned.safetensors" in ran.err
    assert Path("small-pruned.safetensors").exists()


def test_dry_run_writes_nothing_and_shows_the_plan() -> None:
    ran = prune("--filters", 3, "--dry-run")
    assert ran.code == 0, ran.err
    assert "plan (group" in ran.err
    assert "dry run: no model written" in ran.err
    assert not list(Path().glob("*.safetensors"))


def test_a_seed_makes_a_run_repeatable() -> None:
    words = ("--filters", 5, "--criterion", "random", "--dry-run", "--json", "--seed")
    plans = [prune(*words, seed).json["plan"]["removed"] for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_the_largest_seed(criterion: str) -> None:
    ran = prune("--filters", 5, "--seed", 2**63 - 1, "--criterion", criterion, "--output", "out.safetensors")
    assert ran.code == 0, ran.err
    assert isinstance(surgeon.load("out.safetensors", factories.small), torch.nn.Module)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random"])
def test_criteria(criterion: str) -> None:
    ran = prune("--ratio", 0.5, "--criterion", criterion, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["report"]["filters_after"] < 20
    assert ("photographs" in ran.err) == (criterion == "taylor")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "surgeon evaluate small-pruned.safetensors --data DIR shows how accurate it is"),
        (("--dry-run",), "in several --steps N"),
        (("--heal", "bn"), None),
    ],
)
def test_what_to_do_about_a_cut_that_nothing_made_up_for_is_the_last_line(
    words: tuple[object, ...], told: str | None
) -> None:
    ran = prune("--filters", 3, *words)
    assert ran.code == 0, ran.err
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("next: ") == (told is not None)
    assert told is None or ("--heal lstsq" in last and last.endswith(told))


def test_auto_draws_labels_where_there_are_none_as_the_library_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, found = folder(tmp_path / "d", cat=4, dog=4), list[tuple[bool, bool]]()

    def stop(*_: object, dataloader: Any, loss_fn: object, **__: object) -> None:
        found.append((isinstance(next(iter(dataloader)), torch.Tensor), loss_fn is None))
        raise surgeon.errors.BudgetError("seen")

    monkeypatch.setattr(surgeon, "prune", stop)
    for criterion, model in (("auto", "small"), ("fisher", "small"), ("auto", "two_classes")):
        words = ("--ratio", 0.3, "--criterion", criterion, "--data", data)
        assert "seen" in prune(*words, model=f"tests.factories:{model}").err
    assert found == [(True, True), (False, False), (False, False)]


def test_auto_cuts_by_drawn_labels_and_says_so() -> None:
    ran = prune("--ratio", 0.3, "--criterion", "auto", "--heal", "lstsq", "--samples", 16, "--batch-size", 4, "--json")
    assert ran.code == 0, ran.err
    assert "targets: drawn from the model's own predictions" in ran.json["report"]["notes"]
    assert ran.json["report"]["check"]["status"] == "passed"


@pytest.mark.parametrize(
    ("words", "told"), [(("--filters", 2), True), (("--filters", 6, "--schedule", "linear"), False)]
)
def test_filters_in_every_step_or_in_all(words: tuple[object, ...], told: bool) -> None:
    ran = prune(*words, "--steps", 3, "--criterion", "magnitude", "--json", "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.json["report"]["filters_before"] - ran.json["report"]["filters_after"] == 6
    assert ("2 filters in each of 3 steps, 6 in all" in ran.err) == told


def test_a_budget_in_steps() -> None:
    ran = prune("--filters", 2, "--steps", 3, "--heal", "lstsq", "--criterion", "auto", "--json")
    assert ran.code == 0, ran.err
    report = ran.json["report"]
    assert report["filters_before"] - report["filters_after"] == 6
    assert report["check"]["status"] == "passed"
    assert ran.json["plan"]["budget"]["steps"] == 3
    assert surgeon.load("small-pruned.safetensors", factories.small)(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_budget_in_macs_and_parameters() -> None:
    ran = prune("--max-macs", "50%", "--max-params", "0.7", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    report = ran.json["report"]
    assert report["macs_after"] <= 0.5 * report["macs_before"]
    assert report["params_after"] <= 0.7 * report["params_before"]


def test_ignored_layers_keep_their_filters() -> None:
    ran = prune("--filters", 4, "--ignore", "sec*", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    widths = {row["name"]: row["after"] for row in ran.json["report"]["layers"]}
    assert (widths["first"], widths["second"]) == (4, 12)


def test_units_stay_with_what_enters_them() -> None:
    ran = prune("--filters", 2, "--unit", "sec*", "--dry-run", "--json")
    assert ran.code == 2
    assert "first: ignored" in ran.err
    assert "second: ignored" in ran.err


def test_without_verification_the_report_says_so() -> None:
    ran = prune("--filters", 2, "--no-verify", "--dry-run")
    assert ran.code == 0
    assert "check: not done" in ran.err


# ---------------------------------------------------------------- weights


def test_unreachable_weights_are_a_loud_warning_that_stands_in_the_report() -> None:
    ran = prune("--filters", 2, "--image-size", 32, "--json", model="squeezenet1_1")
    assert ran.code == 0, ran.err
    assert "WARNING: RANDOM WEIGHTS" in ran.err
    assert any("RANDOM WEIGHTS" in warning for warning in ran.json["report"]["warnings"])
    assert isinstance(surgeon.load("squeezenet1_1-pruned.safetensors"), torch.nn.Module)


def test_unreachable_weights_that_were_asked_for_are_an_error() -> None:
    ran = prune("--filters", 2, "--weights", "DEFAULT", model="squeezenet1_1")
    assert ran.code == 2
    assert "--weights none" in ran.err


def test_random_weights_that_were_asked_for_are_no_warning() -> None:
    ran = prune("--filters", 2, "--image-size", 32, "--weights", "none", "--dry-run", model="squeezenet1_1")
    assert ran.code == 0, ran.err
    assert "WARNING" not in ran.err


# ---------------------------------------------------------------- data


def test_a_folder_with_the_models_classes_gives_the_targets(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=4, dog=4)
    ran = prune("--filters", 2, "--data", data, "--dry-run", model="tests.factories:two_classes")
    assert ran.code == 0, ran.err
    assert "the folder's 2 classes" in ran.err


def test_other_classes_mean_the_models_own_predictions(tmp_path: Path) -> None:
    ran = prune("--filters", 2, "--data", folder(tmp_path / "d", cat=4, dog=4), "--dry-run")
    assert ran.code == 0, ran.err
    assert "own predictions; the folder's 2 classes are not the model's 5" in ran.err


def test_a_broken_image_is_named_and_skipped_or_refused(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=1, dog=1)
    (data / "cat" / "bad.jpg").write_bytes(b"no image")
    ran = prune("--filters", 2, "--data", data, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert "1 broken image(s) skipped" in ran.err
    assert any("bad.jpg" in warning for warning in ran.json["report"]["warnings"])
    ran = prune("--filters", 2, "--data", data, "--strict")
    assert ran.code == 2
    assert "bad.jpg" in ran.err


def test_places_are_told_as_the_user_gave_them(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=2, dog=2)
    (data / "cat" / "bad.jpg").write_bytes(b"no image")
    torch.save(factories.Small().state_dict(), "w.pt")
    ran = prune("--filters", 2, "--data", "./d/", "--weights", "./w.pt", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert "ranked on 4 images of ./d/ (2 classes)" in ran.json["report"]["notes"]
    assert "weights: ./w.pt" in ran.json["report"]["notes"]
    assert "bad.jpg" in ran.err
    assert str(tmp_path) not in ran.out + ran.err


def test_a_module_that_raises_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken_module_for_surgeon.py").write_text("1 / 0")
    ran = prune("--filters", 2, model="broken_module_for_surgeon:make")
    assert ran.code == 2
    assert "importing broken_module_for_surgeon raised ZeroDivisionError: division by zero" in ran.err


def test_an_output_that_is_no_regular_file_is_refused_and_stays(tmp_path: Path) -> None:
    os.mkfifo("pipe")
    ran = prune("--filters", 2, "--output", "pipe")
    assert ran.code == 2
    assert "pipe: is a device or a pipe" in ran.err
    assert Path("pipe").is_fifo()
    assert list(Path().iterdir()) == [Path("pipe")]


def test_an_output_that_is_a_link_stays_one() -> None:
    Path("deep").mkdir()
    Path("link").symlink_to("deep/small.safetensors")
    ran = prune("--filters", 2, "--output", "link")
    assert ran.code == 0, ran.err
    assert Path("link").is_symlink()
    assert isinstance(surgeon.load("deep/small.safetensors", factories.small), torch.nn.Module)


def test_images_that_nobody_looks_at_are_told(tmp_path: Path) -> None:
    data = folder(tmp_path / "d", cat=1, dog=1)
    ran = prune("--filters", 2, "--criterion", "random", "--data", data, "--dry-run")
    assert ran.code == 0, ran.err
    assert "--data and --samples are not looked at" in ran.err


# ---------------------------------------------------------------- bad input


def raises() -> torch.nn.Module:
    raise RuntimeError("no config.yaml\nsecond line")


def leaves() -> torch.nn.Module:
    raise SystemExit(3)


BAD: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "unknown model": (("--model", "resnet81", "--filters", 1), ("resnet81", "did you mean", "resnet18")),
    "unknown module": (("--model", "no.such:thing", "--filters", 1), ("no.such", "imported")),
    "unknown factory": (("--model", "tests.factories:smal", "--filters", 1), ("smal", "did you mean small")),
    "factory of no module": (("--model", "tests.factories:no_module", "--filters", 1), ("int", "Module")),
    "zero filters": (("--filters", 0), ("--filters 0", "at least 1")),
    "negative filters": (("--filters", -3), ("--filters -3",)),
    "more than can go": (("--filters", 19), ("18",)),
    "filters and ratio": (("--filters", 3, "--ratio", 0.5), ("--filters and --ratio", "alone")),
    "filters and max": (("--filters", 3, "--max-macs", "50%"), ("--filters and --max-macs",)),
    "no amount": ((), ("--filters", "--ratio", "--max-macs")),
    "ratio above 1": (("--ratio", 1.5), ("--ratio", "between 0 and 1")),
    "no number": (("--max-macs", "lots"), ("lots", "50%")),
    "no folder": (("--filters", 2, "--data", "nowhere"), ("nowhere", "no such folder")),
    "forward rejects": (
        ("--filters", 2, "--model", "alexnet", "--weights", "none"),
        ("(1, 3, 16, 16)", "--image-size"),
    ),
    "not a number": (("--filters", 2, "--model", "tests.factories:not_a_number"), ("finite",)),
    "nothing to cut": (
        ("--filters", 1, "--criterion", "random", "--model", "tests.factories:nothing_to_cut"),
        ("output",),
    ),
    "scripted": (("--filters", 1, "--model", "tests.factories:scripted"), ("Script",)),
    "lazy": (("--filters", 1, "--model", "tests.factories:lazy"), ("lazy",)),
    "quantised": (("--filters", 1, "--model", "tests.factories:quantised"), ("uanti",)),
    "quantised zoo model": (("--filters", 1, "--model", "quantized_resnet18"), ("quantised",)),
    "no scores": (("--filters", 1, "--model", "tests.factories:no_scores"), ("--criterion magnitude",)),
    "unknown criterion": (("--filters", 1, "--criterion", "tailor"), ("tailor", "taylor")),
    "unknown layer": (("--filters", 1, "--ignore", "third*"), ("third*",)),
    "unknown device": (("--filters", 1, "--device", "abacus"), ("abacus", "cpu")),
    "no weights file": (("--filters", 1, "--weights", "gone.pt"), ("gone.pt", "No such file")),
    "output in no folder": (("--filters", 1, "--output", "gone/x.safetensors"), ("gone", "no such folder")),
    "output is a folder": (("--filters", 1, "--output", "."), ("folder",)),
    "negative seed": (("--filters", 1, "--seed", -1), ("--seed", "-1")),
    "huge seed": (("--filters", 1, "--seed", 99999999999999999999999), ("--seed", "9999")),
    "factory raises": (
        ("--filters", 1, "--model", "tests.test_cli_prune:raises"),
        ("tests.test_cli_prune:raises", "RuntimeError: no config.yaml"),
    ),
    "factory leaves": (
        ("--filters", 1, "--model", "tests.test_cli_prune:leaves"),
        ("tests.test_cli_prune:leaves", "SystemExit"),
    ),
    "relative module": (("--filters", 1, "--model", ".factories:small"), ("package.module:factory",)),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")  # the model under test is lazy
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")  # scripted on purpose
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor")  # quantised on purpose
@pytest.mark.filterwarnings("ignore:.*torch.ao")  # the same, in other versions
def test_bad_input_is_one_clear_message(name: str) -> None:
    words, told = BAD[name]
    kept = Path("small-pruned.safetensors")
    kept.write_bytes(b"precious")
    ran = surgeon_cli("prune", *SMALL, *(() if "--model" in words else ("--model", "tests.factories:small")), *words)
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    for fragment in told:
        assert fragment in ran.err
    assert kept.read_bytes() == b"precious"
    assert [path.name for path in Path().iterdir()] == [kept.name]


@pytest.mark.parametrize(
    ("classes", "told"), [({}, "holds no images"), ({"cat": 3}, "one class folder only ('cat')")], ids=["empty", "one"]
)
def test_folders_that_are_refused(tmp_path: Path, classes: dict[str, int], told: str) -> None:
    (tmp_path / "d").mkdir()
    ran = prune("--filters", 2, "--data", folder(tmp_path / "d", **classes))
    assert ran.code == 2
    assert told in ran.err


def test_a_cut_that_fails_its_check_is_exit_code_1_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise surgeon.errors.VerificationError("first differs at second")

    monkeypatch.setattr(surgeon, "prune", fail)
    ran = prune("--filters", 2)
    assert ran.code == 1
    assert "first differs at second" in ran.err
    assert not list(Path().iterdir())


def test_a_full_disk_leaves_the_existing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Path("small-pruned.safetensors")
    kept.write_bytes(b"precious")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "small-pruned.safetensors")

    monkeypatch.setattr(surgeon, "save", full)
    ran = prune("--filters", 2)
    assert ran.code == 1
    assert "No space left on device" in ran.err
    assert kept.read_bytes() == b"precious"
