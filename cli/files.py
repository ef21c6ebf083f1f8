"""Files that the commands write."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def check_outputs(
    outputs: Iterable[Path | None],
    inputs: Iterable[str | Path | None] = (),
    *,
    plots: Iterable[Path | None] = (),
    folder: Path | None = None,
) -> None:
    """Make sure, before hours of work, that the files can be written, and that none takes another's place.

    Parameters
    ----------
    outputs, inputs:
        What will be written and what is read; None counts for nothing, nor does an input that is no file.
    plots:
        What will be drawn, beside `outputs`.
    folder:
        One that will be made for the run.

    Raises
    ------
    click.UsageError
        If two are one file, or one is the folder.
    InputError
        If a plot's suffix is none that is drawn, or matplotlib isn't installed.
    OSError
        If one can't be written; nothing is left behind.
    """
    drawn = [path for path in plots if path is not None]
    read = {os.path.realpath(name): name for name in inputs if name is not None and Path(name).is_file()}
    written: dict[str, Path] = {}
    for path in (*outputs, *drawn):
        if path is None:
            continue
        place = os.path.realpath(path)
        if folder is not None and place == os.path.realpath(folder):
            raise click.UsageError(f"{path}: the run's folder (--run) has this name, too; give one another name")
        if place in read:
            raise click.UsageError(f"{path}: is read by this command; give what is written another name")
        if place in written:
            raise click.UsageError(f"{path}: two things would be written there; give one another name")
        written[place] = path
        _try(path)
    if drawn:
        from surgeon.plots import check

        for plot in drawn:
            check(plot)


def _try(path: Path) -> None:
    from surgeon.files import check_name, write_beside

    check_name(path)
    with contextlib.suppress(_OnlyTrying), write_beside(path) as trial:
        trial.write_bytes(b"?")  # an empty file fits on a full disk
        raise _OnlyTrying  # so that it is removed, not renamed


def named_after(model: str, word: str) -> str:
    """What the files are called that a command makes of a MODEL_OR_FILE, without a suffix; in the current folder."""
    return f"{stem_of(model)}-{word}"


def stem_of(model: str) -> str:
    """The last part of a MODEL_OR_FILE: of a file its name without .safetensors, of others what the model is called."""
    return Path(model).name.rpartition(":")[2].removesuffix(".safetensors")


def run_folder(file: Path) -> Path:
    """Where a run keeps its state by default: beside the file, under its name."""
    bare = file.with_suffix("") if file.suffix.lower() in _OF_RUNS else file
    return file.with_name(f"{file.name}-run") if bare == file else bare


def is_file(name: str) -> bool:
    """Whether an argument MODEL_OR_FILE means a file, be it there or not."""
    path = Path(name)
    if path.is_file() or path.is_absolute() or name.startswith(".") or path.suffix.lower() in _SUFFIXES:
        return True
    return os.sep in name and ":" not in name


def there(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ARG001  # click's signature
    """Miss a file before anything slow begins. A click callback for one MODEL_OR_FILE or several.

    Raises
    ------
    FileNotFoundError
        If one of them means a file that isn't there.
    """
    for name in (value,) if isinstance(value, str) else value or ():
        if is_file(name) and ":" not in name and not Path(name).exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return value


class _OnlyTrying(Exception):
    """Ends a trial."""


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    OSError
        If it can't be written.
    """
    from surgeon.files import write_beside

    with write_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_SUFFIXES = frozenset({".safetensors", ".st", ".pt", ".pth", ".bin", ".ckpt"})
#: Suffixes that the folder of a run is without: of models and of experiments.
_OF_RUNS = frozenset({".safetensors", ".toml", ".json"})
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def amount(ctx: click.Context, param: click.Parameter, value: str | None) -> str | float | int | None:
    """Read an absolute number ("2000000", "1.5G") or a share ("50%", "0.5"), as surgeon.prune takes it.

    A click callback: a percentage stays text, a share becomes a float, a count an int.

    Raises
    ------
    click.BadParameter
        If it is neither.
    """
    if value is None:
        return None
    try:
        number = _number(value.strip())
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise click.BadParameter(f"{value!r}: give a count (2000000, 1.5G) or a share (50%, 0.5)", ctx, param)
    return number


def amounts(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """As :func:`amount`, or several with commas between, one for each step. A click callback.

    Raises
    ------
    click.BadParameter
        If one is neither.
    """
    if value is None or "," not in value:
        return amount(ctx, param, value)
    return tuple(amount(ctx, param, part) for part in value.split(","))


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> float | tuple[float, ...] | None:
    """Read a number, or several with commas between, one for each step. A click callback.

    Raises
    ------
    click.BadParameter
        If one is none.
    """
    if value is None:
        return None
    try:
        found = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: give a number such as 0.5, or one for each step: 0.2,0.5", ctx, param
        ) from None
    return found if len(found) > 1 else found[0]


def ratio(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a share above 0 and below 1. A click callback.

    Raises
    ------
    click.BadParameter
        If it is none.
    """
    return None if value is None else _share(ctx, param, value)


def ratios(ctx: click.Context, param: click.Parameter, value: str | None) -> float | tuple[float, ...] | None:
    """As :func:`ratio`, or several with commas between, one for each step. A click callback.

    Raises
    ------
    click.BadParameter
        If one is none.
    """
    if value is None or "," not in value:
        return ratio(ctx, param, value)
    return tuple(_share(ctx, param, part) for part in value.split(","))


def _share(ctx: click.Context, param: click.Parameter, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise click.BadParameter(f"{text!r}: give a share between 0 and 1, such as 0.5", ctx, param)
    return found


def step(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    """Read a whole number from 1 or "auto". A click callback.

    Raises
    ------
    click.BadParameter
        If it is neither.
    """
    if value in (None, "auto"):
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r}: give a whole number from 1, or auto", ctx, param)
    return int(value)


def _number(text: str) -> str | float | int | None:
    """The amount in a text; None where it is neither a count of one at least nor a share above 0 and up to 1."""
    if text.endswith("%"):
        return text if 0 < float(text[:-1]) <= 100 else None
    if text[-1:].upper() in _UNITS:
        count: float = round(float(text[:-1]) * _UNITS[text[-1].upper()])
    else:
        count = int(text) if text.isdecimal() else float(text)
    if isinstance(count, float):
        if 0 < count <= 1:
            return count
        if not count.is_integer():
            return None
    return int(count) if count >= 1 else None
