"""Writes docs/cli.md from every command's --help, docs/api.md from docstrings, and the picture of docs/channels.md.

python docs/generate.py            # write them
python docs/generate.py --check    # exit 1 when one is not what the program says
"""

from __future__ import annotations

import html
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

import surgeon
from surgeon.pages.lanes import lanes
from surgeon.report import make_report
from surgeon_cli.main import cli

HERE = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py: change the source, not this page. -->"
#: What Ctrl-C leaves of each command.
STOPPED = {
    "`train`, `prune --epochs`, `compare --experiment`, `sensitivity`": (
        "everything that is finished; the same command with `--resume` goes on"
    ),
    "`device`, and what `--max-latency` and `--round-to auto` measure": (
        "every time that was measured, in the cache folder; the same command goes on"
    ),
    "`bench`": ("each device, back end and batch size is shown as soon as it is done; the same command starts again"),
    "`shards`": "nothing: the new folder is complete or not there, and the same command starts again",
    "`prune` without training": (
        "nothing: it starts again. One cut takes seconds to a few minutes; `--criterion auto`, `--heal lstsq` and "
        "large images make it minutes to an hour"
    ),
    "`share`, `sparsify`": "nothing: they start again, after minutes with `--heal`, a minute or less without",
    "`demo`, `evaluate`, `export`, `inspect`, `report`": (
        "nothing: they take a minute or less for most networks, and start again"
    ),
}
#: Folders of the library that a user calls beyond the names at the top.
FURTHER = ("data", "models", "measure", "finegrained", "plots")


def cli_page() -> str:
    """Every command's --help."""
    runner, parts = CliRunner(), [NOTE, "# Command line", "What `--help` says, command by command."]
    for name in ("", *cli.list_commands(click.Context(cli))):
        words = [name, "--help"] if name else ["--help"]
        shown = runner.invoke(cli, words, prog_name="surgeon", terminal_width=100).output.rstrip()
        parts += [f"## surgeon {name}".rstrip(), f"```text\n{shown}\n```"]
    parts += [
        "## When a command is stopped",
        (
            "Ctrl-C ends every command with exit code 130 and one line that says how to go on. No file is ever left "
            "half-written."
        ),
        "\n".join(
            ["| command | what is kept |", "| --- | --- |", *(f"| {c} | {kept} |" for c, kept in STOPPED.items())]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Every public name with its signature and docstring."""
    parts = [NOTE, "# Python", "The names of `surgeon`, and those of its folders that are called directly."]
    parts += [text for name in surgeon.__all__ for text in _entry("surgeon", name, getattr(surgeon, name))]
    for folder in FURTHER:
        module = __import__(f"surgeon.{folder}", fromlist=["__all__"])
        parts += [f"# surgeon.{folder}", _prose(module.__doc__)]
        parts += [text for name in module.__all__ for text in _entry(f"surgeon.{folder}", name, getattr(module, name))]
    return "\n\n".join(parts) + "\n"


def _entry(where: str, name: str, value: Any) -> Iterator[str]:
    if inspect.ismodule(value):
        return
    yield f"## {where}.{name}"
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        shown = f"frozenset({sorted(value)})" if isinstance(value, frozenset) else _plain(repr(value))
        yield f"```python\n{where}.{name} = {shown}\n```"
        return
    if not (inspect.isclass(value) and issubclass(value, BaseException)):
        yield f"```python\n{_signature(f'{where}.{name}', value)}\n```"
    yield _prose(value.__doc__)
    for method, function in _methods(value):
        yield f"**{name}.{method}**{_plain(str(inspect.signature(function)))}"
        yield _prose(function.__doc__)


def _methods(value: Any) -> Iterator[tuple[str, Any]]:
    """A class's own public methods that say what they do."""
    for name, found in vars(value).items() if inspect.isclass(value) else ():
        function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield name, function


def _signature(name: str, value: Any) -> str:
    """One parameter per line where they don't fit into one."""
    signature = inspect.signature(value)
    line = f"{name}{_plain(str(signature))}"
    if len(line) <= 100:
        return line
    inside, star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            inside.append("*,")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        inside.append(_plain(f"{parameter},"))
    result = signature.return_annotation
    arrow = "" if result is signature.empty else f" -> {_plain(result if isinstance(result, str) else str(result))}"
    return f"{name}(\n" + textwrap.indent("\n".join(inside), "    ") + f"\n){arrow}"


def _plain(text: str) -> str:
    """Without quotes around annotations and without addresses, so that every run writes the same."""
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def _prose(text: str | None) -> str:
    """A docstring as Markdown: its sections as lists, what Sphinx marks as code."""
    lines = inspect.cleandoc(text or "").splitlines()
    done: list[str] = []
    section = False
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line and set(line) == {"-"}:
            continue
        if line and following and set(following) == {"-"}:
            section = True
            done += [f"*{line}*", ""]
        elif section and line and not line.startswith(" "):
            done.append(f"- `{line.rstrip(':')}`")
        else:
            done.append(line)
    marked = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", "\n".join(done))
    return marked.replace("``", "`")


def channels_picture() -> str:
    """The graph of the network in docs/channels.md, as lanes beside its layers."""
    code = re.search(r"```python\n(.*?)```", _read(HERE / "channels.md"), flags=re.DOTALL)
    assert code is not None
    made: dict[str, Any] = {"print": lambda *_: None}
    exec(compile(code[1], "channels.md", "exec"), made)  # noqa: S102  # the page's own code
    graph = made["graph"]
    report = make_report(graph, np.ones(graph.structure.count, dtype=bool), None, ()).to_dict()
    drawing = lanes(report["groups"], report["flow"])
    width, height = drawing.width + 190, drawing.height
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for lane in drawing.lanes:
        colour = f"hsl({lane.hue} 65% 45%)"
        lines.append(
            f'<path d="M{lane.x} {lane.top}V{lane.bottom}" stroke="{colour}" stroke-width="2.5"/><g stroke="{colour}">'
        )
        for mark in lane.marks:
            radius, fill = _MARKS[mark.role]
            lines.append(
                f'<circle cx="{lane.x}" cy="{mark.y}" r="{radius}" fill="{fill or colour}" stroke-width="2">'
                f"<title>{html.escape(f'{lane.name}: {lane.size} channels')}</title></circle>"
            )
        lines.append("</g>")
    for number, row in enumerate(drawing.rows):
        y = drawing.row_height * number + drawing.row_height // 2 + 4
        lines.append(f'<text x="{drawing.width + 6}" y="{y}">{html.escape(row.layer)}</text>')
    return "\n".join([*lines, "</svg>", ""])


#: Radius and filling of a mark; None: the lane's colour.
_MARKS = {"produces": (5, None), "follows": (2, None), "consumes": (4, "white")}
PAGES = {"cli.md": cli_page, "api.md": api_page, "channels.svg": channels_picture}


def main(words: list[str]) -> int:
    """Write the pages, or say which are stale: spaces apart, for click breaks lines as it likes."""
    stale = [name for name, make in PAGES.items() if _read(HERE / name).split() != make().split()]
    if "--check" in words:
        if stale:
            sys.stderr.write(f"stale: {', '.join(stale)}; run python docs/generate.py\n")
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(PAGES[name](), encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
