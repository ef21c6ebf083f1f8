"""Documentation is run: README's commands exist, its Python names exist, every command is told about."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import surgeon
from surgeon import tracing, trial
from surgeon.rules import reasons
from surgeon_cli import files
from tests.cli_run import commands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = commands().list_commands(click.Context(commands()))


@pytest.fixture(autouse=True)
def all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that examples name are there, as far as the commands' options know."""
    for name in COMMANDS:  # loaded now, or what they import by name would stay after this test
        commands().get_command(click.Context(commands()), name)
    monkeypatch.setattr(files, "is_file", lambda _: False)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def surgeon_lines() -> list[str]:
    parts = [part.strip() for line in shell_lines() for part in line.split("&&")]
    return [part for part in parts if part.startswith("surgeon ")]


#: How README says that it is tested.
TESTED = "python -m pip install '.[test]' && python -m pytest -q"


def test_the_first_commands() -> None:
    assert shell_lines()[:2] == [
        "python -m pip install . && surgeon demo",
        "python -m pip install . && surgeon prune --model vgg16_bn --filters 512",
    ]
    assert TESTED in shell_lines()


def test_the_release_check_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = TESTED.split(" && ")
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


FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (surgeon, surgeon.finegrained)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_of_a_public_function_is_explained(name: str) -> None:
    explained = set(re.findall(r"\w+", inspect.getdoc(FUNCTIONS[name]) or ""))
    assert [own for own in inspect.signature(FUNCTIONS[name]).parameters if own not in explained] == []


@pytest.mark.parametrize("package", [tracing, trial], ids=lambda package: package.__name__)
def test_the_map_of_a_package_names_all_its_files(package: types.ModuleType) -> None:
    files = {path.stem for path in Path(package.__path__[0]).glob("[!_]*.py")}
    assert set(re.findall(r"(?<!:)`(\w+)`", package.__doc__ or "")) == files


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


def test_tables_are_those_of_the_results() -> None:
    """Every marked table is what its file under benchmarks/results makes of it."""
    script = ROOT / "benchmarks" / "readme.py"
    ran = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def results(name: str) -> dict[str, Any]:
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_figures_of_the_questions_are_measured() -> None:
    told = " ".join(page("questions.md").split())
    for batch, timed in ((1, False), (256, False), (256, True)):
        found = [
            side["speed_up"]["ratio"]
            for key, row in results("latency-cuda")["rows"].items() if f"/{batch}/" in f"{key}/"
            for way, side in row["rows"].items() if ("time" in way) == timed
        ]  # fmt: skip
        assert f"{min(found):.2f}x to {max(found):.2f}x at batch {batch}" in told
    surgery = results("surgery")["rows"]["resnet50"]
    ours = surgery["times"]["surgeon"]["wall_s"]["median"]
    assert f"ResNet-50: {surgery['verification']['wall_s']:.1f} s beside {ours:.1f} s" in told
    assert round(ours / surgery["times"]["forward"]["wall_s"]["median"]) == 5  # "as long as five of its forwards"
    large = results("large")["rows"]["7b"]
    others = sum(seconds for stage, seconds in large["seconds"].items() if stage != "verify")
    assert f"{large['params'] / 1e9:.1f} billion parameters" in told
    assert f"{large['seconds']['verify'] / 60:.0f} minutes beside {others / 60:.0f}" in told


def test_every_reason_to_stay_is_explained() -> None:
    rows = re.findall(r"^\| `([^`|]+)` \| [^|]+ \| [^|]*\|$", page("questions.md"), re.MULTILINE)
    node = types.SimpleNamespace(target="NAME", meta={})
    given = [
        reasons.without_rule("NAME"), reasons.closed("NAME"), reasons.beside("LAYER"), reasons.mixes(node),  # type: ignore[arg-type]
        *(value for name, value in vars(reasons).items() if name.isupper()),
    ]  # fmt: skip
    assert [reason for reason in given if reason not in rows] == []
    assert reasons.constant(node).startswith("constant in ")  # type: ignore[arg-type]
    assert "constant in FILE:LINE" in rows
    assert len(rows) >= len(given) + 1


#: Scripts that train what was healed and need not settle it.
NO_NORMS = {"huggingface_trainer.py": "a vision transformer has no batch norms"}


def python() -> Iterator[tuple[str, str]]:
    """Every block of a page, and every script."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        found = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        yield from ((f"{path.name}:{number}", code) for number, code in enumerate(found))
    yield from ((path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").glob("*.py")))


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in python() if name not in NO_NORMS])
def test_what_is_healed_is_settled_before_it_is_trained(code: str) -> None:
    healed = list(re.finditer(r'heal="lstsq"|\.heal\(', code))
    if not healed:
        return
    behind = code[healed[-1].end() :]
    trained = re.search(r"\.tune\(|\bfit\(|\.train\(", behind)
    if trained is not None:
        assert "surgeon.settle(" in behind[: trained.start()]


def anchors(text: str) -> set[str]:
    """Of every heading, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))])
def test_links_into_pages_lead_to_a_heading(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        other = (ROOT / path).parent / target if target else ROOT / path
        assert anchor in anchors(other.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_page_is_in_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in README, page.name
