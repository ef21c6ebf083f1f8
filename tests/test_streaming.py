"""Cut from shards to shards: what a model in memory would come to, with one tensor in memory at a time."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import surgeon
from surgeon import rewriting, streaming
from surgeon.errors import BudgetError, CheckpointError, InputError, PlanError, ScoreError, VerificationError
from surgeon.streaming import INDEX, PLAN, SINGLE, Shards, load_shards, prune_shards
from tests.cli_run import surgeon_cli

CRITERIA = ("magnitude", "magnitude-l1", "magnitude-group", "bn-scale", "fpgm", "lamp", "random")


class Gated(nn.Module):
    """A gated feed-forward block behind a norm; positions come from a buffer that isn't stored."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.up, self.down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
        self.turned = nn.Linear(width, 6)
        self.back = nn.Linear(6, width)
        self.register_buffer("angles", torch.linspace(0.5, 1, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        result: Tensor = x + self.back(torch.cos(self.turned(y) * self.angles))
        return result


class Decoder(nn.Module):
    """Embedding and last layer share a weight, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.blocks = nn.ModuleList(Gated(16, 24) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


class Steered(Decoder):
    """Goes another way for some numbers."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens + 1 if bool((tokens > 5).all()) else tokens)


TOKENS = torch.arange(7)[None]


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


def make_decoder() -> nn.Module:
    return Decoder()


def tokens() -> Any:
    return TOKENS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The decoder's weights in three shards; the tied one is there once."""
    state = {name: tensor for name, tensor in decoder().state_dict().items() if name != "head.weight"}
    files = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(state)}
    dense = tmp_path / "dense"
    dense.mkdir()
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in state.items() if files[name] == file}, dense / file)
    (dense / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return dense


def cut(folder: Path, **options: Any) -> streaming.Streamed:
    given: dict[str, Any] = {"ratio": 0.4, **options}
    return prune_shards(Decoder, TOKENS, folder, folder.parent / "small", **given)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_comes_to_what_it_would_in_memory(folder: Path, criterion: str) -> None:
    result = cut(folder, criterion=criterion)
    graph = surgeon.channel_graph(surgeon.trace(decoder(), TOKENS))
    scores = surgeon.score(graph, criterion).raw
    streamed = surgeon.score(graph, criterion, weights=Shards(folder)).raw
    assert (scores == streamed).all()
    expected = surgeon.rewrite(decoder(), result.plan, TOKENS)
    found = load_shards(result.folder, Decoder)
    assert not found.training
    assert found.get_parameter("head.weight") is found.get_parameter("embed.weight")
    for (name, ours), (_, theirs) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(found(TOKENS), expected(TOKENS))
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.report.params_after < result.report.params_before


def test_the_shards_keep_their_names_and_say_what_is_in_them(folder: Path) -> None:
    result = cut(folder, scope="local")
    index = json.loads((result.folder / INDEX).read_text())
    assert index["weight_map"] == json.loads((folder / INDEX).read_text())["weight_map"]
    stored: dict[str, Tensor] = {}
    for file in set(index["weight_map"].values()):
        stored |= load_file(result.folder / file)
    assert set(stored) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in stored.values())
    assert index["metadata"]["total_size"] == result.report.bytes_after
    assert surgeon.Plan.from_json((result.folder / PLAN).read_text()).removed == result.plan.removed
    assert sorted(path.name for path in folder.parent.iterdir()) == ["dense", "small"]


def test_one_tensor_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    most: dict[str, int] = {}
    stage = [""]
    read = Shards.__getitem__

    def watched(shards: Shards, name: str) -> Tensor:
        tensor = read(shards, name)
        alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(tensor)]
        most[stage[0]] = max(most.get(stage[0], 0), len(alive))
        return tensor

    def progress(name: str, done: int, total: int) -> None:
        if done == 0:
            stage[0] = name

    monkeypatch.setattr(Shards, "__getitem__", watched)
    cut(folder, progress=progress, criterion="magnitude-group")
    assert most["score"] <= 2  # the loop's own name holds the last one while the next is read
    assert most["rewrite"] <= 1
    assert most["verify"] <= 3
    assert most.keys() == {"score", "rewrite", "verify"}


def test_what_lives_on_a_tensor_that_is_not_stored_stays(folder: Path) -> None:
    result = cut(folder)
    pins = {pin.layer: pin for pin in result.report.pinned}
    for number in range(3):
        assert pins[f"blocks.{number}.turned"].reason == "a tensor that isn't among the stored weights"
        assert pins[f"blocks.{number}.turned"].source == f"blocks.{number}.angles"
    assert any(row.name.endswith("gate") and row.after < row.before for row in result.report.layers)


def test_a_wrong_cut_is_found_and_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewriting.small_tensor

    def wrong(fitted: Any, name: str, dense: Tensor) -> Tensor:
        small = right(fitted, name, dense)
        return small.roll(1, 0) if name == "blocks.1.down.weight" and dense.device.type != "meta" else small

    monkeypatch.setattr(streaming, "small_tensor", wrong)
    with pytest.raises(VerificationError, match=r"blocks\.1"):
        cut(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["dense"]


def test_a_single_file_and_what_the_model_lacks(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    state = decoder().state_dict()
    del state["embed.weight"]  # under its other name
    save_file({**state, "old.inv_freq": torch.ones(2)}, tmp_path / "dense" / SINGLE)
    result = cut(tmp_path / "dense")
    assert result.left_out == ("old.inv_freq",)
    assert sorted(path.name for path in result.folder.iterdir()) == [SINGLE, PLAN]
    assert "head.weight" in load_file(result.folder / SINGLE)
    assert load_shards(result.folder, Decoder)(TOKENS).shape == (1, 7, 40)


def broken(folder: Path, how: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    file = folder / "part-0.safetensors"
    if how == "outside":
        index["weight_map"]["embed.weight"] = "../part-0.safetensors"
    elif how == "nowhere":
        index["weight_map"]["embed.weight"] = "part-1.safetensors"
    elif how == "shape":
        save_file({**load_file(file), "embed.weight": torch.zeros(40, 8)}, file)
    elif how == "missing":
        del index["weight_map"]["norm.bias"]
    elif how == "cut off":
        file.write_bytes(file.read_bytes()[:40])
    elif how == "no map":
        index = {"weight_map": [1]}
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("outside", "outside its folder"),
        ("nowhere", "embed.weight is not in part-1"),
        ("shape", r"embed.weight is \(40, 8\), the model's \(40, 16\)"),
        ("missing", "norm.bias isn't there"),
        ("cut off", "part-0"),
        ("no map", r"weight_map is \[1\], expected an object"),
    ],
)
def test_damaged_shards_are_refused(folder: Path, how: str, told: str) -> None:
    broken(folder, how)
    with pytest.raises(CheckpointError, match=told):
        cut(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["dense"]


def test_what_cannot_be_done_is_said_first(folder: Path) -> None:
    with pytest.raises(ScoreError, match="'taylor' needs all weights at once"):
        cut(folder, criterion="taylor")
    with pytest.raises(InputError, match=r"without numbers \(on the meta device\).*leave nothing to be decided"):
        prune_shards(Steered, TOKENS, folder, folder.parent / "small", ratio=0.4)
    with pytest.raises(FileNotFoundError, match="make it first"):
        prune_shards(Decoder, TOKENS, folder, folder.parent / "no" / "small", ratio=0.4)
    for amounts in ({"max_latency": "80%"}, {"max_macs": 0.8, "round_to": "auto"}):
        with pytest.raises(BudgetError, match=r"on the meta device.*give max_macs or max_params"):
            cut(folder, ratio=None, **amounts)
    (folder.parent / "small").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        cut(folder)


def test_the_command_does_the_same(folder: Path) -> None:
    target = folder.parent / "small"
    given = ["shards", "--model", "tests.test_streaming:make_decoder", "--inputs", "tests.test_streaming:tokens"]
    given += ["--weights", str(folder), "--output", str(target)]
    facts = surgeon_cli(*given, "--max-params", "80%", "--json").json
    assert facts["report"]["params_after"] <= 0.8 * facts["report"]["params_before"]
    assert load_shards(target, Decoder)(TOKENS).shape == (1, 7, 40)
    assert surgeon_cli(*given, "--ratio", "0.5").code == 2  # it is there already
    assert surgeon_cli(*given).code == 2
    for option, function in (("--inputs", "raises"), ("--inputs", "nosuch"), ("--model", "raises")):
        ran = surgeon_cli(*given, "--output", folder.parent / "other", "--ratio", 0.5, option, f"{__name__}:{function}")
        assert ran.code == 2
        assert f"{option} {__name__}:{function}" in ran.err, ran.err


def raises() -> None:
    raise OSError("no text")


@dataclass
class Box:
    """What a plan can't describe."""

    x: Tensor


class Unboxing(nn.Module):
    """Two layers; takes a box."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, box: Box) -> Tensor:
        """Two layers."""
        y: Tensor = self.two(torch.relu(self.one(box.x)))
        return y


def test_inputs_that_a_plan_cannot_describe_are_given_again(tmp_path: Path) -> None:
    dense, box = tmp_path / "dense", Box(torch.randn(2, 8))
    dense.mkdir()
    save_file(Unboxing().state_dict(), dense / SINGLE)
    prune_shards(Unboxing, box, dense, tmp_path / "small", ratio=0.3)
    with pytest.raises(PlanError, match="type Box can't be made again; pass example_inputs"):
        load_shards(tmp_path / "small", Unboxing)
    assert load_shards(tmp_path / "small", Unboxing, example_inputs=box)(box).shape == (2, 4)
