"""Labels in another shape are what they would be if each place were written out."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from surgeon.rules.movement import reshape


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[int], list[bool]]:
    """Two shapes of equally many places, and on which axes of the first the labels vary."""
    primes = draw(st.lists(st.sampled_from([1, 2, 2, 3, 5]), min_size=1, max_size=6))
    shapes = []
    for factors in (primes, draw(st.permutations(primes))):
        cuts = sorted(draw(st.sets(st.integers(1, len(factors)))) | {len(factors)})
        shapes.append([math.prod(factors[i:j]) for i, j in itertools.pairwise([0, *cuts])])
    return shapes[0], shapes[1], draw(st.lists(st.booleans(), min_size=len(shapes[0]), max_size=len(shapes[0])))


@given(reshapes())
def test_labels_are_reshaped_as_if_they_were_written_out(case: tuple[list[int], list[int], list[bool]]) -> None:
    old, new, varies = case
    labels = torch.arange(math.prod(old)).view(old)
    for axis, varying in enumerate(varies):
        labels = labels if varying else labels.narrow(axis, 0, 1).expand(old)
    found = reshape(labels, new)
    assert torch.equal(found, labels.reshape(new))
    if not any(varies):
        assert all(stride == 0 or size == 1 for stride, size in zip(found.stride(), found.shape, strict=True))
