"""JSON: written so that it can be read again, by one reader, into values of the right types."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from surgeon import jsonfiles
from surgeon.jsonfiles import as_read, shaped, write_file
from surgeon.jsontext import dump_json, read_json


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    value = {"a": [math.nan, math.inf, -math.inf, 1e-320, -0.0, 1.5], "b": {"float": "nine"}, "c": {"float": 1.0}}
    write_file(tmp_path / "a", value)
    text = (tmp_path / "a").read_text()
    found = read_json(text, exact=True)
    assert dump_json(found, exact=True) == dump_json(value, exact=True)
    assert math.isnan(found["a"][0])
    assert math.copysign(1, found["a"][4]) == -1
    assert found["b"] == value["b"]
    assert read_json(text)["a"][0] == {"float": "nan"}
    assert as_read({"x": (1, math.inf)}) == {"x": [1, math.inf]}


def test_what_is_no_value_of_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="nothing that JSON can hold"):
        write_file(tmp_path / "a", {"a": object()})
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Parts:
    """Every kind of part that a file may have."""

    many: tuple[int, ...]
    two: tuple[str, float]
    named: dict[str, list[bool]]
    maybe: int | None = None
    either: str | float = 0.0
    anything: Any = None


def test_values_become_instances() -> None:
    value = {"many": [1, 2], "two": ["a", 3], "named": {"x": [True]}, "either": "b", "anything": [None]}
    assert shaped(Parts, value) == Parts((1, 2), ("a", 3.0), {"x": [True]}, None, "b", [None])
    assert shaped(Parts, as_read(asdict(shaped(Parts, value)))) == shaped(Parts, value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"many": 1}, "many is 1, expected a list"),
        ({"many": [1, True]}, r"many\[1\] is True, expected a whole number"),
        ({"many": [1.0]}, r"many\[0\] is 1.0, expected a whole number"),
        ({"two": ["a"]}, "expected a list of 2"),
        ({"two": ["a", "b"]}, r"two\[1\] is 'b', expected a number"),
        ({"named": {"x": [1]}}, r"named\['x'\]\[0\] is 1, expected true or false"),
        ({"maybe": "x"}, "maybe is 'x', expected a whole number"),
        ({"either": None}, "either is None, expected a number"),
        ({"other": 1}, "unknown field 'other'"),
    ],
)
def test_values_of_another_type_are_named(change: dict[str, Any], told: str) -> None:
    value = {"many": [1, 2], "two": ["a", 3], "named": {}}
    with pytest.raises(ValueError, match=told):
        shaped(Parts, {**value, **change})
    with pytest.raises(ValueError, match="no field 'named'"):
        shaped(Parts, {"many": [1, 2], "two": ["a", 3]})


#: Modules in which JSON is read that no stranger can have written: words between our own processes.
OURS = {"surgeon/processes/handshake.py", "surgeon/exporting/modules.py", "surgeon/jsontext.py"}


def test_all_json_is_read_by_the_one_reader() -> None:
    root = Path(jsonfiles.__file__).parent.parent
    for folder in ("surgeon", "cli"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if str(path.relative_to(root)) not in OURS:
                left = text.replace("json.loads(result.plan.to_json())", "").replace("json.loads(plan.to_json())", "")
                assert "json.load" not in left, path
