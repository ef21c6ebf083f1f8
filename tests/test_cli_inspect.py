"""surgeon inspect."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest
import torch

import surgeon
from surgeon_cli.commands.inspect import to_dot
from tests import factories
from tests.cli_run import surgeon_cli
from tests.factories import Small

SMALL = "tests.factories:small"


def test_groups_and_pins_as_json() -> None:
    ran = surgeon_cli("inspect", SMALL, "--image-size", 16, "--json")
    assert ran.code == 0, ran.err
    sizes = {group["name"]: (group["size"], group["filters"]) for group in ran.json["groups"]}
    assert sizes == {"first": (8, 1), "second": (12, 1)}
    assert {"layer": "head", "reason": "output"}.items() <= ran.json["pinned"][0].items()
    tensors = {member["tensor"] for member in ran.json["groups"][0]["members"]}
    assert {"first.weight", "norm.weight", "second.weight"} <= tensors


def test_table_names_couplings_and_reasons() -> None:
    ran = surgeon_cli("inspect", SMALL, "--image-size", 16)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    for told in ("first", "second", "read by", "head: output"):
        assert told in ran.err


def test_a_file_that_is_not_cut_is_not_called_cut(tmp_path: Path) -> None:
    model = Small().eval()
    plan = surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(model, torch.zeros(1, 3, 16, 16))))
    surgeon.save(tmp_path / "net.safetensors", model, plan)
    ran = surgeon_cli("inspect", tmp_path / "net.safetensors", "--factory", SMALL)
    assert "net.safetensors: a Small; nothing is cut yet. What could go:" in " ".join(ran.err.split())


def test_a_pruned_file_and_a_dot_file(tmp_path: Path) -> None:
    file, dot = tmp_path / "s.safetensors", tmp_path / "s.dot"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "magnitude", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    ran = surgeon_cli("inspect", file, "--factory", SMALL, "--dot", dot, "--json")
    assert ran.code == 0, ran.err
    assert sum(ran.json["removed"].values()) == 6
    assert sum(group["size"] for group in ran.json["groups"]) == 14
    assert dot.read_text().startswith("digraph surgeon {")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("resnet81",), "did you mean"),
        (("gone.safetensors",), "gone.safetensors: No such file"),
        (("/nosuch.safetensors",), "/nosuch.safetensors: No such file"),
        (("/nosuch.st",), "/nosuch.st: No such file"),
        (("nosuch.pth",), "nosuch.pth: No such file"),
        (("no/such",), "no/such: No such file"),
        (("/",), "Is a directory"),
        (("tests.factories",), "unknown model"),
        ((SMALL, "--dot", "gone/x.dot"), "no such folder"),
        (("alexnet", "--image-size", 8), "rejects"),
    ],
)
def test_bad_input(words: tuple[object, ...], told: str) -> None:
    ran = surgeon_cli("inspect", *words)
    assert ran.code == 2
    assert told in ran.err


def test_a_file_from_elsewhere_asks_for_its_factory(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "random", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    for command in ("inspect", "bench"):
        ran = surgeon_cli(command, file)
        assert ran.code == 2
        assert "tests.factories:small" in ran.err
        assert "give --factory tests.factories:small" in ran.err
        assert "factory=" not in ran.err
    assert surgeon_cli("inspect", file, "--model", SMALL).code == 0


@pytest.mark.parametrize("command", ["bench", "evaluate", "export", "inspect", "report"])
def test_the_older_name_of_the_factory_is_in_no_help(command: str) -> None:
    shown = surgeon_cli(command, "--help").out
    assert "--factory package.module:factory" in shown
    assert "--model" not in shown


@pytest.mark.parametrize("option", ["--model", "--factory"])
@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_a_factory_that_raises_is_told(command: str, option: str, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "random", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    ran = surgeon_cli(command, file, option, "tests.test_cli_prune:raises")
    assert ran.code == 2
    assert "--factory tests.test_cli_prune:raises raised RuntimeError: no config.yaml" in ran.err


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_told_and_left(share: float, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "random", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    kept = file.read_bytes()[: int(share * file.stat().st_size)]
    file.write_bytes(kept)
    for command in ("inspect", "bench"):
        ran = surgeon_cli(command, file, "--factory", SMALL)
        assert ran.code == 2
        assert "damaged" in ran.err
    assert file.read_bytes() == kept


@pytest.mark.parametrize("command", [("inspect",), ("bench", "--device", "cpu"), ("export", "--format", "pt2")])
def test_images_of_another_size_go_into_a_file_or_are_refused(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, made, shape in (("flat", factories.flat(), (1, 3, 16, 16)), ("wide", torch.nn.Linear(4, 4), (1, 4))):
        plan = surgeon.Plan.empty(surgeon.channel_graph(surgeon.trace(made.eval(), torch.zeros(shape))))
        surgeon.save(f"{name}.safetensors", made, plan)
    sized = (*command[1:], "--image-size", 20)
    ran = surgeon_cli(command[0], "flat.safetensors", "--factory", "tests.factories:flat", *sized)
    assert ran.code == 2
    assert "flat.safetensors: its forward rejects images of shape (1, 3, 20, 20)" in ran.err
    ran = surgeon_cli(command[0], "wide.safetensors", "--factory", "tests.test_cli_inspect:wide", *sized)
    assert ran.code == 2
    assert "--image-size 20: wide.safetensors takes no images, but inputs of shape [(1, 4)]" in ran.err


def wide() -> torch.nn.Module:
    return torch.nn.Linear(4, 4)


def test_a_file_is_exported_for_images_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    file, target = tmp_path / "s.safetensors", tmp_path / "s.pt2"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "magnitude", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    ran = surgeon_cli("export", file, "--factory", SMALL, "--format", "pt2", "--image-size", 24, "-o", target)
    assert ran.code == 0, ran.err
    assert torch.export.load(target).module()(torch.zeros(2, 3, 24, 24)).shape == (2, 5)


def test_a_file_of_another_model_is_told(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    words = ("--model", SMALL, "--image-size", 16, "--filters", 6, "--criterion", "random", "--output", file)
    assert surgeon_cli("prune", *words).code == 0
    ran = surgeon_cli("inspect", file, "--factory", "tests.factories:tied")
    assert ran.code == 2
    assert "holds a Small, but the dense model is Tied" in ran.err


def test_dot_quotes_what_needs_quoting() -> None:
    graph = networkx.DiGraph()
    graph.add_node('a"b', kind="layer", type="Conv2d")
    graph.add_node("g", kind="group", size=3)
    graph.add_edge('a"b', "g", kind="produces")
    text = to_dot(graph)
    assert '"a\\"b" -> "g" [label="produces"];' in text
    assert "3 channels" in text
