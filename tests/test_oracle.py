"""Random networks, random plans: exact, or refused with a reason; never wrong, never a crash."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.blocks import BLOCKS
from tests.judge import BUDGETS, Cut, judge, judge_seed, sample_cut
from tests.networks import Spec, networks, redraw, sample_network
from tests.oracle import OracleError, compare

cuts = st.builds(
    Cut,
    ratio=st.sampled_from([0.5, 0.3, 0.1, 0.7, 0.8]),
    scope=st.sampled_from(["local", "global"]),
    seed=st.integers(0, 99),
)

conditions = st.builds(
    Cut,
    ratio=st.sampled_from([0.5, 0.3, 0.1, 0.7, 0.8]),
    scope=st.sampled_from(["local", "global"]),
    seed=st.integers(0, 99),
    budget=st.sampled_from(BUDGETS),
    round_to=st.sampled_from([None, 2, 4]),
    ignored=st.none() | st.integers(0, 20),
    min_channels=st.sampled_from([1, 2, 3]),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), cuts)
def test_never_wrong(spec: Spec, cut: Cut) -> None:
    outcome = judge(spec, cut)
    assert outcome.status in ("exact", "refused"), outcome
    assert outcome.status == "exact" or outcome.detail


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(extended=True), conditions)
def test_never_wrong_beyond_convolutions(spec: Spec, cut: Cut) -> None:
    outcome = judge(spec, cut)
    assert outcome.status in ("exact", "refused"), outcome
    assert outcome.status == "exact" or outcome.detail


def test_most_random_networks_are_cut() -> None:
    """An oracle over networks that are all refused would prove nothing."""
    outcomes = [judge_seed(seed) for seed in range(20)]
    assert sum(outcome.status == "exact" and outcome.effect > 1e-6 for outcome in outcomes) >= 18


def test_specs_survive_json_and_are_drawn_alike() -> None:
    for seed in range(50):
        spec = sample_network(seed, extended=seed % 2 == 0)
        assert Spec.from_json(spec.to_json()) == spec == sample_network(seed, extended=seed % 2 == 0)
        assert sample_cut(seed, extended=True) == sample_cut(seed, extended=True)


def test_every_block_of_the_extended_grammar_is_drawn() -> None:
    drawn = {part.kind for seed in range(1000) for part in sample_network(seed, extended=True).parts}
    assert drawn == set(BLOCKS)


@pytest.mark.parametrize("seed", [1514, 1524, 1685, 1721, 2077, 2880, 4156])
def test_what_a_long_run_found_stays_mended(seed: int) -> None:
    outcome = judge_seed(seed, extended=True)
    assert outcome.status in ("exact", "refused"), outcome


def test_weights_are_redrawn_also_beside_one_of_no_rows() -> None:
    model = nn.ParameterDict({"none": torch.zeros(0, 4), "some": torch.zeros(3, 4)})
    redraw(model, 0)
    assert model["none"].shape == (0, 4)
    assert model["some"].all()


class Outputs(nn.Module):
    """Two outputs, each a number times the input."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x * factor for factor in self.factors]


def test_a_silent_output_must_be_silent_on_both_sides_and_one_must_speak() -> None:
    x = torch.ones(3)

    def judged(dense: Outputs, small: Outputs) -> float:
        return compare(dense, small, lambda _: torch.arange(2), x).error

    assert judged(Outputs(0.0, 2.0), Outputs(0.0, 2.0)) == 0.0
    with pytest.raises(OracleError, match="differ"):
        judged(Outputs(0.0, 2.0), Outputs(1.0, 2.0))
    with pytest.raises(OracleError, match="nothing can be said"):
        judged(Outputs(0.0, 0.0), Outputs(0.0, 0.0))
