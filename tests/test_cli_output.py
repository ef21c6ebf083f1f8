"""What the user sees of a long job: lines in a pipe, with a time that is left."""

from __future__ import annotations

import time

import pytest

from surgeon_cli.output import Watch


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_time_left_is_that_of_the_pace_so_far(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    for done in range(5):
        watch("tune", done, 10)
        clock.now += 12
    assert lines(capsys)[1:] == [
        "training: 1/10 (about 2 min left)", "training: 2/10 (about 96 s left)", "training: 3/10 (about 84 s left)",
        "training: 4/10 (about 72 s left)",
    ]  # fmt: skip


def test_what_an_earlier_run_has_left_makes_it_no_faster(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    for done in range(1, 6):  # read from a file, within no time
        watch("sweep", done, 9)
        clock.now += 0.01
    clock.now += 20
    watch("sweep", 6, 9)
    assert lines(capsys)[-1] == "sweep: 6/9 (about 60 s left)"


def test_a_stage_that_begins_again_has_a_new_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    for done in (1, 2, 3, 4):
        watch("tune", done, 4)
        clock.now += 100
    for done in (1, 2):
        watch("tune", done, 4)
        clock.now += 11
    assert lines(capsys)[-1] == "training: 2/4 (about 22 s left)"


def test_a_stage_of_unknown_length_is_counted(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    for done in range(1, 5):
        watch("score", done, 0)
        clock.now += 6
    assert lines(capsys) == ["ranking: 1", "ranking: 3"]
