"""A thousand cuts in one process: memory stays flat, no hook stays behind.

    python benchmarks/endurance.py                  # 1,000 calls
    python benchmarks/endurance.py --calls 200 --out /tmp/endurance.json

Each call prunes a small residual network in one of several ways (criteria, healing, as a graph, saved and loaded again)
and drops the result. Resident memory is read after each garbage collection; the first calls fill caches and count as
the warm-up. Growth is the difference of the medians of the first and the last tenth of what follows.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import torch  # noqa: E402
from common import RESULTS, environment, say  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import surgeon  # noqa: E402

CALLS, WARM_UP = 1000, 200


class Net(nn.Module):
    """Convolutions around a shortcut, batch norms, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(8) % 5)]


def _saved(model: nn.Module) -> None:
    result = surgeon.prune(model, X[:2], filters=6, criterion="magnitude", verify=False)
    with tempfile.TemporaryDirectory() as folder:
        surgeon.save(Path(folder) / "s", result.model, result.plan)
        surgeon.load(Path(folder) / "s", Net)


#: Ways of one call, taken in turn.
WAYS: dict[str, Callable[[nn.Module], object]] = {
    "taylor": lambda model: surgeon.prune(model, X[:2], filters=8, dataloader=BATCHES),
    "healed": lambda model: surgeon.prune(model, X[:2], filters=8, dataloader=BATCHES, heal="lstsq"),
    "magnitude": lambda model: surgeon.prune(model, X[:2], ratio=0.4, criterion="magnitude"),
    "saved and loaded": _saved,
    "graph": lambda model: surgeon.prune(model, X[:2], filters=6, criterion="magnitude", as_graph=True, verify=False),
}


def hooks(model: nn.Module) -> int:
    """Hooks on the model's modules, and those that torch calls for all modules."""
    own = sum(len(held) for m in model.modules() for name, held in vars(m).items() if "hooks" in name)
    everywhere = vars(torch.nn.modules.module).items()
    return own + sum(len(held) for name, held in everywhere if name.startswith("_global") and isinstance(held, dict))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--out", type=Path, default=RESULTS / "endurance.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    process, model, sizes = psutil.Process(), Net(), list[int]()
    before, ways, began = hooks(model), list(WAYS.values()), time.process_time()
    warm = min(WARM_UP, options.calls // 2)
    for number in range(warm + options.calls):
        ways[number % len(ways)](model)
        gc.collect()
        sizes.append(process.memory_info().rss)
        if number % 100 == 99:
            say(f"{number + 1} calls, {sizes[-1] / 2**20:.1f} MiB")
    tenth = max(options.calls // 10, 1)
    start, end = statistics.median(sizes[warm : warm + tenth]), statistics.median(sizes[-tenth:])
    result = {
        "calls": options.calls,
        "warm_up": warm,
        "resident_mib": {"start": round(start / 2**20, 2), "end": round(end / 2**20, 2)},
        "growth_percent": round(100 * (end / start - 1), 3),
        "hooks_left": hooks(model) - before,
        "cpu_seconds": round(time.process_time() - began, 1),
        "environment": environment(torch.device("cpu")),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"growth {result['growth_percent']} %, {result['hooks_left']} hooks left")
    return 0 if result["growth_percent"] < 1 and result["hooks_left"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
