"""Run a script in a process of its own, within a time and a memory limit, and collect what it said so far.

The script writes one JSON object per line to a file, each as soon as it is known; they are merged in order. So whatever
ends the process (a limit, a signal, its own error), the facts found before are there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ROOT

Facts = dict[str, Any]
Emit = Callable[[Facts], None]
POLL = 0.1  # seconds between two looks at a process
LONGEST = 400  # characters of a reason
FOLDERS = re.compile(rf"{re.escape(str(ROOT))}/|/\S*?/(site|dist)-packages/")


@dataclass(frozen=True)
class Limits:
    """How long a process may take, and how much memory (resident; watched where there is /proc)."""

    seconds: float
    gigabytes: float


@contextmanager
def emitter(path: str) -> Iterator[Emit]:
    """For the script: a function that adds facts to the file at once."""
    with Path(path).open("a", encoding="utf-8") as file:

        def emit(facts: Facts) -> None:
            file.write(json.dumps(facts) + "\n")
            file.flush()

        yield emit


def run_confined(script: str, words: Sequence[str], limits: Limits, threads: int) -> tuple[Facts, str, str]:
    """The facts that ``benchmarks/SCRIPT WORDS... FILE`` left in FILE; what ended it, if anything; its last words."""
    with tempfile.TemporaryDirectory() as folder:
        facts, errors = Path(folder) / "facts", Path(folder) / "errors"
        facts.touch()
        with errors.open("wb") as sink:
            command = [sys.executable, str(ROOT / "benchmarks" / script), *words, str(facts)]
            process = subprocess.Popen(command, env=surroundings(threads), stdout=sink, stderr=sink, cwd=folder)
            end = watched(process, limits)
        return merged(facts), end, last_words(errors)


def surroundings(threads: int) -> dict[str, str]:
    """The environment of the process: this checkout's packages first, so many threads, and nothing fetched."""
    given = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **given, "PYTHONPATH": str(ROOT)}


def watched(process: subprocess.Popen[bytes], limits: Limits) -> str:
    """Wait for the process's end; kill it when it oversteps a limit."""
    stop = time.monotonic() + limits.seconds
    while process.poll() is None:
        over = "timeout" if time.monotonic() > stop else "memory" if resident(process.pid) > limits.gigabytes else ""
        if over:
            process.kill()
            process.wait()
            return over
        time.sleep(POLL)
    return "crash" if process.returncode else ""


def resident(pid: int) -> float:
    """Gigabytes that a process holds now; 0 where that can't be known."""
    return memory_of(str(pid), "VmRSS") / 1e9


def peak() -> float:
    """Megabytes that this process has held at most; 0 where that can't be known."""
    return round(memory_of("self", "VmHWM") / 1e6, 1)


def restart_peak() -> int:
    """Let this process's peak begin anew; gives the bytes that it holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_of("self", "VmRSS")


def peak_now() -> int:
    """Bytes that this process has held at most since :func:`restart_peak`."""
    return memory_of("self", "VmHWM")


def memory_of(pid: str, field: str) -> int:
    """A field of /proc/PID/status in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def merged(path: Path) -> Facts:
    """All complete lines as one dictionary, later ones winning."""
    facts: Facts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            facts |= json.loads(line)
        except json.JSONDecodeError:  # noqa: PERF203  # the last line of a process that was killed
            break
    return facts


def last_words(path: Path) -> str:
    """The last line that the process printed."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return shortened(lines[-1]) if lines else ""


def shortened(text: str) -> str:
    """One line, not too long, with no folder of this machine in it."""
    text = FOLDERS.sub("", " ".join(text.split()))
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
