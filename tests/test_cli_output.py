"""What the user sees of a long job: lines in a pipe, with a time that is left."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from surgeon_cli.output import Watch, _bar, _Left, say, warn


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


def test_a_slow_stage_on_a_terminal_has_a_time_left_too(clock: Clock) -> None:
    watch = Watch()
    watch._bar = bar = _bar(Console(file=io.StringIO(), force_terminal=True, width=100))
    with watch:
        for done in (0, 1, 2):
            watch("steps", done, 5)
            clock.now += 600
        watch("tracing", 0, 1)
        watch("tracing", 1, 1)
        shown = {task.description: task for task in bar.tasks}
        assert not shown["tracing"].visible
        assert str(_Left().render(shown["steps"])) == "about 20 min left"  # of 30, ten of which have passed


def test_lines_are_written_above_the_bar_and_stay() -> None:
    screen = io.StringIO()
    watch = Watch()
    watch._bar = _bar(Console(file=screen, force_terminal=True, width=60))
    with watch:
        watch("training", 1, 9)
        say("epoch 1: [a] line that is longer than the screen is wide, and is not cut into two lines by that")
        warn("careful")
        watch("training", 2, 9)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    lines = text.replace("\r", "\n").split("\n")
    assert "epoch 1: [a] line that is longer than the screen is wide, and is not cut into two lines by that" in lines
    assert "WARNING: careful" in lines


def test_a_stage_of_unknown_length_is_counted(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    for done in range(1, 5):
        watch("score", done, 0)
        clock.now += 6
    assert lines(capsys) == ["ranking: 1", "ranking: 3"]
