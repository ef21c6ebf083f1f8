"""The garbage collector while a model is cut: it looks at what is new alone, and everything is as before afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import fx, nn

import surgeon
from surgeon.errors import BudgetError
from surgeon.exclusive import collecting_new

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Cycle:
    """Only the collector finds it."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.collect()
    assert gc.isenabled()
    assert not gc.get_freeze_count()
    yield
    gc.enable()
    gc.unfreeze()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def test_what_the_body_leaves_goes_and_what_is_older_waits() -> None:
    older = weakref.ref(Cycle())
    with collecting_new():
        newer = weakref.ref(Cycle())
        gc.collect()
        assert newer() is None
        newer = weakref.ref(Cycle())
        assert older() is not None
    assert newer() is None
    assert older() is not None
    assert not gc.get_freeze_count()
    gc.collect()
    assert older() is None


def test_no_recording_is_left_behind() -> None:
    def recordings() -> int:
        return sum(type(found) is fx.Graph for found in gc.get_objects())

    before = recordings()
    surgeon.prune(model(), X, ratio=0.5, criterion="random")
    assert recordings() == before
    assert not gc.get_freeze_count()


def test_a_cut_that_fails_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(BudgetError):
        surgeon.prune(model(), X, ratio=2.0, criterion="random")
    assert not gc.get_freeze_count()


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    surgeon.prune(model(), X, ratio=0.5, criterion="random")
    assert gc.get_freeze_count() >= frozen - 100  # some were freed since, as counting them does


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    newer = None
    with collecting_new():
        newer = weakref.ref(Cycle())
        assert not gc.get_freeze_count()
    assert newer() is not None
    assert not gc.isenabled()
