"""The logic of measuring, with a clock that we turn ourselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InputError
from surgeon.measure import compare, interleave, latency


class Clock:
    """Seconds that pass only when a model says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(nn.Module):
    """Takes a given time for each forward, the last one from then on."""

    def __init__(self, clock: Clock, *seconds: float) -> None:
        super().__init__()
        self.clock = clock
        self.left: Iterator[float] = iter(seconds)
        self.last = 0.0
        self.inner = nn.Dropout()
        self.modes: set[tuple[bool, bool, int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.last = next(self.left, self.last)
        self.clock.now += self.last
        self.modes.add((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


def test_medians_quartiles_and_the_ratio_of_paired_medians() -> None:
    clock = Clock()
    models = {"dense": Timed(clock, 0.4), "small": Timed(clock, 0.1)}
    measured = latency(models, torch.zeros(1), rounds=5, clock=clock)
    dense, small = measured.latencies
    assert dense.median == pytest.approx(0.4)
    assert small.median == pytest.approx(0.1)
    assert dense.iqr == pytest.approx(0, abs=1e-9)
    assert not dense.noisy
    assert measured.speed_up("small", "dense").ratio == pytest.approx(4)
    assert measured.device == "cpu"


def test_the_first_forwards_are_not_counted() -> None:
    clock = Clock()
    cold = Timed(clock, 9.0, 9.0, 9.0, 1.0)
    assert latency({"cold": cold}, torch.zeros(1), rounds=3, warmup=3, clock=clock).latencies[0].median == 1.0


def test_short_forwards_are_repeated_within_a_round() -> None:
    clock = Clock()
    measured = latency({"quick": Timed(clock, 0.001)}, torch.zeros(1), rounds=2, clock=clock)
    assert measured.latencies[0].calls == 20
    assert measured.latencies[0].median == pytest.approx(0.001)


def test_a_wide_spread_is_flagged() -> None:
    clock = Clock()
    shaky = Timed(clock, *[1.0] * 4, *[1.0, 1.3] * 10)
    found = latency({"shaky": shaky}, torch.zeros(1), rounds=20, clock=clock).latencies[0]
    assert found.noisy
    assert found.spread == pytest.approx(0.3 / 1.15, rel=0.01)


def test_rounds_are_interleaved_and_rotate() -> None:
    order: list[str] = []

    def timer(name: str) -> float:
        order.append(name)
        return 1.0

    interleave({name: (lambda name=name: timer(name)) for name in "abc"}, 3)  # type: ignore[misc]  # late binding
    assert "".join(order) == "abcbcacab"


def test_mode_and_threads_are_set_and_put_back() -> None:
    clock = Clock()
    model = Timed(clock, 0.1)
    model.inner.eval()
    before = torch.get_num_threads()
    latency({"m": model}, torch.zeros(1), rounds=1, threads=1, clock=clock)
    assert model.modes == {(False, True, 1)}
    assert model.training
    assert not model.inner.training
    assert torch.get_num_threads() == before


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("the user's own")


def test_a_failing_forward_comes_through_and_the_mode_is_put_back() -> None:
    model = Failing()
    with pytest.raises(ValueError, match="the user's own"):
        latency({"m": model}, torch.zeros(1))
    assert model.training


def test_the_interval_holds_the_ratio_and_is_repeatable() -> None:
    base, ours = (2.0, 2.2, 1.9, 2.1, 2.0), (1.0, 1.1, 1.0, 0.9, 1.0)
    found = compare("ours", ours, "base", base)
    assert found == compare("ours", ours, "base", base)
    assert found.ratio == 2.0
    assert found.low < found.ratio < found.high


def test_a_common_slowdown_cancels() -> None:
    load = (1.0, 1.0, 3.0, 3.0, 1.0)
    found = compare("ours", load, "base", tuple(2 * value for value in load))
    assert (found.low, found.ratio, found.high) == (2.0, 2.0, 2.0)


def test_everything_can_be_written_as_json() -> None:
    import json

    clock = Clock()
    measured = latency({"a": Timed(clock, 0.1), "b": Timed(clock, 0.2)}, torch.zeros(1), rounds=2, clock=clock)
    assert json.loads(json.dumps(measured.to_dict()))["latencies"][0]["name"] == "a"
    assert json.loads(json.dumps(measured.speed_up("a", "b").to_dict()))["base"] == "b"


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warmup": -1}, {"threads": 0}])
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        latency({"m": nn.Identity()}, torch.zeros(1), **wrong)  # type: ignore[arg-type]  # one of several int parameters


def test_no_models_and_unpaired_rounds_are_refused() -> None:
    with pytest.raises(InputError, match="0 models"):
        latency({}, torch.zeros(1))
    with pytest.raises(InputError, match="measure them together"):
        compare("a", (1.0,), "b", (1.0, 2.0))
