"""``surgeon report``: one HTML file that shows what a cut did."""

from __future__ import annotations

from pathlib import Path

import click

from ..files import check_outputs
from ..options import factory_option


@click.command(name="report", short_help="Show what a cut did, as one HTML file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="HTML file to write.  [default: beside FILE, as .html]",
)
@factory_option
def command(file: Path, output: Path | None, factory: str | None) -> None:
    """Write what a pruned file's plan did to the dense model as one HTML file that needs no network.

    Widths before and after, the channel graph, groups, and what was left whole and why. Scores and the outcome of the
    check are not in the file: surgeon prune --report shows them too.

    Example: surgeon report surgeon-demo/small.safetensors -o report.html
    """
    target = output or file.with_suffix(".html")
    check_outputs([target], [file])
    import surgeon

    from ..output import say
    from ..runtime import about, header_of

    header, make = header_of(str(file), factory)
    title = f"{(header.origin or {}).get('torchvision', header.class_name)}, cut by surgeon"
    surgeon.write_report(target, file, title=title, about=about(), factory=make)
    say(f"written: {target}")
