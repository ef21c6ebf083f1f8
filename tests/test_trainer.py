"""surgeon.train: what is trained on, what judges, the frozen phase, and runs that are interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon.data import Augment, Data, Preprocess, Split
from surgeon.errors import CheckpointError, SelectionError, TuningError
from surgeon.trainer import Row
from surgeon.tuning import evaluate, state, training
from surgeon.tuning.objectives import Objective
from tests.factories import Small

MADE = Preprocess(size=8, resize=8)
PLAIN = Augment(crop=1)


def colours(count: int = 24, classes: int = 2, *, test: bool = True, seed: int = 0) -> Data:
    """Images whose class is the channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(2):
        labels = torch.arange(count) % classes
        pixels = torch.randint(0, 120, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
        for label in range(classes):
            pixels[labels == label, label % 3] += 120
        parts.append(Split(labels, pixels))
    return Data("colours", tuple(map(str, range(classes))), parts[0], test=parts[1] if test else None)


def small(classes: int = 2) -> Small:
    torch.manual_seed(0)
    return Small(classes)


def train(model: nn.Module, data: Data, epochs: int = 3, **options: object) -> surgeon.Trained:
    given = {"preprocess": MADE, "augment": PLAIN, "batch_size": 8, "lr": 0.1, "device": "cpu", **options}
    return surgeon.train(model, data, epochs=epochs, **given)  # type: ignore[arg-type]  # a mixture of options


def test_learns_and_judges_on_images_that_training_never_saw() -> None:
    trained = train(small(), colours(), 8)
    assert trained.test is not None
    assert trained.test.accuracy == 1.0
    assert [row.epoch.number for row in trained.rows] == list(range(1, 9))
    assert trained.val.accuracy == trained.rows[trained.best_epoch - 1].epoch.val_accuracy


def test_the_test_images_have_no_influence() -> None:
    data = colours()
    other = Data(data.name, data.classes, data.train, test=Split(torch.zeros(4, dtype=torch.long),
                 torch.zeros(4, 3, 8, 8, dtype=torch.uint8)))  # fmt: skip
    states = [train(small(), which).model.state_dict() for which in (data, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_seed_decides_everything_that_is_drawn() -> None:
    weights = [train(small(), colours(), 1, seed=seed).model.get_parameter("first.weight") for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_top5_where_there_are_more_than_five_classes() -> None:
    trained = train(small(7), colours(42, 7), 1)
    assert trained.val.top5 is not None
    assert trained.val.accuracy is not None
    assert trained.val.accuracy <= trained.val.top5 <= 1
    assert trained.rows[0].epoch.val_top5 is not None
    assert train(small(), colours(), 1).val.top5 is None


def places() -> tuple[Tensor, Tensor]:
    """Scores (4, 7, 3, 3) of a segmentation, and targets of which some are passed over; all those of the last image."""
    draw = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(4, 7, 3, 3, generator=draw), torch.randint(0, 7, (4, 3, 3), generator=draw)
    targets[torch.rand(4, 3, 3, generator=draw) < 0.4] = -100
    targets[3] = -100
    return scores, targets


@pytest.mark.parametrize("ignored", [-100, 255, 2])
def test_targets_that_are_passed_over_are_no_questions(ignored: int) -> None:
    scores, targets = places()
    targets[targets == -100] = ignored
    asked = targets != ignored
    best = scores.movedim(1, -1)[asked].topk(5).indices == targets[asked][:, None]
    loss_fn = None if ignored == -100 else nn.CrossEntropyLoss(ignore_index=ignored)
    batches = [(scores[:2], targets[:2]), (scores[2:3], targets[2:3]), (scores[3:], targets[3:])]
    seen = evaluate(nn.Identity(), batches, Objective(loss_fn))
    assert seen.accuracy == pytest.approx(best[:, 0].double().mean().item())
    assert seen.top5 == pytest.approx(best.any(1).double().mean().item())
    assert seen.loss == pytest.approx(F.cross_entropy(scores, targets, ignore_index=ignored).item())


def test_targets_of_no_class_are_no_questions_whatever_the_loss() -> None:
    """A function of one's own doesn't say what it passes over."""
    scores, targets = places()
    asked = targets != -100
    right = (scores.argmax(1) == targets)[asked].double().mean().item()
    own = Objective(lambda found, given: F.cross_entropy(found, given, ignore_index=255))
    seen = evaluate(nn.Identity(), [(scores, targets.masked_fill(~asked, 255))], own)
    assert seen.accuracy == pytest.approx(right)


def test_nothing_to_judge_by_is_told() -> None:
    with pytest.raises(TuningError, match="none with a target that counts"):
        evaluate(nn.Identity(), [(torch.randn(2, 3), torch.full((2,), -100))])


def test_top5_counts_the_five_highest_scores() -> None:
    scores = torch.tensor(
        [[9.0, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3]]
    )
    seen = surgeon.tuning.evaluate(nn.Identity(), [(scores, torch.tensor([0, 4, 5, 0]))])
    assert (seen.accuracy, seen.top5) == (0.5, 0.75)


def test_first_the_head_alone() -> None:
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: dict[str, dict[str, Tensor]] = {}

    def on_epoch(rows: tuple[Row, ...]) -> None:
        seen[rows[-1].phase] = {name: p.detach().clone() for name, p in model.named_parameters()}

    trained = train(model, colours(), 1, frozen_epochs=1, on_epoch=on_epoch)
    moved = {phase: {n for n in before if not torch.equal(now[n], before[n])} for phase, now in seen.items()}
    assert moved["frozen"] == {"head.weight", "head.bias"}
    assert moved["all"] == set(before)
    assert [row.phase for row in trained.rows] == ["frozen", "all"]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(after: int, tmp_path: Path) -> None:
    whole = train(small(), colours(), 3, frozen_epochs=1, directory=tmp_path / "whole")

    def stop(rows: tuple[Row, ...]) -> None:
        if len(rows) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), colours(), 3, frozen_epochs=1, directory=tmp_path / "run", on_epoch=stop)
    again = train(small(), colours(), 3, frozen_epochs=1, directory=tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    for rows in lines:
        for row in rows:
            row.pop("seconds", None)
    assert lines[0] == lines[1]
    assert [row["phase"] for row in lines[0]] == ["frozen", "all", "all", "all", "final"]


@pytest.mark.parametrize(
    ("change", "told"),
    [({"augment": Augment(2)}, "augment"), ({"batch_size": 4}, "batch_size"), ({"val_share": 0.3}, "images|val_share")],
)
def test_a_folder_belongs_to_one_run(change: dict[str, object], told: str, tmp_path: Path) -> None:
    train(small(), colours(), 1, directory=tmp_path)
    with pytest.raises(CheckpointError, match=told):
        train(small(), colours(), 1, directory=tmp_path, **change)


def test_other_numbers_of_classes_are_told_before_training() -> None:
    with pytest.raises(TuningError, match=r"scores \(1, 5\).*2 classes"):
        train(small(5), colours())


def test_a_head_that_isnt_there() -> None:
    for head in (["tail.weight"], "tail.weight"):
        with pytest.raises(SelectionError, match=r"no parameter 'tail\.weight'; model\.named_parameters"):
            train(small(), colours(), 1, frozen_epochs=1, head=head)


def test_curves_become_a_picture(tmp_path: Path) -> None:
    from surgeon.plots import curves

    rows = train(small(7), colours(42, 7), 2).rows
    for kind in ("png", "svg", "pdf"):
        curves(rows, tmp_path / f"curves.{kind}")
        assert (tmp_path / f"curves.{kind}").stat().st_size > 1000
    with pytest.raises(surgeon.InputError, match=r"\.png, \.svg, \.pdf"):
        curves(rows, tmp_path / "curves.txt")


def test_early_weights_are_there_if_their_epoch_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed right behind an epoch doesn't go through it again."""
    write = state.write_state

    def killed(folder: Any, run: Any) -> None:
        write(folder, run)
        if len(run.history) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train(small(), colours(), 2, directory=tmp_path, keep_epochs=(1,))
    monkeypatch.setattr(training, "write_state", write)
    train(small(), colours(), 2, directory=tmp_path, keep_epochs=(1,))
    train(small(), colours(), 2, directory=tmp_path / "whole", keep_epochs=(1,))
    one, whole = (surgeon.load(folder / "epoch-1.safetensors", small) for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), whole.parameters(), strict=True))


def test_early_weights_are_kept_to_rewind_to(tmp_path: Path) -> None:
    model = small()
    first = {name: p.detach().clone() for name, p in model.state_dict().items()}
    seen: list[Tensor] = []
    train(
        model, colours(), 2, directory=tmp_path, keep_epochs=(0, 1),
        on_epoch=lambda _: seen.append(model.get_parameter("first.weight").detach().clone()),
    )  # fmt: skip
    early, later = (surgeon.load(tmp_path / f"epoch-{number}.safetensors", small) for number in (0, 1))
    assert all(torch.equal(value, first[name]) for name, value in early.state_dict().items())
    assert torch.equal(later.get_parameter("first.weight"), seen[0])
    assert not torch.equal(seen[0], seen[1])
    assert not (tmp_path / "epoch-2.safetensors").exists()
    with pytest.raises(TuningError, match="directory"):
        train(small(), colours(), 1, keep_epochs=(1,))
