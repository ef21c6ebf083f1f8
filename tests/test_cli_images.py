"""Images, targets and the loss that ranking uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from surgeon.data import scan
from surgeon.errors import InputError, ModelError
from surgeon.tuning import objectives
from surgeon_cli.images import Images, Preprocess, batches, drawn, find, loss, photographs, scores_of

MADE = Preprocess(size=8, resize=8)
CPU = torch.device("cpu")


def test_crops_of_the_photographs_are_repeatable_and_differ_by_seed() -> None:
    first, again, other = (photographs(4, MADE, seed).pixels for seed in (0, 0, 1))
    assert first.shape == (4, 3, 8, 8)
    assert first.dtype is torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalising_gives_zero_for_the_mean_colour() -> None:
    made = Preprocess(mean=(0.2, 0.4, 0.6), std=(0.5, 0.5, 0.5))
    pixels = torch.tensor([51, 102, 153], dtype=torch.uint8).view(1, 3, 1, 1)
    assert made.normalise(pixels).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(20, 9), (9, 20), (3, 3), (8, 8)])
def test_images_of_every_shape_become_squares(size: tuple[int, int]) -> None:
    assert MADE.pixels(Image.new("RGB", size)).shape == (3, 8, 8)
    assert Preprocess(8, 8, channels=1).pixels(Image.new("RGBA", size)).shape == (1, 8, 8)


def write(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), colour).save(path)


def test_classes_are_drawn_evenly_and_broken_ones_replaced(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / "many" / f"{number}.png", 10)
    for number in range(2):
        write(tmp_path / "few" / "deeper" / f"{number}.PNG", 200)
    (tmp_path / "few" / "bad.jpg").write_bytes(b"")
    found = drawn(scan(tmp_path), 5, MADE, 0)
    assert found.classes == ("few", "many")
    assert found.labels is not None
    assert (found.labels.count(0), found.labels.count(1)) == (2, 3)
    values = found.pixels[:, 0, 0, 0]
    assert [200 if label == 0 else 10 for label in found.labels] == values.tolist()


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "b.bmp", 2)
    (tmp_path / "notes.txt").write_text("no image")
    found = drawn(scan(tmp_path), 9, MADE, 0)
    assert found.labels is None
    assert len(found.pixels) == 2
    assert str(tmp_path) in found.notes[0]


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        write(tmp_path / name, 0)
        (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(InputError, match="none of its 2 images"):
        drawn(scan(tmp_path), 4, MADE, 0)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match="not a folder"):
        scan(tmp_path / "a.png")


def images(labels: tuple[int, ...] | None, classes: tuple[str, ...]) -> Images:
    pixels = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(pixels, labels, classes, ())


def test_targets_are_the_labels_where_classes_agree() -> None:
    loader = batches(images((0, 1, 1, 0), ("a", "b")), torch.zeros(1, 2), MADE, 3, CPU)
    assert [targets.tolist() for _, targets in loader] == [[0, 1, 1], [0]]
    assert len(loader) == 2
    assert loader.loss is loss


def test_targets_are_predictions_elsewhere() -> None:
    loader = batches(images((0, 1, 1, 0), ("a", "b")), torch.zeros(1, 7), MADE, 4, CPU)
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    ((_, targets),) = loader
    assert loader.loss is not None
    assert torch.equal(
        loader.loss(scores, targets), torch.nn.functional.cross_entropy(scores, scores.argmax(1), reduction="none")
    )
    assert "not the model's 7" in loader.notes[-1]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 2)])
def test_loss_is_one_number_for_each_example(shape: tuple[int, ...]) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    targets = scores.argmax(1)
    whole = torch.nn.functional.cross_entropy(scores, targets)
    each = loss({"out": scores}, targets)
    assert each.shape == (4,)
    assert torch.allclose(each.mean(), whole)


def test_training_and_ranking_see_the_same_scores() -> None:
    scores, other = torch.zeros(4, 5), torch.ones(4, 3)
    for outputs in ({"loss": other, "logits": scores}, {"aux": other, "out": scores}, [scores, other], {"any": scores}):
        assert scores_of(outputs) is objectives.scores_of(outputs) is scores


@pytest.mark.parametrize("outputs", [torch.zeros(3), torch.zeros(3, 1), {}, [], [{"boxes": torch.zeros(1, 4)}]])
def test_outputs_without_scores_are_refused(outputs: Tensor | dict[str, Tensor] | list[object]) -> None:
    with pytest.raises(ModelError, match="--criterion magnitude"):
        scores_of(outputs)


def test_digits_are_a_source_like_a_folder() -> None:
    found = drawn(find("digits"), 20, MADE, 0)
    assert found.labels is not None
    assert sorted(found.labels) == sorted(list(range(10)) * 2)
    assert found.pixels.shape == (20, 3, 8, 8)
    assert found.notes == ("ranked on 20 training images of digits (10 classes)",)
