"""A command in several processes: `torchrun ... -m surgeon_cli prune ...`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import click


def launched() -> int:
    """How many processes the launcher says that there are."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that a launcher started; the body ends well in all of them or in none."""
    from surgeon import processes

    _warn_of_one()
    processes.start()
    with processes.together("the command"):
        yield


def _warn_of_one() -> None:
    """On CPUs ``accelerate launch --num_processes N`` starts one process, and says nothing of it."""
    meant = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    if meant and "WORLD_SIZE" not in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        click.echo(
            "accelerate has started one process; for several on CPUs: torchrun --nproc-per-node N -m surgeon_cli ...",
            err=True,
        )


def refuse(command: str) -> None:
    """For commands that work in one process.

    Raises
    ------
    click.UsageError
        If there are several.
    """
    if launched() > 1:
        raise click.UsageError(f"surgeon {command} works in one process: start it without a launcher")
