"""docs/security.md: every claim has a test, and the tests are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


#: What would pickle, or unpickle more than tensors: by the ends of full names.
PICKLERS = (
    "torch.save", "torch.serialization.save", "torch.package.PackageExporter", "torch.package.PackageImporter",
    "numpy.save", "numpy.savez", "numpy.savez_compressed", "gather_object", "_object_list", "read_pickle", "to_pickle",
)  # fmt: skip
PICKLES = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
#: The one name in them that may be used: torch raises it for what it doesn't unpickle.
ERROR = "pickle.UnpicklingError"
#: Unpicklers that read tensors alone, if they are called with `weights_only=True`.
LOADERS = ("torch.load", "torch.serialization.load", "torch.hub.load_state_dict_from_url")


def test_nothing_is_pickled_and_only_state_dicts_are_unpickled() -> None:
    for folder in ("surgeon", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            assert list(pickling(path.read_text(encoding="utf-8"))) == [], path.relative_to(ROOT)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.save(model, path)",
        "from torch import save as keep\nkeep(model, path)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load\nload(path, weights_only=chosen)",
        "import torch\nread = torch.load",
        "import torch\ntorch.hub.load_state_dict_from_url(url)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.savez(path, array)",
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "import torch.distributed as dist\ndist.broadcast_object_list(things)",
    ],
)
def test_what_pickles_is_found(code: str) -> None:
    assert list(pickling(code))


def pickling(code: str) -> Iterator[str]:
    """What in a module pickles, or unpickles more than a state dict."""
    tree = ast.parse(code)
    known = imported(tree)
    yield from (full for full in known.values() if full.startswith(tuple(f"{name}." for name in PICKLES)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    words = {id(node.func): {word.arg: ast.unparse(word.value) for word in node.keywords} for node in calls}
    yield from (str(found) for found in words.values() if found.get("allow_pickle", "False") != "False")
    for node in ast.walk(tree):
        full = full_name(node, known) if isinstance(node, ast.Attribute | ast.Name) else ""
        safe = words.get(id(node), {}).get("weights_only") == "True"
        unpickles = full.partition(".")[0] in PICKLES and full not in ("pickle", ERROR)
        if full.endswith(PICKLERS) or unpickles or (full in LOADERS and not safe):
            yield full


def imported(tree: ast.AST) -> dict[str, str]:
    """Full names by the names under which a module knows them."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    """What a name or an attribute stands for, as far as imports say."""
    first, dot, rest = ast.unparse(node).partition(".")
    return known.get(first, first) + dot + rest
