"""Latency tables, channel steps and plans from them, on devices of our own whose every cost is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.cost import Cost, Latency, Place, Table, channel_step, find_step, least_time, steps_of
from surgeon.cost import tables as tables_module
from surgeon.cost.calls import Calls
from surgeon.cost.staircase import WIDTHS
from surgeon.errors import BudgetError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables_module, "_OPEN", {})
    return tmp_path / "cache"


def here() -> Place:
    return Place.here(torch.device("cpu"))


class Network(nn.Module):
    """Convolutions, a norm, in-place and plain activations, a shortcut, a depth-wise layer and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.one, self.two = nn.Conv2d(64, 48, 1), nn.Conv2d(48, 64, 1)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = x + self.two(torch.relu(self.one(x)))
        y: Tensor = self.fc(self.depthwise(x).mean((2, 3)))
        return y


def graph_of(model: nn.Module | None = None) -> surgeon.ChannelGraph:
    torch.manual_seed(0)
    return surgeon.channel_graph(surgeon.trace((model or Network()).eval(), torch.randn(2, 3, 8, 8)))


class Staircase(Table):
    """A device on which a contraction costs the product of its widths, each rounded up to the step."""

    def __init__(self, step: int) -> None:
        super().__init__(here())
        self.step, self.asked = step, list[str]()

    def seconds(self, key: str, build: Callable[[], Callable[[], Any]]) -> float:
        self.asked.append(key)
        self.entries.setdefault(key, self.cost(key))
        return self.entries[key]

    def cost(self, key: str) -> float:
        name, _, rest = key.partition(" ")
        if name != "convolution":
            return 0.0
        _, weight = rest.split(" ")[0].split(",")[:2]
        out, into, *_ = (int(n) for n in weight.split("x"))
        return 1e-6 * self.up(out) * self.up(into)

    def up(self, width: int) -> int:
        return -(-width // self.step) * self.step

    def save(self) -> None:
        pass


# ---------------------------------------------------------------- channel steps


@pytest.mark.parametrize("step", [8, 16, 32, 64])
@pytest.mark.parametrize("power", [1, 2])
def test_a_known_staircase_is_recovered_exactly(step: int, power: int) -> None:
    assert find_step({width: float(-(-width // step) * step) ** power for width in WIDTHS}) == step


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_smooth_device_has_no_step(power: int) -> None:
    assert find_step({width: float(width) ** power for width in WIDTHS}) == 1


def test_a_staircase_is_recovered_through_noise() -> None:
    random = np.random.default_rng(0)
    found = {find_step({w: -(-w // 16) * 16 * random.uniform(1, 1.05) for w in WIDTHS}) for _ in range(20)}
    assert found == {16}


def test_steps_are_read_off_a_fake_device_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(here(), timer=lambda call: float(call()))

    def probe(width: int, place: Place) -> Callable[[], Any]:
        return lambda: -(-width // 16) * 16

    from surgeon.cost import staircase

    original = dict(staircase.PROBES)
    monkeypatch.setattr(staircase, "PROBES", dict.fromkeys(original, probe))
    assert [step for step, _ in steps_of(table).values()] == [16] * len(original)
    measured = table.measured
    assert channel_step(table) == 16
    assert table.measured == measured


def test_whoever_stops_it_has_the_kinds_that_are_done(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del own_cache

    def probe(width: int, place: Place) -> Callable[[], Any]:
        return lambda: width

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    from surgeon.cost import staircase

    monkeypatch.setattr(staircase, "PROBES", {"first": probe, "second": probe})
    with pytest.raises(KeyboardInterrupt):
        steps_of(Table(here(), timer=lambda call: float(call())), progress=stop)
    assert {key.rpartition(" ")[0] for key in Table.open(here()).entries} == {"probe first"}


# ---------------------------------------------------------------- the table and its file


def test_what_is_known_is_not_measured_again_and_outlives_the_process(own_cache: Path) -> None:
    table = Table(here(), timer=lambda call: 0.5)
    assert table.seconds("a", lambda: lambda: None) == 0.5
    table.save()
    again = Table.open(here())

    def never() -> Any:
        raise AssertionError

    assert again.seconds("a", never) == 0.5
    assert [path.name for path in own_cache.iterdir()] == [here().file.name]


@pytest.mark.parametrize(
    "change", [{"threads": 99}, {"dtype": "bfloat16"}, {"layout": "channels_last"}, {"version": "0"}, {"name": "else"}]
)
def test_what_was_measured_elsewhere_is_not_read(change: dict[str, Any]) -> None:
    table = Table(here(), timer=lambda call: 0.5)
    table.seconds("a", lambda: lambda: None)
    table.save()
    assert Table.open(replace(here(), **change)).entries == {}


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"surgeon_latency": 2}', "PLACE -1", "PLACE true", "PLACE \"a\""]
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_left_aside_with_a_word(text: str) -> None:
    from dataclasses import asdict

    file = here().file
    file.parent.mkdir(parents=True)
    if text.startswith("PLACE"):
        whole = {"surgeon_latency": 1, "place": asdict(here()), "seconds": {"a": json.loads(text[6:])}}
        text = json.dumps(whole)
    file.write_text(text)
    with pytest.warns(UserWarning, match="no latency table of this device"):
        assert Table.open(here()).entries == {}


def test_a_folder_that_cannot_be_written_costs_a_word_and_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path / "file"))
    table = Table(here(), timer=lambda call: 0.5)
    table.seconds("a", lambda: lambda: None)
    with pytest.warns(UserWarning, match="can't be kept"):
        table.save()


def test_a_call_is_timed_by_its_quickest_run() -> None:
    spans = itertools.cycle([3.0, 1.0, 2.0])

    def clock() -> Iterator[float]:
        now = 0.0
        for span in spans:
            yield now
            now += span
            yield now

    running = clock()
    assert least_time(here(), clock=lambda: next(running))(lambda: None) == 1.0


# ---------------------------------------------------------------- calls and predictions


def test_every_call_can_be_made_again_at_other_widths() -> None:
    work = Calls(graph_of())
    names = [call.name for call in work.calls]
    assert names.count("convolution") == 4
    assert names.count("relu_") == 1
    assert names.count("relu") == 1
    with torch.inference_mode():
        for call in work.calls:
            for share in (1.0, 0.5):
                values = [max(1, int(size * share)) for size in work.dense(call)]
                call.build(values, torch.device("cpu"), torch.contiguous_format)()


def test_equal_work_has_one_key_and_a_depthwise_call_its_own_groups() -> None:
    work = Calls(graph_of())
    depthwise = next(c for c in work.calls if c.name == "convolution" and c.node.args[8] == 64)
    assert depthwise.key((32,)).endswith(",32")
    assert depthwise.key((32,)) == depthwise.key((32,)) != depthwise.key((64,))


def test_the_prediction_of_a_cut_model_is_that_of_the_small_model_itself() -> None:
    graph, table = graph_of(), Staircase(16)
    model = graph.trace.model
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), ratio=0.5, round_to=16)
    assert plan.fitted is not None
    predicted = Latency(graph, table, step=16, dense_seconds=1.0)
    small = graph_of(surgeon.rewrite(model, plan))
    itself = Latency(small, table, step=16, dense_seconds=1.0)
    ratio = predicted.exactly(plan.fitted.kept) / predicted.seconds(Cost(graph).everything())
    assert 0.1 < ratio < 0.9
    at_small = itself.dense * predicted.scale + predicted.overhead
    assert predicted.exactly(plan.fitted.kept) == pytest.approx(at_small)


def test_nothing_is_interpolated_where_a_step_was_measured() -> None:
    graph, table = graph_of(), Staircase(16)
    predicted = Latency(graph, table, step=16, dense_seconds=1.0)
    call = next(c for c in predicted.work.calls if c.name == "convolution" and len(c.variables) == 2)
    table.entries[call.key((16, 48))] = 123.0
    assert predicted.of(call, (16, 48)) == 123.0
    between = predicted.of(call, (24, 40))
    corners = [predicted.of(call, values) for values in itertools.product((16, 32), (32, 48))]
    assert min(corners) <= between <= max(corners)


def test_a_call_that_cannot_be_made_alone_costs_its_share_of_the_bytes() -> None:
    graph = graph_of()

    class Broken(Staircase):
        def cost(self, key: str) -> float:
            return 1.0 if "2x64x8x8" in key else math.inf

    predicted = Latency(graph, Broken(16), dense_seconds=1.0)
    relu = next(c for c in predicted.work.calls if c.name == "relu_")
    assert predicted.of(relu, (16,)) == pytest.approx(0.25)


def test_what_other_work_disturbed_is_measured_again() -> None:
    """Every fifth call takes five times as long at first: longer than the same call with more channels."""

    class Disturbed(Staircase):
        def seconds(self, key: str, build: Callable[[], Callable[[], Any]]) -> float:
            if key not in self.entries:
                self.entries[key] = self.cost(key) * (5 if len(self.entries) % 5 == 0 else 1)
            return self.entries[key]

        def again(self, key: str, build: Callable[[], Callable[[], Any]]) -> float:
            self.asked.append(key)
            self.entries[key] = min(self.entries[key], self.cost(key))
            return self.entries[key]

    graph, quiet, disturbed = graph_of(), Staircase(16), Disturbed(16)
    right, found = (Latency(graph, table, step=16, dense_seconds=1.0) for table in (quiet, disturbed))
    assert disturbed.asked
    assert len(disturbed.asked) < len(disturbed.entries) / 2
    calls = [call for call in found.work.calls if call.contracts]
    narrow = [(call, tuple(16 for _ in call.variables)) for call in calls]
    assert [found.of(call, values) for call, values in narrow] == [right.of(call, values) for call, values in narrow]


def test_a_call_that_is_measured_again_takes_the_least() -> None:
    times = iter((3.0, 2.0, 4.0))
    table = Table(here(), timer=lambda call: next(times))
    assert [table.seconds("a", lambda: lambda: None), *(table.again("a", lambda: lambda: None) for _ in range(2))] == [
        3.0, 2.0, 2.0,
    ]  # fmt: skip
    assert table.measured == 3


# ---------------------------------------------------------------- plans from measured cost


def planned(table: Table, **asked: Any) -> tuple[surgeon.ChannelGraph, surgeon.Plan, Latency]:
    graph = graph_of()
    latency = Latency(graph, table, step=16, dense_seconds=1e-6)
    latency.overhead, latency.scale = 0.0, 1.0
    scores = surgeon.score(graph, "magnitude")
    return graph, surgeon.make_plan(graph, scores, latency=latency, round_to=16, **asked), latency


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_predicted_time_is_kept_and_widths_are_on_the_steps(share: float) -> None:
    graph, plan, latency = planned(Staircase(16), max_latency=share)
    assert plan.fitted is not None
    assert latency.seconds(plan.fitted.kept) <= share * latency.seconds(Cost(graph).everything()) + 1e-12
    small = surgeon.rewrite(graph.trace.model, plan)
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 16 == 0 for width in widths)


def test_no_other_widths_keep_more_score_within_the_time() -> None:
    """Brute force over all combinations of widths on the steps."""
    graph, plan, latency = planned(Staircase(16), max_latency=0.5)
    scores = surgeon.score(graph, "magnitude").normalised
    assert plan.fitted is not None
    limit, best = 0.5 * latency.seconds(Cost(graph).everything()), -math.inf
    ranked = [group.numbers[np.argsort(scores[group.numbers])] for group in graph.groups]
    for left in itertools.product(*(range(16, len(numbers) + 1, 16) for numbers in ranked)):
        kept = Cost(graph).everything()
        for numbers, width in zip(ranked, left, strict=True):
            kept[numbers[: len(numbers) - width]] = False
        if latency.seconds(kept) <= limit:
            best = max(best, float(scores[graph.removable][kept[graph.removable]].sum()))
    found = float(scores[graph.removable][plan.fitted.kept[graph.removable]].sum())
    assert found == pytest.approx(best, rel=0.03)


def test_several_limits_hold_together() -> None:
    graph, plan, latency = planned(Staircase(16), max_latency=0.7, max_params=0.4, max_activations=0.9)
    cost = Cost(graph)
    assert plan.fitted is not None
    kept, dense = plan.fitted.kept, cost.everything()
    assert latency.seconds(kept) <= 0.7 * latency.seconds(dense) + 1e-12
    assert cost.params(kept) <= 0.4 * cost.params(dense)
    assert cost.activations(kept) <= 0.9 * cost.activations(dense)


class EarlyIsSlow(Staircase):
    """A device on which the first convolution, which has few MACs, takes most of the time."""

    def cost(self, key: str) -> float:
        return super().cost(key) * (400 if "2x3x8x8" in key else 1)


def test_at_equal_macs_the_cut_is_where_the_time_is() -> None:
    graph, plan, latency = planned(EarlyIsSlow(16), max_macs=0.6)
    cost = Cost(graph)
    assert plan.fitted is not None
    assert cost.macs(plan.fitted.kept) <= 0.6 * cost.macs(cost.everything())
    blind = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), max_macs=0.6, round_to=16)
    assert blind.fitted is not None
    assert latency.seconds(plan.fitted.kept) <= latency.seconds(blind.fitted.kept)
    assert latency.seconds(plan.fitted.kept) <= 0.6 * latency.seconds(cost.everything())


def test_a_time_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(BudgetError, match=r"max_latency: .* asked, .* is the least that can be reached .*predicted"):
        planned(Staircase(16), max_latency=0.001)


@pytest.mark.parametrize("amount", ["12", "-5ms", "150%", "soon", 1.5, 0, True, "12 parsecs"])
def test_a_malformed_time_is_refused(amount: Any) -> None:
    with pytest.raises(BudgetError, match="expected a share up to 1 of the dense model's time"):
        planned(Staircase(16), max_latency=amount)


def test_counted_activations_are_those_of_the_small_model() -> None:
    graph = graph_of()
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), max_activations=0.6)
    assert plan.fitted is not None
    small = Cost(graph_of(surgeon.rewrite(graph.trace.model, plan)))
    assert Cost(graph).activations(plan.fitted.kept) == small.activations(small.everything())


def test_measuring_draws_nothing_of_the_callers() -> None:
    table = Table(here(), timer=lambda call: float(torch.rand(1)) + 1)
    graph = graph_of()
    state = torch.get_rng_state()
    Latency(graph, table, dense_seconds=1.0)
    steps_of(table, ["linear"])
    assert table.measured > 0
    assert torch.equal(torch.get_rng_state(), state)
