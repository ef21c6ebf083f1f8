"""The whole way on photographs of dogs and cats, by the commands that a user would type, each in its own process.

``surgeon train`` gives a network a head for the two classes (the head alone first), ``surgeon prune --steps`` cuts
filters and trains in turn, ``surgeon evaluate`` opens the file of every step and judges it on photographs that nothing
has seen before, ``surgeon bench --cpu-time`` times all of them, interleaved. Two networks:

* MobileNet v1 (three quarters of its width) with ImageNet weights, the only ones that the shared folder has; it is
  brought as a factory of one's own (``photographs.py``);
* torchvision's ResNet-18 from random weights, on smaller images: there are no ImageNet weights of a network of
  torchvision's.

Each command's JSON is kept under ``build/dogs_cats``; what is finished isn't done again, and what was stopped (by
``--minutes``, or Ctrl-C) is resumed. Results: ``benchmarks/results/dogs_cats.json``.

    python benchmarks/dogs_cats.py --threads 1    # 1,600 photographs: some 15 minutes
    python benchmarks/dogs_cats.py --quick        # 12 photographs of each class and part, small
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import photographs
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

DATA = "data/dogs-vs-cats"
#: Images at a time: in training, and when timed.
TRAINED, TIMED = 32, 8
#: Of timing.
ROUNDS = 20


@dataclass(frozen=True)
class Way:
    """A network and what is done with it.

    Attributes
    ----------
    model, weights, factory:
        For ``surgeon train``; `factory` for the commands that open its file.
    size:
        Side of the images in pixels.
    frozen, epochs:
        Of the head alone, and of all layers.
    filters, steps, step_epochs, final_epochs:
        Of ``surgeon prune``.
    """

    model: str
    weights: str
    factory: str | None
    size: int
    frozen: int
    epochs: int
    filters: int
    steps: int = 4
    step_epochs: int = 2
    final_epochs: int = 3
    more: tuple[str, ...] = field(default=())

    def quick(self) -> Way:
        """The same in some seconds."""
        return Way(self.model, self.weights, self.factory, 64, min(self.frozen, 1), 1, self.filters, 2, 1, 0, self.more)


WAYS: Mapping[str, Way] = {
    "mobilenet": Way("photographs:mobilenet", photographs.WEIGHTS, "photographs:mobilenet", 160, 2, 3, 900),
    "resnet18": Way("resnet18", "none", None, 64, 0, 8, 600, step_epochs=1, final_epochs=2, more=("--lr", "0.05")),
}


def main() -> int:
    """Go every way to its end; 130 where the time is up before."""
    options = parse()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
    device = pick_device(options)
    data = shared(DATA)
    work = ROOT / "build" / ("dogs_cats-quick" if options.quick else "dogs_cats")
    if options.fresh:
        shutil.rmtree(work, ignore_errors=True)
    if options.quick:
        data = few(data, work / "few", 12)
    work.mkdir(parents=True, exist_ok=True)
    commands = Commands(work, data, options, time.monotonic() + 60 * options.minutes)
    rows = {}
    for name in options.only or WAYS:
        way = WAYS[name].quick() if options.quick else WAYS[name]
        found = go(commands, name, way)
        if found is None:
            say("stopped; the same command goes on from here")
            return 130
        rows[name] = found
        record = {"environment": environment(device), "settings": {"images": counts(data)}, "rows": rows}
        write_json(output_path(options), record)
    say(f"done: {portable(str(output_path(options)))}")
    return 0


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("Dogs and cats, from training to timing, through the command line.", "dogs_cats")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), help="these networks")
    parser.add_argument("--minutes", type=float, default=40.0, help="stop after so long; a second run goes on")
    return parser.parse_args()


def go(commands: Commands, name: str, way: Way) -> dict[str, Any] | None:
    """Train, prune, evaluate, time: everything that came out; None where the time is up."""
    commands.folder = commands.work / name
    commands.folder.mkdir(exist_ok=True)
    made = [] if way.factory is None else ["--factory", way.factory]
    seen = ["--data", str(commands.data), "--device", commands.device]
    weights = way.weights if way.weights == "none" else str(shared(f"data/weights/{way.weights}.safetensors"))
    batches = ["--batch-size", str(TRAINED)]
    phases = ["--frozen-epochs", str(way.frozen), "--epochs", str(way.epochs)]
    train = ["train", "--model", way.model, "--weights", weights, "--image-size", str(way.size), *phases]
    train += [*batches, *way.more, *seen, "--output", "net.safetensors"]
    cuts = ["--filters", str(way.filters), "--steps", str(way.steps)]
    cuts += ["--epochs", str(way.step_epochs), "--final-epochs", str(way.final_epochs)]
    prune = ["prune", "--model", "net.safetensors", *made, *cuts, "--train-batch-size", str(TRAINED), *seen]
    prune += ["--output", "small.safetensors"]
    files = [f"small/step-{step}.safetensors" for step in range(1, way.steps + 1)]
    judge = ["evaluate", "net.safetensors", *files, *made, *seen]
    timed = ["bench", *files, "--against", "net.safetensors", *made, "--device", commands.device, "--cpu-time"]
    timed += ["--batch-size", str(TIMED), "--rounds", str(ROUNDS), "--threads", str(commands.threads)]
    found = {}
    for words, folder in ((train, "net"), (prune, "small"), (judge, None), (timed, None)):
        done = commands.run(words, folder)
        if done is None:
            return None
        found[words[0]] = done
    return {"steps": steps(found, files), **{command: facts(done) for command, done in found.items()}}


@dataclass
class Commands:
    """Runs commands in a folder, keeps what they say, and stops at a time."""

    work: Path
    data: Path
    options: argparse.Namespace
    until: float
    folder: Path = Path()

    @property
    def device(self) -> str:
        """The device asked for."""
        return str(self.options.device)

    @property
    def threads(self) -> int:
        """Of the timing."""
        return int(self.options.threads or 1)

    def run(self, words: list[str], resumed: str | None) -> dict[str, Any] | None:
        """What the command wrote as JSON, with its time; None where the time is up. `resumed` names a run's folder."""
        kept = self.folder / f"{words[0]}.json"
        told = "surgeon " + self._readable(words)
        if kept.exists() and (old := json.loads(kept.read_text(encoding="utf-8")))["cli"] == told:
            return dict(old)
        again = resumed is not None and (self.folder / resumed).is_dir() and any((self.folder / resumed).iterdir())
        say(told + (" --resume" if again else ""))
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        said = self._wait([*words, "--json", *(["--resume"] if again else [])])
        if said is None:
            return None
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        done = {
            "cli": told,
            "resumed": again,
            "wall_s": round(time.monotonic() - start, 1),
            "cpu_s": round(cpu, 1),
            "said": json.loads(said),
        }
        write_json(kept, done)
        return done

    def _wait(self, words: list[str]) -> str | None:
        """Standard output; the command's own messages go to the terminal."""
        own = str(Path(__file__).resolve().parent)
        place = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))}
        if self.options.threads is not None:
            place["OMP_NUM_THREADS"] = str(self.options.threads)
        with subprocess.Popen(
            [executable(), *words], stdout=subprocess.PIPE, text=True, cwd=self.folder, env=place
        ) as process:
            try:
                said, _ = process.communicate(timeout=max(self.until - time.monotonic(), 1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                said, _ = process.communicate()
                return None if process.returncode else said  # it may have come to its end just then
            except KeyboardInterrupt:  # which the terminal gave to the command as well
                process.communicate()
                return None
        if process.returncode:
            raise SystemExit(process.returncode)
        return said

    def _readable(self, words: list[str]) -> str:
        """The words with no path of this machine in them."""
        names = {str(self.data): "dogs-vs-cats"}
        return shlex.join(names.get(word, Path(word).name if Path(word).is_absolute() else word) for word in words)


def steps(found: Mapping[str, Mapping[str, Any]], files: list[str]) -> list[dict[str, Any]]:
    """The whole network and every step of the cut: what is left, how good, how fast and how large it is."""
    pruned, timed = found["prune"]["said"], found["bench"]["said"]["results"][0]["models"]
    times = {row["name"]: row for row in timed}
    judged = {row["name"]: row for row in found["evaluate"]["said"]["models"]}
    rows = []
    for step, name in zip((pruned["dense"], *pruned["steps"]), ("net.safetensors", *files), strict=True):
        seen, time_ = judged[name], times[name]
        rows.append(
            {name: step[name] for name in ("number", "filters", "macs", "params")}
            | {"cut_val": None if step["cut"] is None else step["cut"]["accuracy"]}
            | {"test": seen["accuracy"], "file_bytes": seen["file_bytes"]}
            | {"cpu_s": {key: time_[key] for key in ("median", "low", "high", "noisy")}, "speed_up": time_["speed_up"]}
        )
    return rows


def facts(done: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a command: how it was called, how long it took, and what training came to."""
    kept = {name: done[name] for name in ("cli", "resumed", "wall_s", "cpu_s")}
    return kept | {name: done["said"][name] for name in ("val", "test", "images") if name in done["said"]}


def executable() -> str:
    """The installed console script, beside this Python first. Raises MissingError."""
    beside = Path(sys.executable).with_name("surgeon")
    found = str(beside) if beside.exists() else shutil.which("surgeon")
    if found is None:
        raise MissingError("the command `surgeon` not there (pip install -e .)")
    return found


def few(folder: Path, target: Path, limit: int) -> Path:
    """A folder with the first ``limit`` images of each class of each part, as links."""
    for kind in sorted(folder.glob("*/*")):
        place = target / kind.relative_to(folder)
        place.mkdir(parents=True, exist_ok=True)
        for image in sorted(kind.iterdir())[:limit]:
            (place / image.name).unlink(missing_ok=True)
            (place / image.name).symlink_to(image.resolve())
    return target


def counts(folder: Path) -> dict[str, int]:
    """How many images of each part and class there are."""
    return {str(kind.relative_to(folder)): len(list(kind.iterdir())) for kind in sorted(folder.glob("*/*"))}


if __name__ == "__main__":
    run_main(main)
