"""VGG16-BN cut by 512 filters on the dogs and cats of the shared folder, through the command line.

Runs ``surgeon prune --model vgg16_bn --filters 512 --data FOLDER --json`` as a user would, and keeps its JSON summary
in ``benchmarks/results/dogs_cats.json`` with the wall time. The command's own messages go to the terminal.

    python benchmarks/dogs_cats.py                  # 1,000 photographs: about 15 minutes on 2 cores
    python benchmarks/dogs_cats.py --quick          # 8 photographs of each class
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    MissingError,
    arguments,
    environment,
    output_path,
    pick_device,
    portable,
    run_main,
    say,
    shared,
    write_json,
)


def main() -> int:
    """Run the command; its exit code is ours."""
    options = parse()
    device = pick_device(options)
    with tempfile.TemporaryDirectory() as scratch:
        data = few(shared(options.data), Path(scratch), options.limit) if options.limit else shared(options.data)
        arguments_ = prune_arguments(options, data, Path(scratch) / "small.safetensors")
        say("surgeon " + readable(arguments_, scratch))
        start = time.perf_counter()
        done = subprocess.run([executable(), *arguments_], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
        seconds = time.perf_counter() - start
    if done.returncode:
        say(f"surgeon prune ended with exit code {done.returncode} after {seconds:.0f} s; nothing written")
        return done.returncode
    record = {
        "environment": environment(device),
        "cli": "surgeon " + readable(arguments_, scratch),
        "images_per_class": counts(shared(options.data), options.limit),
        "wall_s": round(seconds, 3),
        "summary": scrubbed(json.loads(done.stdout), scratch),
    }
    write_json(output_path(options), record)
    say(f"done in {seconds:.0f} s: {portable(str(output_path(options)))}")
    return 0


def parse() -> argparse.Namespace:
    """Read the options; words after ``--`` go to ``surgeon prune`` as they are."""
    parser = arguments("VGG16-BN on dogs and cats through the command line.", "dogs_cats")
    parser.add_argument("--model", default="vgg16_bn", help="for surgeon prune")
    parser.add_argument("--filters", type=int, default=512, help="for surgeon prune")
    parser.add_argument("--data", default="data/dogs-vs-cats/train", help="image folder under the shared folder")
    parser.add_argument("--limit", type=int, default=None, help="at most so many images of each class")
    parser.add_argument("more", nargs="*", help="further words for surgeon prune, after --")
    options = parser.parse_args()
    if options.quick and options.limit is None:
        options.limit = 8
    return options


def prune_arguments(options: argparse.Namespace, data: Path, output: Path) -> list[str]:
    """The words behind ``surgeon``."""
    words = ["prune", "--model", options.model, "--filters", str(options.filters), "--data", str(data)]
    words += ["--output", str(output), "--json", *options.more]
    return words if options.device == "cpu" else [*words, "--device", options.device]


def executable() -> str:
    """The installed console script, beside this Python first. Raises MissingError."""
    beside = Path(sys.executable).with_name("surgeon")
    found = str(beside) if beside.exists() else shutil.which("surgeon")
    if found is None:
        raise MissingError("the command `surgeon` not there (pip install -e .)")
    return found


def few(folder: Path, scratch: Path, limit: int) -> Path:
    """A folder with the first ``limit`` images of each class, as links."""
    for kind in sorted(each for each in folder.iterdir() if each.is_dir()):
        target = scratch / "few" / kind.name
        target.mkdir(parents=True)
        for image in sorted(kind.iterdir())[:limit]:
            (target / image.name).symlink_to(image.resolve())
    return scratch / "few"


def counts(folder: Path, limit: int | None) -> dict[str, int]:
    """How many images of each class were used."""
    kinds = sorted(each for each in folder.iterdir() if each.is_dir())
    return {kind.name: len(list(kind.iterdir())[:limit]) for kind in kinds}


def readable(words: list[str], scratch: str) -> str:
    """The words with no path of this machine in them."""
    return shlex.join(portable(scrubbed(word, scratch)) for word in words)


def scrubbed(value: Any, scratch: str) -> Any:
    """``value`` with the scratch folder's name taken out of every string."""
    if isinstance(value, dict):
        return {key: scrubbed(each, scratch) for key, each in value.items()}
    if isinstance(value, list):
        return [scrubbed(each, scratch) for each in value]
    return value.replace(scratch + os.sep, "") if isinstance(value, str) else value


if __name__ == "__main__":
    run_main(main)
