"""What every benchmark shares: the record of a run, results that survive an interruption, real data.

The scripts run from anywhere as ``python benchmarks/NAME.py``. They read real images and trained weights from
``../shared`` (relative to the repository root); ``SURGEON_SHARED`` names another folder. Where the data is not
there, a script says "skipped: ..." and exits 0, so that a checkout without it can still run everything.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class MissingError(Exception):
    """Something outside the repository (data, weights, a package) that a benchmark needs is not there."""


def say(message: str) -> None:
    """Write one line for the person who is watching; standard output stays free for data."""
    print(message, file=sys.stderr, flush=True)


def run_main(main: Callable[[], int]) -> None:
    """Run a script's ``main`` and exit with its code; :class:`MissingError` becomes "skipped: ..." and exit code 0."""
    try:
        code = main()
    except MissingError as reason:
        say(f"skipped: {reason}")
        code = 0
    sys.exit(code)


# ---------------------------------------------------------------- the record of a run


def environment(device: torch.device) -> dict[str, Any]:
    """Everything about the machine and the software that a number depends on, JSON-able, with no path in it."""
    packages = ("torch", "torchvision", "torch_pruning", "numpy", "networkx")
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command_line(sys.argv),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # above the threads: somebody else was at work
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {p: v for p in packages if (v := version_of(p))},
        "commit": commit(),
        "source": source_digest(),
    }


def command_line(argv: Sequence[str]) -> str:
    """The command as somebody in the repository root would type it: no absolute path of this machine."""
    script = Path(argv[0]).resolve()
    first = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", first, *(portable(word) for word in argv[1:])])


def portable(word: str) -> str:
    """An absolute path made relative to the repository root; any other word as it is."""
    return os.path.relpath(word, ROOT) if Path(word).is_absolute() else word


def device_name(device: torch.device) -> str:
    """The name of the processor that ran it, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None where it isn't installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The checkout's commit, "+" appended when files differ from it; None outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if state.stdout.strip() else "")


def source_digest() -> str:
    """First 12 hex digits of the sha256 of surgeon's sources: rows of different code must not stand in one table."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "surgeon").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------- results


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, beside and renamed."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader (or a crash) never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock against other runs of a benchmark; whether it was free. It goes with the process that held it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass
class Table:
    """Rows under string keys in one JSON file, written after every row; a second run goes on where the first stopped.

    Rows of other settings or of other surgeon sources are dropped when the file is opened; the latter stay where
    every row says its own (``mixed``). Several runs may fill a mixed table at once.
    """

    path: Path
    settings: Mapping[str, Any]
    device: torch.device
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    mixed: bool = False
    fresh: bool = False

    @classmethod
    def open(
        cls, path: Path, settings: Mapping[str, Any], device: torch.device, *, fresh: bool = False, mixed: bool = False
    ) -> Table:
        """Read back what an interrupted run of the same settings and sources left, unless ``fresh``."""
        table = cls(path, json.loads(json.dumps(settings)), device, mixed=mixed, fresh=fresh)
        if path.exists() and not fresh:
            table.refresh()
            say(
                f"going on with {path.name}: {len(table.rows)} rows are there"
                if table.rows
                else f"{path.name} is of other settings, sources or another device: starting again"
            )
        return table

    def refresh(self) -> None:
        """Take over what the file holds by now, if it is of the same settings, sources and device."""
        if self.fresh or not self.path.exists():
            return
        old = json.loads(self.path.read_text(encoding="utf-8"))
        # Settings that a benchmark no longer has count for nothing.
        same = old.get("settings", {}).items() >= self.settings.items()
        same &= self.mixed or old["environment"]["source"] == source_digest()
        if same and old["environment"]["device"] == device_name(self.device):
            self.rows, self.facts = old["rows"], old["facts"]

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Add one row, to those of other runs as well where the table is mixed, and write the file."""
        with claimed(self.path.with_name(f".{self.path.name}.lock"), wait=True):
            if self.mixed:
                self.refresh()
            self.rows[key] = row
            self.write()

    def write(self) -> None:
        """Write the file as it stands."""
        record = environment(self.device)
        write_json(
            self.path, {"environment": record, "settings": self.settings, "facts": self.facts, "rows": self.rows}
        )
        self.fresh = False


def arguments(description: str, name: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; :func:`output_path` reads them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.set_defaults(name=name)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="a small subset, to see that everything works")
    parser.add_argument("--fresh", action="store_true", help="drop what an earlier run left")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file instead of benchmarks/results/")
    return parser


def output_path(options: argparse.Namespace) -> Path:
    """Where the results go: quick runs and other devices never overwrite the full results of the CPU."""
    if options.output is not None:
        return Path(options.output)
    kind = torch.device(options.device).type
    return RESULTS / f"{options.name}{'-quick' * options.quick}{'' if kind == 'cpu' else '-' + kind}.json"


def pick_device(options: argparse.Namespace) -> torch.device:
    """The device asked for, with the threads set. Raises MissingError where there is no such device."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingError("a CUDA device is not there")
    return device


# ---------------------------------------------------------------- real data


def shared(relative: str) -> Path:
    """A file or folder under the shared folder. Raises MissingError, with the name, where it is not there."""
    folder = Path(os.environ.get("SURGEON_SHARED") or ROOT.parent / "shared")
    path = folder / relative
    if not path.exists():
        raise MissingError(f"{portable(str(path))} not there (SURGEON_SHARED names the folder that holds data/)")
    return path


def loader() -> ModuleType:
    """The shared folder's own ``load.py`` (models, data sets), imported by its path."""
    path = shared("data/load.py")
    spec = importlib.util.spec_from_file_location("shared_load", path)
    if spec is None or spec.loader is None:
        raise MissingError(f"{path.name} can't be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Images:
    """Normalised images ``(N, 3, H, W)`` float32 and their labels ``(N,)`` int64, on one device."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: torch.Tensor) -> Images:
        """The images at ``index``."""
        return Images(self.inputs[index], self.targets[index])

    def batches(self, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of up to ``size`` images in order; none is repeated or dropped."""
        inputs, targets = torch.split(self.inputs, size), torch.split(self.targets, size)
        return list(zip(inputs, targets, strict=True))


def cifar10(split: str, stats: Mapping[str, Any], device: torch.device, index: torch.Tensor | None = None) -> Images:
    """CIFAR-10 ``split`` ("train" or "test"), or its images at ``index``, normalised by ``stats``' mean and std."""
    shared(f"data/cifar10_{split}.npz")
    pixels, labels = loader().cifar10(split)
    index = torch.arange(len(labels)) if index is None else index
    inputs = torch.from_numpy(pixels)[index].permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(stats[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    targets = torch.from_numpy(labels)[index].long()
    return Images(((inputs - mean) / std).contiguous().to(device), targets.to(device))


def trained(name: str, device: torch.device) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A trained network of the shared folder in eval mode, and its sidecar (``mean``, ``std``, measured accuracy)."""
    shared(f"data/weights/{name}.safetensors")
    model, sidecar = loader().load(name)
    return model.to(device).eval(), sidecar


def drawn(total: int, count: int, seed: int) -> torch.Tensor:
    """``count`` different indices below ``total``, chosen by ``seed``."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
