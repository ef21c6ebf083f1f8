"""docs/ancestors.md: all 26 rows, each with commands and calls that there are, and tests that there are."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path

import click
import pytest

import surgeon
from tests.cli_run import commands

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "ancestors.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| \d+ \|.*$", PAGE.partition("## Figures")[0], re.MULTILINE)
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in LINES]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@functools.cache
def defined_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_all_26_rows_are_there() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, 27))
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_that_a_row_names_exist(row: list[str]) -> None:
    named = spans(row[4])
    assert named
    for name in named:
        file, _, function = name.partition("::")
        assert function in defined_in(file), name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_commands_and_calls_of_a_row_exist(row: list[str]) -> None:
    assert spans(row[3])
    for span in spans(row[3]):
        if span.startswith("surgeon "):
            _, name, *words = shlex.split(span)
            command = None if name == "--help" else commands().get_command(click.Context(commands()), name)
            for flag in (word for word in words if word.startswith("--") and command is not None):
                assert command is not None
                assert flag in {option for param in command.params for option in param.opts}, span
        for owner, attribute in re.findall(r"\b(surgeon|finegrained)\.(\w+)", span):
            assert hasattr({"surgeon": surgeon, "finegrained": surgeon.finegrained}[owner], attribute), span
