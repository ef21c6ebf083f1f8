"""``surgeon inspect``: what can be cut, what is coupled with what, and what is left whole and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import check_outputs, there, write_text
from ..options import factory_option, image_size_option, json_option, refuse_of_files

if TYPE_CHECKING:
    import networkx

    from surgeon.channels import ChannelGraph

_COLOURS = {"layer": "lightblue", "group": "palegreen"}


@click.command(name="inspect", short_help="Show groups, couplings, and why layers are left whole.")
@click.argument("model_or_file", callback=there)
@factory_option
@image_size_option
@click.option("--dot", type=click.Path(path_type=Path), metavar="FILE", help="Write the channel graph for graphviz.")
@click.option(
    "--filters",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the first convolution's filters as images: png, svg or pdf.",
)
@json_option
def command(
    model_or_file: str,
    factory: str | None,
    image_size: int | None,
    dot: Path | None,
    filters: Path | None,
    as_json: bool,
) -> None:
    """Show which layers share channels, how many can go, and what is left whole and why.

    MODEL_OR_FILE is a {MODELS}.

    Example: surgeon inspect resnet18 --dot resnet18.dot
    """
    refuse_of_files([model_or_file])
    check_outputs([dot], [model_or_file], plots=[filters])
    graph, about = _graph(model_or_file, factory, image_size)
    if filters is not None:
        from surgeon import plots

        plots.filters(graph.trace.model, filters)
    found = {
        **about,
        "groups": [_group(group) for group in graph.groups],
        "pinned": [{"layer": p.layer, "reason": p.reason, "source": p.source} for p in graph.pinned],
    }
    if dot is not None:
        write_text(dot, to_dot(graph.to_networkx()))
    if as_json:
        from ..output import emit_json

        emit_json(found)
    else:
        _show(found)


def _graph(name: str, factory: str | None, image_size: int | None) -> tuple[ChannelGraph, dict[str, Any]]:
    import surgeon

    from ..runtime import open_model

    opened = open_model(name, factory, image_size, weights="none")
    about: dict[str, Any] = {"model": name}
    if (header := opened.header) is not None:
        removed = {group: len(channels) for group, channels in header.plan.removed.items()}
        about = {"model": header.class_name, "file": name, "origin": header.origin, "removed": removed}
    return surgeon.channel_graph(surgeon.trace(opened.model, opened.inputs)), about


def _group(group: Any) -> dict[str, Any]:
    members = [{"tensor": m.tensor, "axis": m.axis, "role": m.role} for m in group.members]
    return {
        "name": group.name,
        "size": group.size,
        "filters": group.filters,
        "producers": list(group.producers),
        "consumers": list(group.consumers),
        "members": members,
    }


def _show(found: dict[str, Any]) -> None:
    from ..output import reasons, say, table

    rows = (
        (g["name"], _few(g["producers"]), _few(g["consumers"]), g["size"], g["size"] * g["filters"])
        for g in found["groups"]
    )
    if "file" in found:
        say(f"{found['file']}: a {found['model']}; {_history(found['removed'])}")
    table(
        f"{found['model']}: {len(found['groups'])} groups",
        ("group", "layers that share its channels", "read by", "channels", "filters"),
        rows,
        left=3,
    )
    reasons(found["pinned"])


def _history(removed: dict[str, int]) -> str:
    if not removed:
        return "nothing is cut yet. What could go:"
    return f"{sum(removed.values())} channels went from {len(removed)} groups. What could still go:"


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def to_dot(graph: networkx.DiGraph) -> str:
    """The channel graph in graphviz's language."""
    return "\n".join(["digraph surgeon {", "  rankdir=LR;", *_dot_lines(graph), "}", ""])


def _dot_lines(graph: networkx.DiGraph) -> Iterator[str]:
    for node, facts in graph.nodes(data=True):
        kind = facts.get("kind", "layer")
        second = facts.get("type") if kind == "layer" else f"{facts.get('size')} channels"
        shape = "box" if kind == "layer" else "ellipse"
        label = f"{node}\\n{second}" if second else str(node)
        style = f"shape={shape}, style=filled, fillcolor={_COLOURS.get(kind, 'white')}"
        yield f"  {_quote(node)} [label={_quote(label)}, {style}];"
    for source, target, facts in graph.edges(data=True):
        yield f"  {_quote(source)} -> {_quote(target)} [label={_quote(facts.get('kind', ''))}];"


def _quote(text: object) -> str:
    return '"' + str(text).replace('"', '\\"') + '"'
