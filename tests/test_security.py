"""docs/security.md: every claim has a test, and the tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line and "| test |" not in line]


def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS)
def test_every_claim_has_a_test(row: str) -> None:
    claim, named = (cell.strip() for cell in row.strip("|").split("|"))
    assert claim.endswith(".")
    found = re.findall(r"`(test_\w+\.py)::(test_\w+)`", named)
    assert found, claim
    for file, name in found:
        assert name in names_in(file), name


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 20


def test_benchmarks_that_are_named_exist() -> None:
    for name in re.findall(r"python (benchmarks/\w+\.py)", PAGE):
        assert (ROOT / name).exists()


#: Calls that make or fill a file, and where they may stand: inside `write_beside`, or in a folder of their own.
WRITERS = (".write_text", ".write_bytes", ".savefig", "save_file", ".copyfile", "torch.save")
FREE = {
    "surgeon/exporting/modules.py": "a draft, in a temporary folder",
    "surgeon/exporting/programs.py": "a draft, in a temporary folder",
    "surgeon/streaming/shards.py": "_write, which is called inside write_beside",
    "surgeon/checkpoint/__init__.py": "write_tensors, which is called inside write_beside",
}


def test_every_writer_goes_through_write_beside() -> None:
    for folder in ("surgeon", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            if str(path.relative_to(ROOT)) in FREE:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inside = {id(node) for block in ast.walk(tree) if _writes_beside(block) for node in ast.walk(block)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(WRITERS):
                    assert id(node) in inside or "write_beside" in ast.unparse(node), f"{path.name}:{node.lineno}"
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open"):
                    modes = [word.value for word in node.args if isinstance(word, ast.Constant)]
                    assert not any(str(mode) in ("w", "wb", "a", "x", "w+", "r+b") for mode in modes), path.name


def _writes_beside(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any("write_beside" in ast.unparse(item) for item in node.items)
