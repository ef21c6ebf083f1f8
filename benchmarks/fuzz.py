"""Changed checkpoints and plans by the hundred thousand: each becomes a model that is what it says, or a SurgeonError.

    python benchmarks/fuzz.py                   # 100,000 cases; goes on where it was stopped
    python benchmarks/fuzz.py --only 1234       # one case again, with its traceback
    python benchmarks/fuzz.py --atheris 600     # guided by coverage, for so many seconds; needs the package atheris

The corpus is kept as what makes it: six small files built at the start (tests/fuzzing.py) and a seeded mutator
(tests/mutations.py). A case is a number, the same everywhere. It counts as wrong if it raises anything but a
SurgeonError, takes above 5 s of the processor, makes the process grow by more than twice the file and 16 MiB, or ends
it. (Every header may take those 16 MiB, see surgeon/jsontext.py.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from common import RESULTS, environment, say  # noqa: E402
from confined import memory_of, peak_now, restart_peak  # noqa: E402

from tests.fuzzing import Seed, judge, seeds  # noqa: E402
from tests.mutations import mutate  # noqa: E402

CASES = 100_000
SECONDS = 5  # of the processor: other work on the machine doesn't count
_WAITING = 120  # of the clock: a case that waits for something uses no processor
#: What a process may grow by beside twice the file, and where the kernel stops it.
ALWAYS, CEILING = 2**24, 2**28
_CHUNK = 2000
#: What reads files: the code whose coverage guides atheris.
_GUIDED = ("surgeon.checkpoint", "surgeon.jsontext", "surgeon.planning.plan", "surgeon.tracing.inputs")
_KEPT = 50  # wrong cases that are written down


class Hang(BaseException):
    """A case took too long."""


def case(number: int, found: tuple[Seed, ...]) -> tuple[Seed, bytes]:
    """The seed and the changed file of a number."""
    rng = random.Random(f"surgeon {number}")
    seed = rng.choices(found, [s.share for s in found])[0]
    return seed, mutate(seed.data, rng, plan=seed.plan)


# ---------------------------------------------------------------- one process


def work(start: int, stop: int) -> None:
    """Judge some cases; one line of JSON for each that is wrong, one for what came of the others."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGPROF, _hang)
    found = seeds()
    counts: Counter[str] = Counter()
    largest = slowest = 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "case"
        for seed in found:  # what is loaded and kept once is no case's doing
            judge(seed, seed.data, path)
        free = resource.getrlimit(resource.RLIMIT_DATA)
        for number in range(start, stop):
            print(json.dumps({"at": number}), flush=True)
            seed, data = case(number, found)
            resource.setrlimit(resource.RLIMIT_DATA, (memory_of("self", "VmData") + CEILING, free[1]))
            before, began = restart_peak(), time.process_time()
            told: str = _judged(seed, data, path)
            seconds, grown = time.process_time() - began, peak_now() - before
            resource.setrlimit(resource.RLIMIT_DATA, free)
            if grown > 2 * len(data) + ALWAYS:
                told = f"grew by {grown} bytes on a file of {len(data)}"
            if told[0].islower() and told != "loaded":
                print(json.dumps({"wrong": number, "seed": seed.name, "why": told}), flush=True)
                told = "wrong"
            counts[f"{seed.name}: {told}"] += 1
            largest, slowest = max(largest, grown - 2 * len(data)), max(slowest, seconds)
    print(json.dumps({"counts": counts, "largest": largest, "slowest": slowest}), flush=True)


def _hang(*_: Any) -> None:
    raise Hang


def _judged(seed: Seed, data: bytes, path: Path) -> str:
    """ "loaded", the name of surgeon's error, or in lower case what is wrong."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(_WAITING)
    try:
        return judge(seed, data, path)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # noqa: BLE001  # whatever it is
        last = traceback.extract_tb(problem.__traceback__)[-1]
        return f"raised {type(problem).__name__}: {str(problem)[:200]} ({Path(last.filename).name}:{last.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)


# ---------------------------------------------------------------- all of them


def run(cases: int, out: Path) -> int:
    """All cases that are still to come, in processes of some thousand each."""
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    record = {"done": 0, "counts": {}, "wrong": [], "largest_growth": 0, "slowest": 0.0, "cpu_seconds": 0.0, **record}
    before = record["cpu_seconds"]
    while record["done"] < cases:
        start = record["done"]
        stop = min(start + _CHUNK, cases)
        began = time.perf_counter()
        _take(record, start, stop)
        record["cpu_seconds"] = round(before + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, 1)
        record["environment"] = environment(torch.device("cpu"))
        out.write_text(json.dumps(record, indent=1) + "\n")
        rate = (record["done"] - start) / (time.perf_counter() - began)
        say(f"{record['done']:,} of {cases:,}: {len(record['wrong'])} wrong, {rate:.0f} a second")
    return 1 if record["wrong"] else 0


def _take(record: dict[str, Any], start: int, stop: int) -> None:
    """What processes say of the cases; one that ends its process is wrong, and the others are judged without it."""
    parts = [(start, stop)]
    while parts:
        first, last = parts.pop()
        at, told = _process(record, first, last)
        if told is None:
            say(f"case {at} ended its process")
            record["wrong"] = [*record["wrong"], {"wrong": at, "why": "ended the process"}][:_KEPT]
            parts += [part for part in ((first, at), (at + 1, last)) if part[0] < part[1]]
            continue
        record["counts"] = dict(sorted((Counter(record["counts"]) + Counter(told["counts"])).items()))
        record["largest_growth"] = max(record["largest_growth"], told["largest"])
        record["slowest"] = max(record["slowest"], told["slowest"])
    record["done"] = stop


def _process(record: dict[str, Any], first: int, last: int) -> tuple[int, dict[str, Any] | None]:
    """The last case that one process began, and its counts if it came to its end."""
    words = [sys.executable, __file__, "--work", str(first), str(last)]
    at, counts, wrong = first, None, []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            told = json.loads(line)
            at = told.get("at", at)
            wrong += [told] if "wrong" in told else []
            counts = told if "counts" in told else counts
    if counts is not None:
        record["wrong"] = [*record["wrong"], *wrong][:_KEPT]
    return at, counts


def again(number: int) -> int:
    """One case, with whatever it raises; the file is left in the current folder."""
    seed, data = case(number, seeds())
    path = Path(f"case-{number}")
    path.write_bytes(data)
    say(f"{seed.name}, {len(data)} bytes in {path}")
    say(judge(seed, data, path))
    return 0


def guided(seconds: int) -> int:
    """Let atheris look for inputs that reach new code, from the same seeds."""
    try:
        import atheris
    except ImportError:
        say("skipped: the package atheris isn't installed (python -m pip install atheris; CPython on Linux and macOS)")
        return 0
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = seeds()
    path = Path(tempfile.mkdtemp()) / "case"
    for name, module in list(sys.modules.items()):
        for function in vars(module).values() if name.startswith(_GUIDED) else ():
            if isinstance(function, types.FunctionType) and function.__module__ == name:
                atheris.instrument_func(function)

    @atheris.instrument_func  # type: ignore[untyped-decorator]
    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        seed = found[provider.ConsumeIntInRange(0, len(found) - 1)]
        rng = random.Random(provider.ConsumeBytes(8))
        rest = provider.ConsumeBytes(provider.remaining_bytes())
        judge(seed, rest if len(rest) > 64 else mutate(seed.data, rng, plan=seed.plan), path)

    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=4096", f"-timeout={SECONDS}"], one)
    atheris.Fuzz()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--only", type=int)
    parser.add_argument("--atheris", type=int, metavar="SECONDS")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return 0
    if options.only is not None:
        return again(options.only)
    return guided(options.atheris) if options.atheris else run(options.cases, options.out)


if __name__ == "__main__":
    sys.exit(main())
