"""Who may import whom: each module imports only modules above it in this list."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER = (
    "errors",
    "contents",
    "agreement",
    "exclusive",
    "files",
    "processes",
    "jsontext",
    "jsonfiles",
    "models",
    "data",
    "tracing",
    "folding",
    "measure",
    "rules",
    "channels",
    "products",
    "criteria",
    "cost",
    "trial",
    "planning",
    "rewriting",
    "composition",
    "verification",
    "healing",
    "deadline",
    "report",
    "checkpoint",
    "exporting",
    "pages",
    "tuning",
    "finegrained",
    "trainer",
    "sweeps",
    "automatic",
    "cutting",
    "pruning",
    "streaming",
    "iteration",
    "experiments",
    "plots",
    "__init__",
)

#: What `surgeon --help` does without: it answers at once.
HEAVY = ("torch", "torchvision", "surgeon", "numpy", "scipy", "sklearn", "networkx", "rich", "PIL", "safetensors")


def files_of(name: str) -> list[Path]:
    single = ROOT / "surgeon" / f"{name}.py"
    return [single] if single.exists() else sorted((ROOT / "surgeon" / name).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports; `from a import b` yields "a.b"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def modules() -> list[str]:
    found = [path.stem for path in (ROOT / "surgeon").glob("*.py")]
    return found + [path.parent.name for path in (ROOT / "surgeon").glob("*/__init__.py")]


def test_every_module_has_its_place() -> None:
    assert sorted(set(modules()) - set(ORDER)) == []


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_what_stands_above_them(name: str) -> None:
    allowed = ORDER[: ORDER.index(name) + 1]
    for path in files_of(name):
        for imported in imports(path):
            assert not imported.startswith("."), f"{path.name}: write imports of the library in full: {imported}"
            if imported == "surgeon" or imported.startswith("surgeon."):
                other = imported.split(".")[1] if "." in imported else "__init__"
                assert other in allowed, f"{path.relative_to(ROOT)} imports {imported}"


@pytest.mark.parametrize("name", ORDER)
def test_the_library_knows_no_command_line(name: str) -> None:
    for path in files_of(name):
        for imported in imports(path):
            assert imported.split(".")[0] not in {"click", "rich", "surgeon_cli", "cli"}, path


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom surgeon_cli.main import cli\n"
        "for words in (['--help'], ['--version'], *([name, '--help'] for name in cli.list_commands(None))):\n"
        "    assert CliRunner().invoke(cli, words).exit_code == 0, words\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert sorted(set(HEAVY) & set(loaded)) == []
    assert {f"surgeon_cli.commands.{path.stem}" for path in (ROOT / "cli" / "commands").glob("*.py")} <= {
        *loaded, "surgeon_cli.commands.__init__",
    }  # fmt: skip


#: Who may call ``copy.deepcopy``: what copies modules, and what copies the state of optimizers, which holds none.
COPIERS = {"surgeon/tracing/copying.py", "surgeon/tuning/optimizers.py", "surgeon/tuning/sharded.py"}


def test_models_are_copied_by_one_function() -> None:
    """``copy.deepcopy`` refuses locks, open files and tensors with a history; ``tracing.copied`` takes them."""
    found = set()
    for path in (*(ROOT / "surgeon").rglob("*.py"), *(ROOT / "cli").rglob("*.py")):
        named = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        if "deepcopy" in named or any(name == "copy.deepcopy" for name in imports(path)):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == COPIERS
