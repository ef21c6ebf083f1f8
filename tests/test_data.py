"""Data: local copies of CIFAR in every form, folders with parts, what is held out, and random changes."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from surgeon.data import Augment, Preprocess, Split, batches, hold_out, open_data
from surgeon.data.preprocess import reduce
from surgeon.errors import InputError
from tests.pictures import draw

MADE = Preprocess(size=8, resize=8)


def some(count: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    return chance.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % classes


def python_file(path: Path, pixels: np.ndarray, key: str, labels: np.ndarray) -> None:
    """As the published files are written: protocol 2 of Python 2, text and pixels as byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + struct.pack("<B", len(value)) + value

    data = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01bq\x04\x87Rq\x05(K\x01K\x02"
         b"\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
         b"T" + struct.pack("<i", len(data)) + data + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([int(label)]) for label in labels) + b"e"
    entries = text(b"batch_label") + text(b"training batch 1 of 5") + text(key.encode()) + numbers
    names = b"](" + text(b"a.png") * len(labels) + b"e"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x80\x02}q\x01(" + entries + text(b"data") + array + text(b"filenames") + names + b"u.")


def write_python(root: Path) -> None:
    for number in range(1, 6):
        python_file(root / "cifar-10-batches-py" / f"data_batch_{number}", *with_key(some(20, number)))
    python_file(root / "cifar-10-batches-py" / "test_batch", *with_key(some(10, 9)))


def with_key(part: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, str, np.ndarray]:
    return part[0], "labels", part[1]


def write_binary(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (pixels, labels) in {
        **{f"data_batch_{number}": some(20, number) for number in range(1, 6)}, "test_batch": some(10, 9)
    }.items():  # fmt: skip
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels.reshape(len(pixels), -1)], axis=1)
        rows.tofile(folder / f"{name}.bin")


def write_arrays(root: Path) -> None:
    root.mkdir(parents=True)
    parts = [some(20, number) for number in range(1, 6)]
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    np.savez(root / "cifar10_train.npz", images=pixels.transpose(0, 2, 3, 1), labels=labels)
    test_pixels, test_labels = some(10, 9)
    np.savez(root / "cifar10_test.npz", images=test_pixels.transpose(0, 2, 3, 1), labels=test_labels)


@pytest.mark.parametrize("write", [write_python, write_binary, write_arrays])
def test_every_form_of_cifar_is_the_same_data(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path / "root")
    data = open_data("cifar10", tmp_path / "root")
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.test is not None
    expected = np.concatenate([some(20, number)[0] for number in range(1, 6)])
    assert isinstance(data.train.pixels, Tensor)
    assert isinstance(data.test.pixels, Tensor)
    assert np.array_equal(data.train.pixels.numpy(), expected)
    assert np.array_equal(data.test.pixels.numpy(), some(10, 9)[0])
    assert data.train.labels.tolist() == [number % 10 for number in range(20)] * 5


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    pixels, labels = some(200, 3, 100)
    python_file(tmp_path / "a" / "cifar-100-python" / "train", pixels, "fine_labels", labels)
    python_file(tmp_path / "a" / "cifar-100-python" / "test", pixels[:100], "fine_labels", labels[:100])
    folder = tmp_path / "b" / "cifar-100-binary"
    folder.mkdir(parents=True)
    coarse = np.stack([labels // 5, labels], axis=1).astype(np.uint8)
    rows = np.concatenate([coarse, pixels.reshape(200, -1)], axis=1)
    rows.tofile(folder / "train.bin")
    rows[:100].tofile(folder / "test.bin")
    for place in ("a", "b"):
        data = open_data("cifar100", tmp_path / place)
        assert data.train.labels.tolist() == labels.tolist()
        assert torch.equal(data.train.pixels, torch.from_numpy(pixels))  # type: ignore[arg-type]  # it is in memory
        assert len(data.classes) == 100


def test_a_pickle_is_never_carried_out(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(InputError, match="0 blocks of images"):
        open_data("cifar10", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"junk" * 1000])
def test_damaged_files_are_named(content: bytes, tmp_path: Path) -> None:
    write_python(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(InputError, match="data_batch_3"):
        open_data("cifar10", tmp_path)


def test_no_copy_tells_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar-10-batches-py.*cifar10_train\.npz.*Nothing is downloaded"):
        open_data("cifar10", tmp_path)


# ---------------------------------------------------------------- folders


def test_a_folder_with_parts(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 3), ("val", 2)):
        draw(tmp_path / part, count)
    data = open_data(str(tmp_path))
    assert data.classes == ("blue", "green")
    assert [len(part) for part in (data.train, data.val, data.test) if part is not None] == [10, 4, 6]
    assert data.with_validation(0.5) is data


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    draw(tmp_path / "vehicles", 3)
    (tmp_path / "vehicles" / "blue").rename(tmp_path / "vehicles" / "train")
    found = open_data(str(tmp_path / "vehicles"))
    assert (found.classes, len(found.train), found.test) == (("green", "train"), 6, None)


def test_a_plain_folder_is_for_training_and_some_is_held_out(tmp_path: Path) -> None:
    data = open_data(str(draw(tmp_path / "d", 10)))
    assert (data.val, data.test) == (None, None)
    parts = data.with_validation(0.2, seed=1)
    assert parts.val is not None
    assert (len(parts.train), len(parts.val)) == (16, 4)
    assert torch.bincount(parts.val.labels).tolist() == [2, 2]
    assert set(parts.train.files) | set(parts.val.files) == set(data.train.files)
    assert not set(parts.train.files) & set(parts.val.files)


def test_a_class_that_training_doesnt_know(tmp_path: Path) -> None:
    draw(tmp_path / "train", 2)
    draw(tmp_path / "val", 2, classes=3)
    with pytest.raises(InputError, match="'red' is not among"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_shares_that_cant_be_held_out(share: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        hold_out(Split(torch.tensor([0, 0, 1, 1])), share)


def test_one_image_of_a_class_cant_be_held_out() -> None:
    with pytest.raises(InputError, match="class 1 has one training image"):
        hold_out(Split(torch.tensor([0, 0, 1])), 0.5)
    with pytest.raises(InputError, match="class 'dog' has one training image"):
        hold_out(Split(torch.tensor([0, 0, 1])), 0.5, classes=("cat", "dog"))


def test_a_class_folder_without_images_is_refused_since_it_would_shift_the_labels(tmp_path: Path) -> None:
    draw(tmp_path, 2, classes=3)
    (tmp_path / ".cache").mkdir()
    assert len(open_data(str(tmp_path)).classes) == 3
    (tmp_path / "before").mkdir()
    with pytest.raises(InputError, match="before: a class folder without images; fill it, or remove it"):
        open_data(str(tmp_path))


def test_hidden_files_and_folders_are_none_of_the_images(tmp_path: Path) -> None:
    draw(tmp_path, 2, classes=3)
    before = open_data(str(tmp_path))
    draw(tmp_path / ".thumbnails", 2, classes=2)  # a file manager's
    classes = [tmp_path / name for name in before.classes]
    draw(classes[0] / ".ipynb_checkpoints", 2, classes=2)  # a notebook's
    image = next(classes[1].iterdir())
    shutil.copy(image, classes[1] / f"._{image.name}")  # macOS's
    after = open_data(str(tmp_path))
    assert after.classes == before.classes
    assert after.train.files == before.train.files


def test_drawing_is_even_over_classes_and_repeatable() -> None:
    split = Split(torch.tensor([0] * 20 + [1] * 20 + [2] * 20), torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1))
    one, again, other = (split.drawn(9, seed) for seed in (1, 1, 2))
    assert torch.bincount(one.labels).tolist() == [3, 3, 3]
    assert torch.equal(one.pixels, again.pixels)  # type: ignore[arg-type]  # it is in memory
    assert not torch.equal(one.pixels, other.pixels)  # type: ignore[arg-type]  # it is in memory


# ---------------------------------------------------------------- batches


def test_batches_without_changes_are_in_order_and_normalised() -> None:
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    split = Split(torch.arange(5), pixels)
    images, labels = zip(*batches(split, MADE, 2), strict=True)
    assert torch.equal(torch.cat(images), MADE.normalise(pixels))
    assert torch.cat(labels).tolist() == [0, 1, 2, 3, 4]


def test_a_batch_of_one_is_left_out_of_training_alone() -> None:
    split = Split(torch.zeros(5, dtype=torch.long), torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    assert [len(labels) for _, labels in batches(split, MADE, 2, Augment())] == [2, 2]
    assert [len(labels) for _, labels in batches(split, MADE, 2)] == [2, 2, 1]


def test_moving_takes_every_place_and_brings_zeros() -> None:
    images = torch.ones(400, 1, 4, 4)
    moved = Augment(crop=1, flip=False)(images, moved=False)
    assert moved.shape == images.shape
    sums = moved.sum((1, 2, 3))
    assert set(sums.tolist()) == {9.0, 12.0, 16.0}


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(3.0).expand(1000, 1, 1, 3)
    mirrored = Augment(crop=0)(images, moved=False)[:, 0, 0, 0] == 2
    assert 400 < int(mirrored.sum()) < 600


def test_cutout_hides_one_square_that_may_stand_over_the_border() -> None:
    cut = Augment(crop=0, flip=False, cutout=4)(torch.ones(500, 2, 8, 8), moved=False)
    hidden = (cut == 0).sum((2, 3))
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert int(hidden.max()) == 16
    assert int(hidden.min()) == 4  # its centre in a corner: two by two pixels


def test_photographs_are_cropped_at_random_for_training_only(tmp_path: Path) -> None:
    data = open_data(str(draw(tmp_path / "d", 2, side=40)))
    plain, again = (next(iter(batches(data.train, MADE, 4)))[0] for _ in range(2))
    assert torch.equal(plain, again)
    torch.manual_seed(0)
    first, second = (next(iter(batches(data.train, MADE, 4, Augment(flip=False))))[0] for _ in range(2))
    assert first.shape == plain.shape
    assert not torch.equal(first, second)


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path) -> None:
    slopes = np.linspace(0, 255, 1200)[:, None, None] * np.linspace(0.2, 1, 1600)[None, :, None]
    path = tmp_path / "large.jpg"
    Image.fromarray(np.broadcast_to(slopes, (1200, 1600, 3)).astype(np.uint8)).save(path, quality=95)
    with Image.open(path) as image:
        reduce(image, 100)
        assert image.size == (200, 150)  # an eighth; the next would be below
        whole = Image.open(path).convert("RGB")
        small, large = (MADE.pixels(each).int() for each in (Image.open(path), whole))
    assert (small - large).abs().max() <= 2
    with Image.open(path) as image:
        reduce(image, 700)
        assert image.size == (1600, 1200)


GREY = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_grey_are_scaled(name: str, channels: int, tmp_path: Path) -> None:
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        Image.fromarray(GREY).save(tmp_path / label / name)
    data = open_data(str(tmp_path)).checked()
    made = Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3, channels)
    expected = np.rint(GREY / 257) / 255
    images, _ = next(iter(batches(data.train, made, 2)))
    assert images.shape == (2, channels, 8, 8)
    assert torch.allclose(images, torch.from_numpy(expected).float().expand_as(images))
    parts, _ = next(iter(batches(data.train, made, 2, Augment())))  # a random part
    assert 0.2 < parts.mean() < 0.8


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_an_image_whose_white_is_not_known_is_refused_at_once(kind: type, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "one" / "a.tif"
    for label in ("one", "two"):
        (tmp_path / label).mkdir()
        Image.fromarray(GREY.astype(kind)).save(tmp_path / label / "a.tif")
    data = open_data(str(tmp_path))
    for reads in (data.checked, lambda: data.train.loaded(MADE)):
        with pytest.raises(InputError, match=f"{file}: can't be read .its mode {mode} doesn't say which"):
            reads()


def test_twelve_bits_are_no_sixteen() -> None:
    image = Image.fromarray(GREY)
    vars(image)["tag_v2"] = {258: (12,)}  # as Pillow opens such a TIFF
    with pytest.raises(ValueError, match="its mode I;16"):
        MADE.pixels(image)


def test_alpha_is_dropped() -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert MADE.pixels(image)[:, 0, 0].tolist() == [10, 20, 30]


def test_images_in_memory_are_scaled_to_the_model() -> None:
    split = Split(torch.zeros(2, dtype=torch.long), torch.full((2, 3, 4, 4), 200, dtype=torch.uint8))
    images, _ = next(iter(batches(split, MADE, 2)))
    assert images.shape == (2, 3, 8, 8)
    assert torch.allclose(images, MADE.normalise(torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)), atol=1e-6)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    data = open_data(str(draw(tmp_path / "d", 2)))
    data.train.files[1].write_bytes(b"junk")
    with pytest.raises(InputError, match=data.train.files[1].name):
        list(batches(data.train, MADE, 2))


@pytest.mark.parametrize("fields", [{"crop": -1}, {"cutout": 0.5}])
def test_changes_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="pixels"):
        Augment(**fields)


def test_preprocessing_from_a_file_is_checked() -> None:
    assert Preprocess.from_dict(MADE.to_dict()) == MADE
    for wrong in (None, {}, {**MADE.to_dict(), "size": 10**9}, {**MADE.to_dict(), "std": [0, 1, 1]}, {"size": "x"}):
        assert Preprocess.from_dict(wrong) is None


def test_digits_come_with_scikit_learn_and_have_a_fixed_test_part() -> None:
    found = open_data("digits")
    assert found.test is not None
    assert found.train.pixels is not None
    assert found.train.pixels.shape[1:] == (1, 8, 8)
    assert (int(found.train.pixels.min()), int(found.train.pixels.max())) == (0, 255)
    assert len(found.train) + len(found.test) == 1797
    assert found.classes == tuple("0123456789")
    again = open_data("digits").test
    assert again is not None
    assert torch.equal(again.labels, found.test.labels)


def test_grey_images_in_memory_for_a_model_that_takes_colours() -> None:
    grey = Split(torch.tensor([0, 1]), torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4))
    images, _ = next(iter(batches(grey, Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3), 2)))
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])
    colours = Split(torch.tensor([0]), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"takes images of 1 channel\(s\), these have 3"):
        batches(colours, Preprocess(8, 8, channels=1), 1)
