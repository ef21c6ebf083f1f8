"""Runs the command line inside the test's process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import click
from click.testing import CliRunner

from surgeon_cli.main import cli


def commands() -> click.Group:
    """The program's group of commands."""
    assert isinstance(cli, click.Group)
    return cli


@dataclass(frozen=True)
class Ran:
    """What came back."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def surgeon_cli(*words: object) -> Ran:
    """Run ``surgeon WORDS``; a bug (any exception that is no message) fails the test with its traceback."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)
