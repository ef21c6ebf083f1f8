"""surgeon.sensitivity: each figure against a cut made by hand, coupled layers together, reasons for what stays."""

from __future__ import annotations

import csv
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import surgeon
from surgeon import finegrained
from surgeon.criteria import CRITERIA, Request
from surgeon.sweeps import WHOLE, Curve, Point, Sensitivity
from surgeon.sweeps.judging import Judge
from surgeon.tuning import Validation
from surgeon_cli.commands import sensitivity as command
from tests.cli_run import surgeon_cli
from tests.factories import Small, Tied
from tests.pictures import draw

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 5
LOADER = [(IMAGES[:16], LABELS[:16]), (IMAGES[16:], LABELS[16:])]


class Shortcut(nn.Module):
    """Two convolutions whose outputs are added, so their channels go together; one inside that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Spelled(nn.Module):
    """Its forward spells a width out, so that layer stays."""

    def __init__(self) -> None:
        super().__init__()
        self.free = nn.Conv2d(3, 6, 3, padding=1)
        self.held = nn.Conv2d(6, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.held(F.relu(self.free(x))))
        scores: Tensor = self.head(x.view(-1, 4 * 64))
        return scores


def sweep(model: nn.Module, **options: Any) -> Sensitivity:
    return surgeon.sensitivity(model.eval(), IMAGES[:1], LOADER, **options)


def named(found: Sensitivity) -> dict[str, Curve]:
    return {curve.name: curve for curve in found.curves}


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return model.__class__().eval()


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(IMAGES), LABELS))


# ---------------------------------------------------------------- filters


def test_a_groups_figures_are_those_of_cutting_it_alone() -> None:
    model = made(Small())
    curve = named(sweep(model, ratios=[0.25, 0.5]))["first"]
    for point, count in zip(curve.points, (2, 4), strict=True):
        assert point.removed == count
        result = surgeon.prune(model, IMAGES[:1], filters=count, criterion="magnitude", ignored_layers=["second"])
        assert point.loss == pytest.approx(loss_of(result.model), rel=1e-5)
        assert point.macs == pytest.approx(result.report.macs_after / result.report.macs_before)
        assert point.threshold is not None
    assert curve.points[0].threshold != curve.points[1].threshold


def test_the_whole_network_comes_first_and_is_ranked_together() -> None:
    model = made(Small())
    found = sweep(model, ratios=[0.5])
    assert found.curves[0].name == WHOLE
    small = surgeon.prune(model, IMAGES[:1], ratio=0.5, criterion="magnitude").model
    assert found.curves[0].points[0].loss == pytest.approx(loss_of(small), rel=1e-5)
    assert found.dense.loss == pytest.approx(loss_of(model), rel=1e-5)


def test_coupled_layers_are_one_curve_that_names_them() -> None:
    curves = named(sweep(made(Shortcut()), ratios=[0.5]))
    assert set(curves["first"].layers) == {"first", "outer"}
    assert "outer" not in curves
    assert curves["first"].size == 8


def test_what_cant_be_cut_has_a_reason_and_no_figures() -> None:
    curves = named(sweep(made(Spelled()), ratios=[0.5]))
    assert curves["free"].points
    for name, reason in (("head", "output"), ("held", "constant")):
        assert curves[name].points == ()
        assert str(curves[name].reason).startswith(reason)
    assert "test_sweeps.py" in str(curves["held"].source)


def test_a_width_in_large_steps_gives_no_figure_where_nothing_can_go() -> None:
    point = named(sweep(made(Small()), ratios=[0.05, 0.5]))["first"].points[0]
    assert (point.removed, point.loss, point.accuracy, point.threshold) == (0, None, None, None)


def test_the_model_is_left_as_it_is() -> None:
    model = made(Small()).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for what in ("filters", "weights"):
        surgeon.sensitivity(model, IMAGES[:1], LOADER, what=what, ratios=[0.5])
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_layers_can_be_chosen_and_a_name_of_none_is_told() -> None:
    assert list(named(sweep(made(Small()), ratios=[0.5], layers=["fir*"]))) == [WHOLE, "first"]
    for what in ("filters", "weights"):
        with pytest.raises(surgeon.SelectionError, match=r"third.*leave them out to sweep all"):
            sweep(made(Small()), ratios=[0.5], layers=["third"], what=what)
    assert list(named(sweep(made(Small()), ratios=[0.5], layers="first"))) == [WHOLE, "first"]


@pytest.mark.parametrize(
    "wrong", [{"layers": ["third"]}, {"layers": ["third"], "what": "weights"}, {"criterion": "tailor"}]
)
def test_names_of_none_are_told_before_anything_is_measured(wrong: dict[str, Any]) -> None:
    data = Stopping()
    with pytest.raises(surgeon.SelectionError):
        surgeon.sensitivity(made(Small()), IMAGES[:1], data, ratios=[0.5], **wrong)
    assert not data.passes


def test_a_criterion_of_ones_own_ranks_as_in_a_cut(tmp_path: Path) -> None:
    def mine(request: Request) -> Any:
        return CRITERIA["magnitude"].score(request)

    found = sweep(made(Small()), ratios=[0.5], criterion=mine, directory=tmp_path)
    assert found.criterion == "mine"
    plain = sweep(made(Small()), ratios=[0.5], criterion="magnitude")
    assert [c.points for c in found.curves][1:] == [c.points for c in plain.curves][1:]  # the whole network is ranked
    with pytest.raises(surgeon.CheckpointError, match="criterion='mine'"):
        sweep(made(Small()), ratios=[0.5], criterion="magnitude", directory=tmp_path)


def test_one_sweep_at_a_time_is_at_work_in_a_folder(tmp_path: Path) -> None:
    refused = []

    def another(*_: Any) -> None:
        with pytest.raises(surgeon.BusyError):
            sweep(made(Small()), ratios=[0.3], directory=tmp_path)
        refused.append(True)

    sweep(made(Small()), ratios=[0.5], directory=tmp_path, progress=another)
    assert refused


# ---------------------------------------------------------------- weights


def test_masks_take_exactly_the_smallest_weights() -> None:
    model = made(Small())
    curve = named(sweep(model, what="weights", ratios=[0.3, 0.6]))["second"]
    weight = model.get_parameter("second.weight").detach()
    order = weight.abs().flatten().sort().values
    for point, share in zip(curve.points, (0.3, 0.6), strict=True):
        count = int(weight.numel() * share)
        assert point.removed == count
        assert point.threshold == pytest.approx(float(order[count - 1]))
        masked = made(Small())
        with torch.no_grad():
            masked.get_parameter("second.weight")[weight.abs() <= order[count - 1]] = 0
        assert point.loss == pytest.approx(loss_of(masked), rel=1e-5)


def test_one_threshold_for_the_whole_network_and_one_for_each_kind() -> None:
    model = made(Small())
    curves = named(sweep(model, what="weights", ratios=[0.5]))
    weights = {
        n: p.detach().abs().flatten() for n, p in model.named_parameters() if n.endswith("weight") and p.ndim > 1
    }
    assert curves[WHOLE].size == sum(map(len, weights.values()))
    assert curves[WHOLE].points[0].threshold == pytest.approx(
        float(torch.cat(list(weights.values())).quantile(0.5)), rel=1e-2
    )
    assert set(curves["all convolutions"].layers) == {"first", "second"}
    assert curves["all linear layers"].layers == ("head",)


def test_masks_that_are_there_stay_and_none_is_left_behind() -> None:
    model = made(Small())
    finegrained.sparsify(model, 0.4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    curves = named(sweep(model, what="weights", ratios=[0.2, 0.6]))
    masked = made(Small())
    finegrained.sparsify(masked, 0.4)
    finegrained.sparsify(masked, 0.6)
    first, second = curves[WHOLE].points
    assert (first.removed, first.loss) == (0, None)  # two fifths are gone anyhow
    assert second.loss == pytest.approx(loss_of(masked), rel=1e-5)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    plain = made(Small())
    assert named(sweep(plain, what="weights", ratios=[0.6]))["second"].points[0].loss == pytest.approx(
        loss_of(_only(plain, "second", 0.6)), rel=1e-5
    )


def _only(model: nn.Module, layer: str, share: float) -> nn.Module:
    masked = made(model)
    finegrained.sparsify(masked, {layer: share})
    return masked


def test_a_shared_weight_is_masked_once() -> None:
    curves = named(sweep(made(Tied()), what="weights", ratios=[0.5]))
    assert "again" not in curves
    assert curves[WHOLE].size == 3 * 8 * 9 + 8 * 8 * 9 + 8 * 5


def test_a_weight_that_is_computed_is_never_called_robust() -> None:
    model = made(Small())
    parametrizations.weight_norm(model.get_submodule("second"))
    curves = named(sweep(model, what="weights", ratios=[0.9]))
    held = [c for c in curves.values() if not c.points]
    assert any(c.name == "second" and "computed from other tensors" in str(c.reason) for c in held)
    assert "second" not in {layer for c in curves.values() if c.points for layer in c.layers}


# ---------------------------------------------------------------- what it says


def test_tolerated_is_the_last_ratio_before_the_first_loss() -> None:
    points = tuple(
        Point(ratio, 1, 1.0, 1.0, accuracy, 1.0)
        for ratio, accuracy in ((0.1, 0.9), (0.3, 0.89), (0.5, 0.5), (0.7, 0.9))
    )
    found = Sensitivity("filters", "magnitude", Validation(1.0, 0.9), (Curve("a", ("a",), 4, points),))
    assert found.tolerated(found.curves[0], 0.011) == 0.3
    assert found.tolerated(found.curves[0], 0.0) == 0.1
    assert found.tolerated(Curve("b", ("b",), 4, (), "output"), 1.0) is None


def test_losses_alone_where_nothing_can_be_right() -> None:
    found = surgeon.sensitivity(
        made(Small()), IMAGES[:1], LOADER, ratios=[0.5], forward_loss=lambda m, batch: m(batch[0]).square().mean(1)
    )
    assert found.dense.accuracy is None
    assert found.curves[0].points[0].loss is not None


def test_a_table_with_a_row_for_everything() -> None:
    found = sweep(made(Spelled()), ratios=[0.3, 0.5])
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["ratio"] for row in rows if row["name"] == "free"] == ["0.3", "0.5"]
    assert [row["reason"] for row in rows if row["name"] == "head"] == ["output"]


@pytest.mark.parametrize("wrong", [{"ratios": []}, {"ratios": [0.0]}, {"ratios": [1.0]}, {"what": "biases"}])
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(surgeon.SelectionError, match=next(iter(wrong))):
        sweep(made(Small()), **wrong)


class Stopping:
    """The judging data, whose n-th pass is interrupted."""

    def __init__(self, after: int = 0) -> None:
        self.left, self.passes = after, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return iter(LOADER)


@pytest.mark.parametrize("what", ["filters", "weights"])
def test_a_sweep_that_was_stopped_goes_on_with_what_it_has(what: str, tmp_path: Path) -> None:
    model, options = made(Shortcut()), {"ratios": (0.3, 0.6), "what": what, "dataloader": LOADER}
    whole = surgeon.sensitivity(model, IMAGES[:1], LOADER, **options)  # type: ignore[arg-type]  # a mixture of options
    run = {**options, "directory": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        surgeon.sensitivity(model, IMAGES[:1], Stopping(4), **run)  # type: ignore[arg-type]
    rest = Stopping()
    again = surgeon.sensitivity(model, IMAGES[:1], rest, **run)  # type: ignore[arg-type]
    assert again == whole
    measured = sum(point.loss is not None for curve in whole.curves for point in curve.points)
    assert rest.passes == 1 + measured - 2  # the dense model, and all but the two that there were
    with pytest.raises(surgeon.CheckpointError, match="its sweep has seed=0, this one 1"):
        surgeon.sensitivity(model, IMAGES[:1], LOADER, seed=1, **run)  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_parameter("head.bias").add_(torch.arange(5.0))
    with pytest.raises(surgeon.CheckpointError, match="its sweep has loss="):
        surgeon.sensitivity(model, IMAGES[:1], LOADER, **run)  # type: ignore[arg-type]
    (tmp_path / "run" / "points.json").write_text("{}")
    with pytest.raises(surgeon.CheckpointError, match="damaged"):
        surgeon.sensitivity(model, IMAGES[:1], LOADER, **run)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the command


def test_the_command_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sensitivity", "--model", "tests.factories:small", "--image-size", 16, "--samples", 6,
             "--ratios", "0.3,0.6", "--device", "cpu", "--run", "state")  # fmt: skip
    real, calls = Judge.__call__, iter(range(99))

    def stopping(self: Judge, model: nn.Module) -> Validation:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(self, model)

    monkeypatch.setattr(Judge, "__call__", stopping)
    ran = surgeon_cli(*words)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "stopped; the same command with --resume goes on from here"
    assert "holds a run; go on with it" in surgeon_cli(*words).err
    ran = surgeon_cli(*words, "--resume")
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == []  # nothing stays


def test_figures_stay_until_the_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("sensitivity", "--model", "tests.factories:small", "--image-size", 16, "--samples", 6,
             "--ratios", "0.5", "--device", "cpu", "--csv", "a.csv")  # fmt: skip

    def full(path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_text", full)
        ran = surgeon_cli(*words)
    assert (ran.code, "a.csv: No space left on device" in ran.err) == (1, True)
    monkeypatch.setattr(Judge, "_write", lambda _self: pytest.fail("measured again"))
    ran = surgeon_cli(*words, "--resume")
    assert ran.code == 0, ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("what", ["filters", "weights"])
def test_the_command_on_a_folder(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos" / "train", 6)
    draw(tmp_path / "photos" / "val", 3, seed=1)
    ran = surgeon_cli("sensitivity", "--model", "tests.factories:two_classes", "--image-size", 16, "--data", "photos",
                      "--what", what, "--ratios", "0.3,0.6", "--device", "cpu", "--csv", "a.csv", "--plot", "a.svg",
                      "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["images"] == "6 images of photos (val), accuracy"
    assert ran.json["curves"][0]["name"] == WHOLE
    assert [p["ratio"] for p in ran.json["curves"][0]["points"]] == [0.3, 0.6]
    assert "within 1 points" in ran.err
    assert (what == "weights") or "head: output" in ran.err
    assert Path("a.csv").read_text().startswith("name,layers,size")
    assert Path("a.svg").stat().st_size > 1000


def test_the_command_without_labels_measures_agreement() -> None:
    ran = surgeon_cli("sensitivity", "--model", "tests.factories:small", "--image-size", 16, "--samples", 6,
                      "--ratios", "0.5", "--criterion", "taylor", "--device", "cpu", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["dense"]["accuracy"] == 1.0
    assert ran.json["criterion"] == "taylor"
    assert "agreement with the dense model" in ran.err


def test_the_command_ranks_at_random_alike_for_the_same_seed() -> None:
    thresholds = []
    for seed in (1, 1, 2):
        ran = surgeon_cli("sensitivity", "--model", "tests.factories:small", "--image-size", 16, "--samples", 4,
                          "--ratios", "0.5", "--criterion", "random", "--seed", seed, "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        thresholds.append([point["threshold"] for curve in ran.json["curves"] for point in curve["points"]])
    assert thresholds[0] == thresholds[1] != thresholds[2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ratios", "a"), "0.1,0.3"),
        (("--ratios", "2"), "above 0 and below 1"),
        (("--data", "nowhere"), "no such folder"),
        (("--layer", "third"), "third"),
        (("--csv", "gone/a.csv"), "no such folder"),
        (("--criterion", "tailor"), "taylor"),
        (("--criterion", "lamp", "--what", "weights"), "--criterion is for --what filters: weights go by their size"),
        (("--part", "val"), "--part is for images of your own: give --data DIR"),
    ],
)
def test_bad_input_is_one_clear_message(words: tuple[str, ...], told: str) -> None:
    ran = surgeon_cli("sensitivity", "--model", "tests.factories:small", "--image-size", 16, "--samples", 4,
                      "--device", "cpu", *words)  # fmt: skip
    assert ran.code == 2, ran.err
    assert told in ran.err
