"""`surgeon prune --max-latency` and `surgeon device`, on a device whose every cost is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import surgeon
from surgeon import cutting
from surgeon.cost import Place, staircase
from surgeon.cost import tables as tables_module
from surgeon.measure import Comparison
from surgeon.planning import device
from tests.cli_run import Ran, surgeon_cli
from tests.test_deadline import took
from tests.test_latency import Staircase


def wide() -> nn.Module:
    """Layers of several steps."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 5)
    )  # fmt: skip


def fake_time(models: dict[str, nn.Module], inputs: Any, *, rounds: int) -> Comparison:
    """Seconds as many as there are parameters."""
    sizes = [sum(p.numel() for p in model.parameters()) for model in models.values()]
    return took(1e-6 * sizes[1], dense=1e-6 * sizes[0])


def pretend(monkeypatch: pytest.MonkeyPatch, cache: Path, step: int) -> None:
    """Let the device be one whose every cost is known."""
    monkeypatch.setenv("SURGEON_CACHE", str(cache))
    monkeypatch.setattr(tables_module, "_OPEN", {})
    monkeypatch.setattr(device, "open_table", lambda place: Staircase(step))
    monkeypatch.setattr(device, "channel_step", lambda table: step)
    monkeypatch.setattr(cutting, "latency", fake_time)
    monkeypatch.setattr("surgeon.cost.latency.Latency._time_dense", lambda self: 2 * self.dense)


@pytest.fixture(autouse=True)
def known_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path / "cache", step=16)
    monkeypatch.chdir(tmp_path)


def prune(*words: object) -> Ran:
    return surgeon_cli(
        "prune", "--model", "tests.test_cli_latency:wide", "--criterion", "magnitude", "--image-size", 8, *words
    )  # fmt: skip


def test_a_share_of_the_time_is_asked_for_kept_and_told() -> None:
    ran = prune("--max-latency", "60%", "--json", "--output", "small.safetensors")
    assert ran.code == 0, ran.err
    timing = ran.json["report"]["timing"]
    medians = {row["name"]: row["median"] for row in timing["measured"]["latencies"]}
    assert medians["small"] <= 0.6 * medians["dense"]
    assert timing["asked"] == "60%"
    assert timing["predicted"]["small"] < timing["predicted"]["dense"]
    assert "measured speed-up" in ran.err
    assert "predicted" in ran.err
    model = surgeon.load("small.safetensors", wide)
    assert all(m.out_channels % 16 == 0 for m in model.modules() if isinstance(m, nn.Conv2d))


def test_what_is_out_of_reach_is_refused_and_nothing_is_written() -> None:
    ran = prune("--max-latency", "1us", "--output", "small.safetensors")
    assert ran.code == 2
    assert "is the least that can be reached" in ran.err
    assert not Path("small.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--max-latency", "soon"), "expected a share up to 1"),
        (("--max-latency", "60%", "--steps", 2), "kept in one cut"),
        (("--max-macs", "50%", "--round-to", "some"), "give a whole number from 1, or auto"),
        (("--max-macs", "50%", "--round-to", "0"), "give a whole number from 1, or auto"),
    ],
)
def test_a_mistake_is_one_message(words: tuple[object, ...], told: str) -> None:
    ran = prune(*words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


def test_half_the_macs_on_the_devices_own_step_are_timed_too() -> None:
    ran = prune("--max-macs", "50%", "--round-to", "auto", "--json", "--dry-run", "--latency-batch-size", 2)
    assert ran.code == 0, ran.err
    report = ran.json["report"]
    assert report["macs_after"] <= 0.5 * report["macs_before"]
    assert report["timing"]["asked"] is None
    assert report["timing"]["tries"] == 1


def test_no_time_is_measured_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "open_table", None)
    monkeypatch.setattr(cutting, "latency", None)
    ran = prune("--max-macs", "50%", "--round-to", "16", "--json", "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.json["report"]["timing"] is None


def test_the_device_is_shown_with_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(width: int, place: Place) -> Any:
        return lambda: float(-(-width // 32) * 32)

    monkeypatch.setattr(staircase, "PROBES", {"convolution": probe})
    monkeypatch.setattr(tables_module, "least_time", lambda place: lambda call: 1e-6 * call())
    ran = surgeon_cli("device", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps"]["convolution"]["step"] == 32
    assert ran.json["place"]["threads"] == torch.get_num_threads()
    assert Path(ran.json["table"]).exists()
    told = surgeon_cli("device", "--device", "cpu")
    assert "32" in told.err
    assert told.code == 0
