"""``surgeon export``: a model for other runtimes, or as source, compared with the model once it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..files import check_outputs, stem_of, there
from ..options import factory_option, image_size_option, json_option, refuse_of_files

if TYPE_CHECKING:
    from torch import nn

    from surgeon.tracing import Inputs

_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "python": ".py"}


@click.command(name="export", short_help="Write a model as ONNX, pt2 archive or Python source.")
@click.argument("model_or_file", callback=there)
@click.option("--format", "kind", type=click.Choice(list(_SUFFIXES)), required=True, help="What to write.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where.  [default: here, as MODEL_OR_FILE.SUFFIX]",
)
@click.option("--fold-bn", is_flag=True, help="Fold batch norms into the layers in front of them.")
@click.option("--channels-last", is_flag=True, help="Lay weights out with channels last (pt2 and python).")
@factory_option
@image_size_option
@json_option
def command(
    model_or_file: str,
    kind: str,
    output: Path | None,
    fold_bn: bool,
    channels_last: bool,
    factory: str | None,
    image_size: int | None,
    as_json: bool,
) -> None:
    """Write a model for other runtimes, or as readable source, and compare what was written with the model.

    MODEL_OR_FILE is a {MODELS}. onnx: for ONNX Runtime. pt2: torch.export's archive, for torch.export.load. python:
    plain PyTorch, beside weights in safetensors.

    Example: surgeon export surgeon-demo/small.safetensors --format onnx --fold-bn
    """
    refuse_of_files([model_or_file])
    target = output or _default(model_or_file, kind)
    from surgeon.exporting import check_format, export

    check_format(kind, target, channels_last=channels_last)
    check_outputs([target], [model_or_file])
    model, inputs = _subject(model_or_file, factory, image_size)
    done = export(model, target, kind, example_inputs=inputs, fold_bn=fold_bn, channels_last=channels_last)
    _tell(done.to_dict(), as_json=as_json)


def _default(name: str, kind: str) -> Path:
    stem = stem_of(name)
    if kind == "python":
        stem = "".join(c if c.isalnum() else "_" for c in stem)
        stem = stem if stem[:1].isalpha() else f"model_{stem}"
    return Path(f"{stem}{_SUFFIXES[kind]}")


def _subject(name: str, factory: str | None, image_size: int | None) -> tuple[nn.Module, Inputs]:
    from ..output import warn
    from ..runtime import open_model

    opened = open_model(name, factory, image_size, weights=None)
    for warning in opened.warnings:
        warn(warning)
    return opened.model, opened.inputs


def _tell(done: dict[str, Any], *, as_json: bool) -> None:
    from ..output import emit_json, say, size

    sizes = {path: Path(path).stat().st_size for path in done["files"]}
    if as_json:
        emit_json({**done, "file_bytes": sizes})
    for path, count in sizes.items():
        say(f"written: {path} ({size(count)})")
    batches = " and ".join(str(count) for count in done["batch_sizes"])
    takes = "takes any batch size" if done["any_batch"] else "takes this batch size only"
    say(f"compared with the model at batch size {batches}: largest error {done['error']:.1e} of its largest output")
    say(f"it {takes}")
