"""The regression of one layer, against plain least squares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from surgeon.healing import regression
from surgeon.healing.outlook import Goal
from surgeon.healing.regression import Regression, Solution
from surgeon.healing.ridge import Ridge

GROUPS, ROWS, INPUTS, OUTPUTS = 2, 40, 5, 3


def problem(rows: int = ROWS, inputs: int = INPUTS, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, targets and the weights that there were: inputs that aren't centred, and targets with an intercept."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = drawn(GROUPS, rows, inputs) * (1 + torch.arange(inputs)) + 3
    y = x @ drawn(GROUPS, inputs, OUTPUTS) + drawn(GROUPS, 1, OUTPUTS) + noise * drawn(GROUPS, rows, OUTPUTS)
    return x, y, drawn(GROUPS, inputs, OUTPUTS)


def filled(centred: bool, dual: bool, x: Tensor, y: Tensor, sizes: tuple[int, ...] = ()) -> Regression:
    found = Regression(centred, dual)
    edges = list(itertools.accumulate((0, *sizes, x.shape[1] - sum(sizes))))
    for start, stop in itertools.pairwise(edges):
        found.add(x[:, start:stop], Goal(y[:, start:stop]))
    found.hold_out(x, Goal(y))
    return found


def solved(problem: Regression, weight: Tensor, penalty: float) -> Solution:
    with mock.patch.object(regression, "PENALTIES", (penalty,)):
        (solution,) = problem.solved(weight)
    return solution


def by_hand(x: Tensor, y: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Weights and intercepts of plain least squares."""
    rows = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2) if centred else x
    found = torch.linalg.lstsq(rows, y).solution
    return (found[:, :-1], found[:, -1]) if centred else (found, y.new_zeros(GROUPS, OUTPUTS))


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_without_a_penalty_it_is_least_squares(centred: bool, dual: bool) -> None:
    x, y, weight = problem()
    found = solved(filled(centred, dual, x, y), weight, 1e-9)  # in the dual form less is lost in rounding
    for ours, theirs in zip((found.weight, found.intercept), by_hand(x, y, centred), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_the_penalty_is_on_the_change(centred: bool, penalty: float) -> None:
    x, y, weight = problem()
    found = solved(filled(centred, False, x, y), weight, penalty)
    a, b = (x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)) if centred else (x, y)
    for group in range(GROUPS):
        inner = a[group].T @ a[group] / ROWS
        ridge = penalty * inner.diagonal().mean() * torch.eye(INPUTS, dtype=torch.float64)
        change = torch.linalg.solve(inner + ridge, a[group].T @ (b[group] - a[group] @ weight[group]) / ROWS)
        torch.testing.assert_close(found.weight[group], weight[group] + change, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("sizes", [(1,), (7, 20), (0, 39), (13, 13, 13)])
def test_batches_merge_into_one(sizes: tuple[int, ...], centred: bool, dual: bool) -> None:
    x, y, weight = problem()
    one, many = (solved(filled(centred, dual, x, y, s), weight, 1e-3) for s in ((), sizes))
    torch.testing.assert_close(many.weight, one.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(many.intercept, one.intercept, rtol=1e-9, atol=1e-9)
    assert many.error == pytest.approx(one.error, rel=1e-5)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rows", [4, 12, 40])
def test_both_forms_are_one(rows: int, centred: bool) -> None:
    x, y, weight = problem(rows, inputs=20)
    primal, dual = (solved(filled(centred, form, x, y, (1,)), weight, 1e-2) for form in (False, True))
    torch.testing.assert_close(primal.weight, dual.weight, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(primal.intercept, dual.intercept, rtol=1e-7, atol=1e-7)


def test_the_intercept_is_the_best_one() -> None:
    x, y, weight = problem()
    found = filled(True, False, x, y, (11,)).shifted(weight)
    torch.testing.assert_close(found.weight, weight)
    torch.testing.assert_close(found.intercept, (y - x @ weight).mean(1))
    assert found.error == pytest.approx(float((y - x @ weight - found.intercept[:, None]).square().mean()), rel=1e-5)


def test_without_a_place_for_an_intercept_there_is_none() -> None:
    x, y, weight = problem()
    assert not solved(filled(False, False, x, y), weight, 1e-3).intercept.any()


def singular() -> Iterator[tuple[Tensor, Tensor]]:
    x, y, _ = problem()
    yield x * 0, y
    yield x[:, :, :1].expand(-1, -1, INPUTS), y
    yield x[:, :1].expand(-1, ROWS, -1), y
    yield x * torch.tensor([1.0, 1e-9, 1.0, 0.0, 1e12], dtype=torch.float64), y


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("case", range(4))
def test_singular_problems_have_solutions(case: int, dual: bool) -> None:
    x, y = list(singular())[case]
    weight = problem()[2]
    found = list(filled(True, dual, x, y).solved(weight))
    assert found
    sliced = filled(True, dual, x, y).shifted(weight).error
    for solution in found:
        assert solution.weight.isfinite().all()
        assert solution.error <= sliced * (1 + 1e-5)


def test_what_is_not_positive_definite_gets_more_of_a_penalty() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -1e-2], dtype=torch.float64))[None]
    found = Ridge.of(matrix, 1e-4)
    assert found is not None
    factor = found.factor
    ridge = (factor @ factor.mT - matrix).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(ridge / (1e-4 * matrix.diagonal(dim1=1, dim2=2).mean()), ridge * 0 + 1000)
    assert Ridge.of(matrix * float("nan"), 1e-4) is None


def test_weights_are_judged_as_they_will_be_written() -> None:
    x, y, weight = problem()
    exact, rounded = Regression(True, dual=False), Regression(True, dual=False, dtype=torch.bfloat16)
    for each in (exact, rounded):
        each.add(x, Goal(y))
        each.hold_out(x, Goal(y))
    best = by_hand(x, y, centred=True)
    assert rounded.judged(*best).error > exact.judged(*best).error
    assert rounded.judged(*best).error == exact.judged(*(part.bfloat16().double() for part in best)).error
    assert torch.equal(rounded.shifted(weight).weight, weight.bfloat16().double())


# --- towards whatever is as good


def interval(y: Tensor) -> Goal:
    """Below 2 and above 9 all is alike; in the last output nothing is."""
    low, high = torch.full_like(y, 2.0), torch.full_like(y, 9.0)
    low[..., -1], high[..., -1] = -torch.inf, torch.inf
    return Goal(
        y,
        torch.where(y <= low, -torch.inf, torch.where(y >= high, high, y)),
        torch.where(y <= low, low, torch.where(y >= high, torch.inf, y)),
    )


def distance(goal: Goal, x: Tensor, weight: Tensor, intercept: Tensor) -> Tensor:
    given = x @ weight + intercept[:, None]
    return (goal.nearest(given) - given).square()


def descended(goal: Goal, x: Tensor, sliced: Tensor, penalty: float, centred: bool) -> float:
    """The least of distance and penalty on the change, by a general method."""
    weight, intercept = sliced.clone().requires_grad_(), torch.zeros(GROUPS, OUTPUTS, dtype=torch.float64)
    intercept.requires_grad_(centred)
    optimizer = torch.optim.LBFGS(
        [weight, intercept] if centred else [weight], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = objective(goal, x, weight, intercept, sliced, penalty, centred)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(loss().detach())


def objective(
    goal: Goal, x: Tensor, weight: Tensor, intercept: Tensor, sliced: Tensor, penalty: float, centred: bool
) -> Tensor:
    scale = (x - x.mean(1, keepdim=True) if centred else x).square().mean((1, 2))
    change = (penalty * scale[:, None, None] * (weight - sliced).square()).sum()
    return distance(goal, x, weight, intercept).sum() / x.shape[1] + change


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_eased_it_is_the_least_distance_from_what_is_as_good(penalty: float, centred: bool) -> None:
    x, y, sliced = problem(noise=3.0)
    x = x / 4
    goal = interval(y)
    found = Regression(centred, dual=False)
    found.add(x[:, :15], Goal(*(part[:, :15] for part in goal if part is not None)))
    found.add(x[:, 15:], Goal(*(part[:, 15:] for part in goal if part is not None)))
    found.hold_out(x, goal)
    linear = solved(found, sliced, penalty)
    with mock.patch.object(regression, "_ROUNDS", 3000):
        eased = found.eased(linear)
    assert eased is not None
    assert eased.error == pytest.approx(float(distance(goal, x, eased.weight, eased.intercept).mean()), rel=1e-4)
    reached, start = (
        float(objective(goal, x, each.weight, each.intercept, sliced, penalty, centred)) for each in (eased, linear)
    )
    assert reached == pytest.approx(descended(goal, x, sliced, penalty, centred), rel=1e-4)
    assert reached < 0.9 * start
    few = found.eased(linear)
    assert few is not None
    assert few.error < linear.error


def test_rows_that_do_not_fit_are_sampled() -> None:
    x, y, sliced = problem(rows=400, noise=3.0)
    found = Regression(True, dual=False, share=0.5)
    found.add(x, interval(y))
    found.hold_out(x, interval(y))
    linear = solved(found, sliced, 1e-3)
    eased = found.eased(linear)
    assert sum(rows.shape[1] for rows, _ in found._open) == 200
    assert eased is not None
    assert eased.error < linear.error


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_rows_with_and_without_intervals_count_alike(share: float) -> None:
    x, y, sliced = problem(rows=400, noise=3.0)
    found = Regression(True, dual=False, share=share)
    fixed = Goal(y[:, 100:], y[:, 100:], y[:, 100:])
    found.add(x[:, :100], interval(y[:, :100]))
    found.add(x[:, 100:], Goal(y[:, 100:]))
    found.hold_out(x, Goal.joined([interval(y[:, :100]), fixed]))
    linear = solved(found, sliced, 1e-3)
    with mock.patch.object(regression, "_ROUNDS", 2000):
        eased = found.eased(linear)
    assert eased is not None
    goal = Goal.joined([interval(y[:, :100]), fixed])
    reached = float(objective(goal, x, eased.weight, eased.intercept, sliced, 1e-3, centred=True))
    least = descended(goal, x, sliced, 1e-3, centred=True)
    assert reached == pytest.approx(least, rel=1e-4 if share == 1 else 0.01)


def test_without_intervals_there_is_nothing_to_ease() -> None:
    x, y, sliced = problem()
    found = filled(True, False, x, y)
    assert found.eased(solved(found, sliced, 1e-3)) is None
