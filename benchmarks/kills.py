"""The iterative loop, killed and taken up again: the outcome must equal the uninterrupted one to the bit.

    python benchmarks/kills.py              # 100 runs; goes on where it was stopped
    python benchmarks/kills.py --runs 5 --out /tmp/kills.json

One run is surgeon.prune_and_tune on a tiny network (three cuts, training after each, a folder). It is started in a
process of its own, which gets SIGKILL at a random instant, and is started again until it ends by itself; about half of
all starts are killed. Then its model, plan and rows are compared with those of a run that nobody killed, and the folder
must hold the files of a finished run and nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from common import RESULTS, environment, say  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import surgeon  # noqa: E402

RUNS = 100
#: Kills of one run; afterwards it is let through.
_MOST_KILLS = 6


class Net(nn.Module):
    """Batch norm and dropout: state beside the weights, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.drop(torch.relu(self.second(x)).mean((2, 3))))


def work(folder: Path) -> None:
    """One start of the run; leaves its outcome beside the folder."""
    torch.manual_seed(0)
    model = Net()
    images, labels = torch.randn(256, 3, 8, 8), torch.randint(0, 4, (256,))
    train = DataLoader(TensorDataset(images, labels), 16, shuffle=True)
    val = DataLoader(TensorDataset(images[:64], labels[:64]), 32)
    done = surgeon.prune_and_tune(
        model, images[:2], train, val, steps=3, filters=4, epochs_per_step=3, final_epochs=2, criterion="taylor",
        tuning={"lr": 0.05, "ema": 0.9}, directory=folder / "run", seed=3,
    )  # fmt: skip
    rows = [{k: v for k, v in vars(step).items() if k not in ("history", "cut", "notes")} for step in done.steps]
    losses = [[(epoch.train_loss, epoch.val_loss) for epoch in step.history] for step in done.steps]
    told = {"plan": done.plan.to_json(), "rows": rows, "losses": losses, "notes": [step.notes for step in done.steps]}
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
    surgeon.save(folder / "final.safetensors", done.model, done.plan)


def start(folder: Path) -> Any:
    """A process that does the run; it shares this one's imports, and nothing else."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    process.start()
    return process


def outcome(folder: Path) -> tuple[dict[str, Tensor], Any, list[str]]:
    """Weights, everything else, and the names of the run's files."""
    names = sorted(str(p.relative_to(folder / "run")) for p in (folder / "run").rglob("*") if p.is_file())
    return load_file(folder / "final.safetensors"), json.loads((folder / "told.json").read_text()), names


def killed(number: int, seconds: float, folder: Path) -> tuple[int, list[str]]:
    """One run with its kills: how many there were, and the newest file of the run at each."""
    draw, places = random.Random(number), list[str]()
    while True:
        process = start(folder)
        if len(places) < _MOST_KILLS:
            process.join(draw.uniform(0, seconds))
            if process.is_alive():
                process.kill()  # SIGKILL
                process.join()
                places.append(newest(folder / "run"))
                continue
        process.join()
        if process.exitcode:
            raise RuntimeError(f"run {number} ended with {process.exitcode} after {len(places)} kills")
        return len(places), places


def newest(run: Path) -> str:
    """What the killed process wrote last."""
    files = [p for p in run.rglob("*") if p.is_file()] if run.exists() else []
    last = max(files, key=lambda p: p.stat().st_mtime_ns, default=None)
    if last is None:
        return "nothing"
    return "a file half-written" if last.suffix == ".tmp" else str(last.relative_to(run))


def run(runs: int, out: Path) -> int:
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    record = {"runs": 0, "equal": 0, "kills": 0, "differ": [], "killed_after": {}, **record}
    with tempfile.TemporaryDirectory() as place:
        for name in ("first", "whole"):  # the second is as fast as all later ones
            whole = Path(place) / name
            whole.mkdir()
            begun = time.perf_counter()
            start(whole).join()
        seconds, expected = time.perf_counter() - begun, outcome(whole)
        while record["runs"] < runs:
            number = record["runs"]
            with tempfile.TemporaryDirectory() as folder:
                kills, places = killed(number, seconds, Path(folder))
                weights, told, names = outcome(Path(folder))
            equal = {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in expected[0].items()}
            equal = equal and all(torch.equal(tensor, expected[0][name]) for name, tensor in weights.items())
            equal = equal and told == expected[1] and names == expected[2]
            record["runs"] += 1
            record["equal"] += equal
            record["kills"] += kills
            record["differ"] += [] if equal else [number]
            record["killed_after"] = dict(sorted((Counter(record["killed_after"]) + Counter(places)).items()))
            record["environment"] = environment(torch.device("cpu"))
            out.write_text(json.dumps(record, indent=1) + "\n")
            say(f"run {number}: killed {kills} times, {'equal' if equal else 'DIFFERENT'}")
    say(f"{record['equal']} of {record['runs']} equal, {record['kills']} kills")
    return 0 if record["equal"] == record["runs"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    return run(options.runs, options.out)


if __name__ == "__main__":
    sys.exit(main())
