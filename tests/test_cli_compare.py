"""surgeon compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import surgeon
from surgeon.criteria import CRITERIA
from tests.cli_run import surgeon_cli
from tests.factories import Small

SMALL = "tests.factories:small"
WORDS = ("--model", SMALL, "--image-size", 16, "--samples", 6, "--batch-size", 4, "--device", "cpu")


def test_correlations_and_losses_as_json() -> None:
    ran = surgeon_cli("compare", *WORDS, "--criteria", "magnitude,lamp,fpgm", "--ratio", 0.4, "--json")
    assert ran.code == 0, ran.err
    torch.manual_seed(0)  # as the command makes the model
    graph = surgeon.channel_graph(surgeon.trace(Small().eval(), torch.randn(1, 3, 16, 16)))
    found = surgeon.score_all(graph, ["magnitude", "lamp", "fpgm"])
    expected = spearmanr(np.stack([scores.normalised[graph.removable] for scores in found.values()], axis=1)).statistic
    told = [[ran.json["spearman"][one][other] for other in found] for one in found]
    np.testing.assert_allclose(told, expected, atol=1e-12)
    for name, scores in found.items():
        plan = surgeon.make_plan(graph, scores, ratio=0.4)
        assert ran.json["removed"][name] == {group: len(channels) for group, channels in plan.removed.items()}
        assert sum(ran.json["removed"][name].values()) == 8
    assert ran.json["groups"] == {"first": 8, "second": 12}
    assert ran.json["budget"] == {"ratio": 0.4, "scope": "global"}


def test_all_criteria_in_tables() -> None:
    ran = surgeon_cli("compare", *WORDS, "--criteria", "all", "--max-macs", "50%")
    assert ran.code == 0, ran.err
    assert ran.out == ""
    for told in (*CRITERIA, "Spearman", "first", "second", "max_macs 50%", "MACs left", "the model's own predictions"):
        assert told in ran.err


def test_macs_left_are_within_the_budget() -> None:
    ran = surgeon_cli("compare", *WORDS, "--criteria", "taylor,random", "--max-macs", 0.5, "--json")
    assert all(0.2 < share <= 0.5 for share in ran.json["macs"].values())
    assert ran.json == surgeon_cli("compare", *WORDS, "--criteria", "taylor,random", "--max-macs", 0.5, "--json").json


def test_images_are_read_only_where_a_criterion_needs_them(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / label / "a.png")
    (tmp_path / "dog" / "b.png").write_text("no image")
    with_data = surgeon_cli("compare", *WORDS, "--data", tmp_path, "--criteria", "fisher", "--json")
    assert any("ranked on 2 images" in note for note in with_data.json["notes"])
    assert with_data.err.count("broken image(s) skipped") == 1
    assert surgeon_cli("compare", *WORDS, "--data", tmp_path, "--criteria", "lamp", "--json").json["notes"] == []


def test_a_criterion_that_tells_nothing_apart_correlates_with_nothing() -> None:
    ran = surgeon_cli("compare", "--model", "tests.test_cli_compare:one_scale", *WORDS[2:], "--criteria",
                      "bn-scale,random", "--json")  # fmt: skip
    assert ran.json["spearman"]["bn-scale"]["random"] is None
    assert ran.json["spearman"]["random"]["random"] == pytest.approx(1)


def one_scale() -> torch.nn.Module:
    conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
    return torch.nn.Sequential(conv(3, 6, 3), norm(6), conv(6, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--criteria", "taylr"), "did you mean 'taylor'"),
        (("--criteria", ","), "give at least one of: taylor"),
        (("--ratio", 0.5, "--filters", 3), "--filters and --ratio together"),
        (("--ratio", 1.5), "'1.5': give a share between 0 and 1"),
        (("--ratio", "0.2,0.4"), "'0.2,0.4': give a share"),
        (("--lr", 0.1, "--plot", "a.png"), "--lr and --plot are for an experiment: give --experiment FILE"),
        (
            ("--experiment", "grid.json", "--criteria", "lamp", "--ratio", 0.5),
            "--ratio and --criteria are said by the experiment",
        ),
        (("--filters", 5000), "at most 18"),
        (("--data", "nosuch"), "no such folder"),
        (("--model", "resnet81"), "did you mean"),
    ],
)
def test_bad_input(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli("compare", *WORDS, *words)
    assert ran.code == 2, ran.err
    assert told in ran.err
    assert "ranking:" not in ran.err  # before the images are looked at
