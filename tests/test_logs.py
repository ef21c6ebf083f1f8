"""The log: one logger, nothing printed, lines of JSON for machines."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

import surgeon
from tests import factories
from tests.cli_run import surgeon_cli

ROOT = Path(__file__).resolve().parent.parent
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def test_the_library_prints_nothing_and_has_one_logger() -> None:
    for path in (ROOT / "surgeon").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "sys.stdout.write", "sys.stderr.write"), path
                if called == "logging.getLogger":
                    assert ast.unparse(node.args[0]) == "'surgeon'", path


def test_a_cut_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    surgeon.prune(factories.small(), X, filters=6, criterion="magnitude")
    assert capfd.readouterr() == ("", "")


def test_a_program_that_asks_for_no_log_sees_none() -> None:
    code = (
        "import surgeon, torch, logging; from tests import factories\n"
        "logging.getLogger('surgeon').warning('unheard')\n"
        "surgeon.prune(factories.small(), torch.zeros(1, 3, 8, 8), filters=2, criterion='magnitude')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_stage_is_logged_with_its_time_as_the_report_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="surgeon"):
        report = surgeon.prune(factories.small(), X, filters=6, criterion="magnitude").report
    told = {record.stage: record.seconds for record in caplog.records}  # type: ignore[attr-defined]
    assert told == dict(report.seconds)
    assert {"trace", "score", "plan", "rewrite", "verify"} <= set(told)
    assert {record.name for record in caplog.records} == {"surgeon"}


def test_the_command_line_writes_lines_of_json(tmp_path: Path) -> None:
    log, words = tmp_path / "log", ("prune", "--model", "tests.factories:small", "--filters", "6", "--image-size", "16")
    for _ in range(2):  # the second log stands behind the first
        ran = surgeon_cli("--log-json", log, *words, "--output", tmp_path / "s.safetensors")
        assert ran.code == 0
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert all({"time", "level", "stage", "message"} <= set(row) for row in rows)
    assert sum(row["stage"] == "trace" for row in rows) == 2
    assert all(row["seconds"] >= 0 for row in rows if row["stage"] in ("trace", "plan", "verify"))
    assert rows[-1]["message"] == "surgeon prune: done"
    assert any(row["stage"] == "cli" and "written" in row["message"] for row in rows)
    assert len(logging.getLogger("surgeon").handlers) == len(
        [h for h in logging.getLogger("surgeon").handlers if isinstance(h, logging.NullHandler)]
    )


def test_the_log_says_what_went_wrong(tmp_path: Path) -> None:
    ran = surgeon_cli("--log-json", tmp_path / "log", "inspect", "no-such-model")
    assert ran.code == 2
    row = json.loads((tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1])
    assert (row["level"], row["stage"]) == ("error", "cli")
    assert "no-such-model" in row["message"]


@pytest.mark.parametrize(
    ("words", "raised", "told"),
    [
        (("prune", "--help"), None, ("info", "surgeon prune: done")),
        (("device",), KeyboardInterrupt(), ("warning", "surgeon device: stopped")),
    ],
)
def test_help_is_no_error_and_a_stop_is_noted(
    words: tuple[str, ...],
    raised: BaseException | None,
    told: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(_self: click.Command, _ctx: click.Context) -> None:
        assert raised is not None
        raise raised

    if raised is not None:
        monkeypatch.setattr(click.Command, "invoke", stop)
    assert surgeon_cli("--log-json", tmp_path / "log", *words).code == (0 if raised is None else 130)
    row = json.loads((tmp_path / "log").read_text(encoding="utf-8").splitlines()[-1])
    assert (row["level"], row["message"]) == told


def test_a_log_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    ran = surgeon_cli("--log-json", tmp_path / "gone" / "log", "inspect", "resnet18")
    assert (ran.code, "Traceback" in ran.err) == (2, False)


def test_names_do_not_steer_the_terminal() -> None:
    ran = surgeon_cli("inspect", "evil\x1b[2J")
    assert ran.code == 2
    assert "\x1b" not in ran.err
