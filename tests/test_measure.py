"""The logic of measuring, with a clock that we turn ourselves."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import InputError
from surgeon.measure import BACKENDS, Backend, Comparison, compare, interleave, latency, stopwatch_for
from surgeon.tracing import Inputs


class Clock:
    """Seconds that pass only when a model says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.load = 1.0

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
    seen: list[Any] = []  # the model forgets what it noted
    note = lambda *_: seen.extend(model.modes)  # noqa: E731
    latency({"m": model}, torch.zeros(1), rounds=1, threads=1, clock=clock, progress=note)
    assert seen == [(False, True, 1)]
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


def test_conditions_are_alike_for_all_models_and_leave_them_as_they_were() -> None:
    models = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(3, 8, 3)}
    measured = latency(
        models, torch.zeros(1, 3, 8, 8), rounds=1, dtype="bfloat16", layout="channels_last", batch_size=2
    )  # fmt: skip
    assert {k: v for k, v in measured.conditions.items() if k != "versions"} == {
        "backend": "eager", "dtype": "bfloat16", "layout": "channels_last", "batch_size": 2, "fold_bn": False,
    }  # fmt: skip
    assert models["a"].weight.dtype == torch.float32
    assert models["a"].weight.is_contiguous()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dtype": "int8"}, "dtype='int8': expected one of float32"),
        ({"layout": "tight"}, "layout='tight': expected one of contiguous"),
        ({"backend": "tensorrt"}, "backend 'tensorrt': expected one of eager, compile"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_unknown_conditions_are_refused_with_the_choices(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        latency({"m": nn.Identity()}, torch.zeros(1), **wrong)


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "elsewhere", Backend(lambda model, inputs: lambda: None, needs=("no_such_package",)))
    with pytest.raises(InputError, match=r"needs no_such_package: pip install 'filter-surgeon\[onnx\]'"):
        latency({"m": nn.Identity()}, torch.zeros(1), backend="elsewhere")


def test_a_back_end_is_one_entry_and_is_compared_with_the_models_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
        return lambda: model(*inputs.args) * 1.5

    monkeypatch.setitem(BACKENDS, "half as much again", Backend(wrong))
    measured = latency({"m": nn.Identity()}, torch.ones(2), rounds=1, backend="half as much again")
    assert measured.differences == {"m": 0.5}


@pytest.mark.parametrize(("given", "told"), [(float("nan"), math.inf), (1, math.inf)])
def test_a_back_end_that_gives_no_such_numbers_is_told(
    given: float, told: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(2, dtype=torch.int64) if given == 1 else torch.ones(2)
    monkeypatch.setitem(BACKENDS, "wrong", Backend(lambda model, inputs: lambda: torch.full_like(x, given)))
    assert latency({"m": nn.Identity()}, x, rounds=1, backend="wrong").differences == {"m": told}


def test_a_back_end_is_compared_on_inputs_that_nobody_wrote_to() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2) + 1

    def slow(model: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
        return lambda: model(*inputs.args)

    BACKENDS["slow"] = Backend(slow)
    try:
        assert latency({"a": Doubling(), "b": Doubling()}, torch.ones(2), rounds=1, backend="slow").differences == {
            "a": 0, "b": 0,
        }  # fmt: skip
    finally:
        del BACKENDS["slow"]


def test_onnxruntime_computes_what_the_model_does() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    measured = latency({"m": model}, torch.randn(2, 3, 8, 8), rounds=2, backend="onnxruntime", fold_bn=True)
    assert measured.differences["m"] < 1e-5


class FakeCuda:
    """Counts time in events of a device that is `behind` the host: only what is between events counts."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, list[str]()

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: torch.device) -> None:
        self.log.append("synchronize")

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802  # as torch calls it
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, 0.0

    def record(self) -> None:
        self.at = self.cuda.now
        self.cuda.log.append("record")

    def elapsed_time(self, end: FakeEvent) -> float:
        return (end.at - self.at) * 1000


def test_cuda_is_timed_by_its_own_events_between_two_waits() -> None:
    cuda = FakeCuda()

    def call() -> None:
        cuda.now += 0.25
        cuda.log.append("call")

    stopwatch = stopwatch_for(torch.device("cuda"), cuda=cuda)
    assert stopwatch(call, 2) == 0.5
    assert cuda.log == ["synchronize", "record", "call", "call", "record", "synchronize"]


class Sleeper(nn.Module):
    """A planted slowdown."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.03)
        return x


def test_a_planted_slowdown_is_found_by_the_real_clock() -> None:
    measured = latency({"quick": nn.Identity(), "sleeps": Sleeper()}, torch.zeros(1), rounds=5)
    assert measured.latencies[1].median >= 0.03
    assert measured.speed_up("sleeps", "quick").high < 0.1


class Busy(nn.Module):
    """Takes `cost` seconds times what the machine's load is in each round: a planted noisy machine."""

    def __init__(self, clock: Clock, cost: float, loads: list[float]) -> None:
        super().__init__()
        self.clock, self.cost, self.loads = clock, cost, iter(loads)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.cost * next(self.loads)
        return x


def test_a_planted_noisy_machine_is_called_noisy_and_the_ratio_survives_it() -> None:
    clock = Clock()
    loads = [1.0, 1.0, 1.0, 2.5, 1.0, 3.0, 1.2, 2.0, 2.7]
    models = {"dense": Busy(clock, 2.0, loads), "small": Busy(clock, 1.0, loads)}
    measured = latency(models, torch.zeros(1), rounds=7, warmup=1, clock=clock)
    assert all(found.noisy and found.spread > 0.5 for found in measured.latencies)
    assert measured.speed_up("small", "dense").ratio == pytest.approx(2)
    assert measured.to_dict()["latencies"][0]["noisy"] is True


def test_what_the_system_takes_of_the_cpu_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors are fresh memory at each forward: much of a cut model's time may be the system's."""
    ticks = itertools.count()

    def times() -> os.times_result:
        now = next(ticks)
        return os.times_result((0.7 * now, 0.3 * now, 0.0, 0.0, float(now)))

    monkeypatch.setattr("surgeon.measure.clocks.os.times", times)
    clock = Clock()
    models = {"dense": Busy(clock, 2.0, [1.0] * 9), "small": Busy(clock, 1.0, [1.0] * 9)}
    measured = latency(models, torch.zeros(1), rounds=3, warmup=0, clock=clock)
    assert [found.system for found in measured.latencies] == [pytest.approx(0.3)] * 2
    assert Comparison.from_dict(measured.to_dict()) == measured
    calm = replace(measured, latencies=tuple(replace(found, system=0.0) for found in measured.latencies))
    assert [found.system for found in measured.pooled(calm).latencies] == [pytest.approx(0.15)] * 2
