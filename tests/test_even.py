"""Steps that keep sums of widths equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import surgeon
from surgeon.channels import ChannelGraph, Even
from surgeon.channels.even import Amounts, even_path


def test_a_pair_goes_with_two_channels_and_a_single_one_with_one() -> None:
    path = even_path([{0: 2, 1: 1, 2: -1}], [7, 2, 16])
    assert path[-1].tolist() == [6, 1, 13]
    assert {tuple(step) for step in np.diff(path, axis=0).tolist()} == {(1, 0, 2), (0, 1, 1)}
    assert path[4].tolist() == [3, 1, 7], "about as fast as each other"


@pytest.mark.parametrize(
    ("rows", "sizes", "last"),
    [
        ([{0: 1, 1: -1}], [4, 4], [3, 3]),
        ([{0: 2, 1: -3}], [9, 6], [6, 4]),  # three with two, and never the last of a group
        ([{0: 1, 1: 1}], [4, 4], [0, 0]),  # a sum of nothing but what goes is 0 while nothing goes
        ([{0: 1, 1: 1, 2: -1, 3: -1}, {0: 1, 2: -1}], [4, 4, 4, 4], [3, 3, 3, 3]),  # the second row solves the first
        ([{0: 1, 1: 1, 2: -1, 3: -1}], [4, 4, 4, 4], [0, 0, 0, 0]),  # nothing follows from anything: it isn't tried
        ([{0: 5, 1: -1}], [4, 3], [0, 0]),  # one step would take more than there is
    ],
)
def test_how_far_groups_can_go(rows: list[Amounts], sizes: list[int], last: list[int]) -> None:
    assert even_path(rows, sizes)[-1].tolist() == last


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.dictionaries(st.integers(0, 4), st.integers(-3, 3), min_size=1), max_size=4),
    st.lists(st.integers(2, 12), min_size=5, max_size=5),
)
def test_every_step_keeps_every_row_and_a_channel_of_each_group(rows: list[Amounts], sizes: list[int]) -> None:
    path = even_path(rows, sizes)
    matrix = np.array([[row.get(group, 0) for group in range(5)] for row in rows]).reshape(-1, 5)
    assert not (path @ matrix.T).any()
    assert (path < np.array(sizes)).all()
    assert not path[0].any()
    assert (np.diff(path, axis=0) >= 0).all()
    assert (np.diff(path, axis=0).sum(axis=1) > 0).all()


def linked() -> ChannelGraph:
    """A layer of 6 of which two channels go with one of a layer of 3."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    graph = surgeon.channel_graph(surgeon.trace(model, torch.randn(2, 4)))
    return graph.link([Even((frozenset({("0", 1)}), frozenset({("2", 2)})))])


def test_linked_groups_are_one_bundle_that_goes_step_by_step() -> None:
    (bundle,) = linked().bundles
    assert [group.name for group in bundle.groups] == ["0", "2"]
    assert bundle.exact
    assert bundle.gone(np.arange(bundle.steps)).tolist() == [[0, 0], [2, 1], [4, 2]]


def test_where_one_of_them_stays_the_other_stays_as_well() -> None:
    graph = linked()
    assert not graph.pin(graph.named["2"].numbers, "here").bundles


@pytest.mark.parametrize(
    ("options", "widths"), [({"min_channels": 2}, (4, 2)), ({"round_to": 2}, (4, 2)), ({}, (2, 1))]
)
def test_widths_of_linked_groups_are_those_that_are_wanted(options: dict[str, Any], widths: tuple[int, int]) -> None:
    graph = linked()
    plan = surgeon.make_plan(graph, surgeon.score(graph, "magnitude"), ratio=0.7, **options)
    small: Any = surgeon.rewrite(graph.trace.model, plan)
    assert (small[0].out_features, small[2].out_features) == widths
