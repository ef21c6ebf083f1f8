"""Documentation is run: README's commands exist, its Python names exist, every command is told about."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import surgeon
from surgeon_cli import files
from tests.cli_run import commands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = commands().list_commands(click.Context(commands()))


@pytest.fixture(autouse=True)
def all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that examples name are there, as far as the commands' options know."""
    monkeypatch.setattr(files, "is_file", lambda _: False)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def surgeon_lines() -> list[str]:
    parts = [part.strip() for line in shell_lines() for part in line.split("&&")]
    return [part for part in parts if part.startswith("surgeon ")]


def test_the_first_commands() -> None:
    assert shell_lines()[:3] == [
        "python -m pip install . && surgeon demo",
        "python -m pip install . && surgeon prune --model vgg16_bn --filters 512",
        "python -m pip install '.[test]' && python -m pytest -q",
    ]


def test_the_release_check_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = shell_lines()[2].split(" && ")
    assert install.replace("install ", "install --quiet ") in script
    assert f"{test} | tee" in script


@pytest.mark.parametrize("line", surgeon_lines())
def test_commands_in_the_readme_parse(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = commands().get_command(click.Context(commands()), name)
    assert command is not None
    command.make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"surgeon {name}" in README
    command = commands().get_command(click.Context(commands()), name)
    assert command is not None
    example = re.search(r"Example: (surgeon .*)", command.help or "")
    assert example is not None
    _, called, *words = shlex.split(example[1])
    assert called == name
    command.make_context(name, words)


def doc_lines() -> list[str]:
    """Every ``surgeon ...`` line of a shell block under docs/."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    found = [block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)]
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("surgeon ")]


@pytest.mark.parametrize("line", doc_lines())
def test_commands_in_the_docs_parse(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = commands().get_command(click.Context(commands()), name)
    assert command is not None
    command.make_context(name, words)


@pytest.mark.parametrize("code", blocks("python"))
def test_names_in_the_readmes_python_exist(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "surgeon":
            assert hasattr(surgeon, node.attr), node.attr


def test_markers_of_generated_tables_come_in_pairs() -> None:
    marks = re.findall(r"<!-- (results:[\w-]+|/results) -->", README)
    assert [mark.startswith("results:") for mark in marks] == [True, False] * (len(marks) // 2)
    assert marks


def test_the_changelog_knows_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    ["README.md", "CHANGELOG.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").glob("*.md")))],
)
def test_links_to_files_lead_somewhere(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / path).parent / target).exists(), target


def test_generated_pages_are_current() -> None:
    """In a process of its own: click remembers how a command was last asked for help."""
    ran = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_page_is_in_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in README, page.name
