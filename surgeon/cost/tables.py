"""Latency tables: seconds of pieces of work, measured on this device once and kept in a file.

The file stands in the user's cache folder (``SURGEON_CACHE`` names another), one for each device, number of
threads, number type, memory layout and version of torch: what was measured under other conditions is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.exclusive import ONE_AT_A_TIME, one_at_a_time
from surgeon.jsonfiles import read_file, write_file
from surgeon.measure import LAYOUTS, stopwatch_for
from surgeon.processes import count, first, from_first
from surgeon.tracing import Inputs

_log = logging.getLogger("surgeon")

FORMAT = 1
#: Seconds of one call of a function of nothing.
Timer = Callable[[Callable[[], Any]], float]

_ENOUGH_SECONDS = 0.03
_SAMPLES = (2, 7)  # at least, at most


@dataclass(frozen=True)
class Place:
    """Where and how something is timed: what a table holds for.

    Attributes
    ----------
    device:
        ``"cpu"``, ``"cuda:0"``.
    name:
        The processor's own name.
    threads:
        Intra-op CPU threads.
    dtype, layout:
        Number type of the activations; ``"contiguous"`` or ``"channels_last"``.
    version:
        Of torch, and on CPU the instruction set that it uses.
    """

    device: str
    name: str
    threads: int
    dtype: str
    layout: str
    version: str

    @classmethod
    def of(cls, example_inputs: Any) -> Place:
        """Where a model that takes these inputs runs now."""
        tensors = [leaf for leaf in Inputs.of(example_inputs).leaves() if isinstance(leaf, Tensor)]
        first = next((t for t in tensors if t.is_floating_point()), tensors[0])
        last = first.ndim == 4 and first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
        dtype = str(first.dtype if first.is_floating_point() else torch.float32).removeprefix("torch.")
        return cls.here(first.device, dtype, "channels_last" if last else "contiguous")

    @classmethod
    def here(cls, device: torch.device, dtype: str = "float32", layout: str = "contiguous") -> Place:
        """A device of this machine, with as many threads as torch uses now."""
        version = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        return cls(str(device), device_name(device), torch.get_num_threads(), dtype, layout, version)

    @property
    def format(self) -> torch.memory_format:
        """How images lie in memory."""
        return LAYOUTS[self.layout]

    @property
    def file(self) -> Path:
        """Where its table is kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / f"latency-{digest}.json"


def device_name(device: torch.device) -> str:
    """The processor's own name."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """``SURGEON_CACHE``, else the user's cache folder as the system has it; nowhere, if the user has no home."""
    try:
        return _cache_folder()
    except RuntimeError:  # of looking for a home; a folder that others can write to is no place for it
        return Path(os.devnull, "surgeon")


def _cache_folder() -> Path:
    if named := os.environ.get("SURGEON_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "surgeon"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "surgeon"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surgeon"


class Table:
    """Seconds by key. What is known is not measured again unasked; of several processes the first one measures.

    Parameters
    ----------
    place:
        What it holds for.
    timer:
        Seconds of a call; tests give a clock of their own.
    """

    def __init__(self, place: Place, timer: Timer | None = None) -> None:
        self.place = place
        self.entries: dict[str, float] = {}
        self.measured = 0  # by this object
        self.timer = timer or least_time(place)

    @classmethod
    def open(cls, place: Place) -> Table:
        """The table of a place with what is in its file; a damaged or foreign file is left aside, with a warning."""
        table = cls(place)
        table.entries = from_first(lambda: _read(place))
        return table

    def seconds(self, key: str, build: Callable[[], Callable[[], Any]]) -> float:
        """What a piece of work takes; `build` makes the call where it isn't known. Infinite if it can't be run."""
        with ONE_AT_A_TIME:
            if key not in self.entries:
                self.measured += 1
                self.entries[key] = from_first(lambda: self._time(build))
            return self.entries[key]

    def again(self, key: str, build: Callable[[], Callable[[], Any]]) -> float:
        """Measure what is known once more; the least counts."""
        with ONE_AT_A_TIME:
            self.measured += 1
            self.entries[key] = min(self.entries[key], from_first(lambda: self._time(build)))
            return self.entries[key]

    def _time(self, build: Callable[[], Callable[[], Any]]) -> float:
        with self._own_randomness():
            try:
                return self.timer(build())
            except (RuntimeError, ValueError, TypeError, IndexError):
                return math.inf

    def _own_randomness(self) -> contextlib.AbstractContextManager[None]:
        """What is drawn to be timed, or while it is, is drawn aside: whether all was known must change nothing."""
        device = torch.device(self.place.device)
        return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    @one_at_a_time
    def least(self, builds: Mapping[str, Callable[[], Callable[[], Any]]], passes: int) -> dict[str, float]:
        """The least time of each of several pieces of work that are compared with each other, over several passes."""
        with self._own_randomness():
            missing = {key: build() for key, build in builds.items() if key not in self.entries}
            self.measured += len(missing)
            self.entries |= from_first(lambda: self._least(missing, passes)) if missing else {}
        return {key: self.entries[key] for key in builds}

    def _least(self, calls: Mapping[str, Callable[[], Any]], passes: int) -> dict[str, float]:
        found = dict.fromkeys(calls, math.inf)
        for _ in range(passes):
            for key, call in calls.items():
                found[key] = min(self.timer(call), found[key])
        return found

    @one_at_a_time
    def save(self) -> None:
        """Write it beside and rename; a folder that can't be written to costs the next run some time, and no more."""
        if not self.measured or not first():
            return
        path = self.place.file
        kept = {**_read(self.place), **self.entries}
        saved = _Saved(FORMAT, self.place, kept)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, saved, indent=0)
        except OSError as problem:
            told = f"the latency table can't be kept in {path.parent}: {problem.strerror}; SURGEON_CACHE names a folder"
            warnings.warn(told, stacklevel=2)


def _read(place: Place) -> dict[str, float]:
    try:
        found: _Saved = read_file(place.file, _Saved, "measuring anew")
        found.check(place)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as problem:
        told = f"no latency table of this device: {problem}"
        _log.warning(told, extra={"stage": "measure"})
        warnings.warn(told, stacklevel=2)
        return {}
    return found.seconds


@dataclass(frozen=True)
class _Saved:
    """What a table's file holds."""

    surgeon_latency: int
    place: Place
    seconds: dict[str, float]

    def check(self, place: Place) -> None:
        """Whether it is one of this place.

        Raises
        ------
        ValueError
            If it isn't.
        """
        if self.surgeon_latency != FORMAT or self.place != place:
            raise ValueError(f"{place.file} is of another format or place; measuring anew")
        for key, value in self.seconds.items():
            if not value >= 0:
                raise ValueError(f"{place.file}: {value} of {key[:80]!r} is no number of seconds; measuring anew")


def least_time(place: Place, clock: Callable[[], float] | None = None) -> Timer:
    """Times a call some times over and takes the least: other work on the machine only ever adds to it.

    Of a single thread the CPU time is taken, which other processes hardly touch.
    """
    clock = clock or (time.thread_time if place.threads == 1 else time.perf_counter)
    stopwatch = stopwatch_for(torch.device(place.device), clock)
    fewest, most = _SAMPLES

    def seconds(call: Callable[[], Any]) -> float:
        with torch.inference_mode(False), torch.no_grad():
            call()
            once = stopwatch(call, 1)
            calls = max(1, min(100, math.ceil(_ENOUGH_SECONDS / most / max(once, 1e-7))))
            left = _ENOUGH_SECONDS / max(once * calls, 1e-7)
            rounds = max(fewest, min(most, math.ceil(left)))
            return min(stopwatch(call, calls) / calls for _ in range(rounds))

    return seconds


#: Tables of this process, by place.
_OPEN: dict[tuple[Path, Place, int], Table] = {}


@one_at_a_time
def open_table(place: Place) -> Table:
    """The table of a place, read once in a process."""
    key = (place.file, place, count())
    if key not in _OPEN:
        _OPEN[key] = Table.open(place)
    return _OPEN[key]
