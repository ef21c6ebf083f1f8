"""Real images, real weights: accuracy after a cut and after each level of healing, Torch-Pruning beside it.

Networks and MACs are those of ``CASES``. A seed draws 512 training images. Criteria that use labels ("labelled" in the
row) see theirs; healing never does. Each cut is tested as it is and after each level of healing, which work on copies
of the same cut; so is the dense network. Torch-Pruning is cut to the same MACs on the same images, and its batch norms
are measured anew on them. One counter (PyTorch's) gives everybody's MACs.

Written after each level to ``benchmarks/results/accuracy.json``; a second run goes on where the first stopped. Rows say
which sources they are of; ``--renew`` measures again what is of others. Most important rows first, so that a run
bounded by ``--minutes`` leaves the best table for its time.

    python benchmarks/accuracy.py --threads 1                         # about 6 hours on one core
    python benchmarks/accuracy.py --threads 1 --minutes 25            # as much of it as fits
    python benchmarks/accuracy.py --quick                             # 500 test images, one seed, two cases
    python benchmarks/accuracy.py --steps 4 --levels lstsq --rivals   # ranked and healed in each of four steps
    python benchmarks/accuracy.py --device cuda --tune 30 --scratch 160 --criteria auto  # the controls, on a GPU

After training (the table "training"; the same command may run several times at once, each run takes the next row that
no other has taken; it goes on from the last epoch when it was stopped):

    python benchmarks/accuracy.py --threads 1 --tune 15 --criteria auto --rivals taylor --levels none bn lstsq \\
        --cases resnet20-cifar10@1.725 vgg16bn-w025-cifar10@2 --output benchmarks/results/accuracy_training.json

On a GPU (an H100 makes some 34,000 images a second of two cuts of ResNet-56 at once, 39,000 of six):

    python benchmarks/accuracy.py --device cuda --threads 1 --batch 500 --graphs --search-kernels --tune 119 \\
        --lr 0.15 --criteria auto --rivals --levels lstsq --cases resnet56-cifar10@2.1 resnet56-cifar10@2.55 \\
        --output benchmarks/results/accuracy_training_long-cuda.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accuracy_cut import HEALING, UNLABELLED, Cut, surgeons, whole
from accuracy_rival import CRITERIA as RIVALS
from accuracy_rival import IMAGES as RIVAL_IMAGES
from accuracy_rival import Descents, RivalError
from accuracy_task import BATCH, CIFAR, IMAGENET, NOTES, TEST_TOTAL, Task, read_task
from accuracy_training import LAYOUTS, SCRATCH_LR, TRAINED, Recipe, Training
from common import (
    ROOT,
    Images,
    MissingError,
    Table,
    arguments,
    claimed,
    commit,
    output_path,
    pick_device,
    run_main,
    say,
    source_digest,
)

import surgeon
from surgeon.criteria import find_criterion

#: Network and how many times fewer MACs, most important first.
CASES = (
    "resnet56-cifar10@2", "resnet56-cifar10@3", "resnet20-cifar10@1.7", "resnet56-cifar10@4", "resnet56-cifar10@1.5",
    "vgg16bn-w025-cifar10@2", "vgg16bn-w025-cifar10@1.5", f"{IMAGENET}@2", f"{IMAGENET}@1.5",
)  # fmt: skip
CRITERIA = ("auto", UNLABELLED, "obs-mac", "taylor", "random")
QUICK_CASES, QUICK_TEST = 2, 500


@dataclass(frozen=True)
class Line:
    """A row to fill: who cuts what to which MACs by which criterion."""

    tool: str
    network: str
    speedup: float
    criterion: str
    seed: int
    steps: int = 1
    round_to: int = 1

    @property
    def key(self) -> str:
        """The row's name in the file."""
        how = f"-{self.steps}steps" * (self.steps > 1) + f"-by{self.round_to}" * (self.round_to > 1)
        return f"{self.network}/{self.speedup:g}x/{self.tool}/{self.criterion}{how}/{self.seed}"

    def facts(self) -> dict[str, Any]:
        """What the row begins with."""
        names = ("network", "speedup", "tool", "criterion", "steps", "round_to", "seed")
        note = {"note": NOTES[self.network]} if self.network in NOTES else {}
        return {name: getattr(self, name) for name in names} | note


def main() -> int:
    """Fill the table row by row, and say each level."""
    options = parse()
    torch.backends.cudnn.benchmark = options.search_kernels
    bench = Bench(options, pick_device(options))
    for line in lines(options):
        if bench.late():
            say(f"stopped after {options.minutes:g} minutes; the same command goes on from here")
            break
        with claimed(options.work / f"{line.key.replace('/', '_')}.lock") as ours:
            if ours:
                bench.fill(line)
    return 0


def parse() -> argparse.Namespace:
    """Read the options; ``--quick`` narrows the cases, the seeds and the test images."""
    parser = arguments("Accuracy after a cut, healed and not, and Torch-Pruning's.", "accuracy")
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="NETWORK@SPEEDUP, in this order")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), help="surgeon's, in this order within a case")
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS, help="Torch-Pruning's criteria")
    parser.add_argument("--levels", nargs="+", default=list(HEALING["surgeon"]), choices=HEALING["surgeon"])
    parser.add_argument("--steps", type=int, default=1, help="surgeon cuts in so many, healed by lstsq in each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each draws its own images")
    parser.add_argument("--round-to", type=int, default=1, help="surgeon's widths are multiples of this")
    parser.add_argument("--images", type=int, default=512, help="training images to rank and heal on")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--renew", action="store_true", help="measure again what other sources measured")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--tune", type=int, default=0, metavar="EPOCHS", help="fine-tune the healed cuts as well")
    parser.add_argument("--scratch", type=int, default=0, metavar="EPOCHS", help="train the cut networks from scratch")
    parser.add_argument("--lr", type=float, default=Recipe.lr, help="peak rate of the fine-tuning")
    parser.add_argument("--precision", default=Recipe.mixed_precision, choices=("bf16", "no"), help="of the training")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="images in a step of the training")
    parser.add_argument("--layout", default=Recipe.layout, choices=LAYOUTS, help="of the training")
    parser.add_argument("--graphs", action="store_true", help="replay the training's steps as CUDA graphs (on a GPU)")
    parser.add_argument("--search-kernels", action="store_true", help="let cuDNN time its kernels (on a GPU)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "accuracy", help="where training is kept")
    options = parser.parse_args()
    if options.quick:
        options.cases, options.seeds = options.cases[:QUICK_CASES], options.seeds[:1]
    return options


def lines(options: argparse.Namespace) -> Iterator[Line]:
    """The rows in the order in which they count: seed by seed, case by case, the dense networks behind them."""
    criteria = [name for name in options.criteria if known(name)]
    for seed in options.seeds:
        for case in options.cases:
            network, _, speedup = case.partition("@")
            if network not in (*CIFAR, IMAGENET) or not speedup:
                raise MissingError(f"{case!r}: expected NETWORK@SPEEDUP, such as {CASES[0]}")
            for name in criteria:
                yield Line("surgeon", network, float(speedup), name, seed, options.steps, options.round_to)
            for name in options.rivals:
                yield Line("torch-pruning", network, float(speedup), name, seed)
        for network in dict.fromkeys(case.partition("@")[0] for case in options.cases):
            yield Line("dense", network, 1.0, "-", seed)


def known(name: str) -> bool:
    """Whether this surgeon has the criterion; said where it hasn't."""
    try:
        find_criterion("auto" if name == UNLABELLED else name)
    except surgeon.SelectionError as problem:
        say(f"left out: {problem}")
        return False
    return True


@dataclass
class Bench:
    """The table, and what is at hand: one network and one seed's images at a time."""

    options: argparse.Namespace
    device: torch.device
    table: Table = field(init=False)
    start: float = field(default_factory=time.monotonic)
    _task: Task | None = None
    _chosen: tuple[tuple[str, int], Images] | None = None
    _descents: Descents | None = None

    def __post_init__(self) -> None:
        options = self.options
        settings = {"images": options.images, "batch": BATCH, "rival_images": RIVAL_IMAGES}
        settings |= {"test_images": QUICK_TEST if options.quick else TEST_TOTAL}
        self.table = Table.open(output_path(options), settings, self.device, fresh=options.fresh, mixed=True)
        self.origin = {"source": source_digest(), "commit": commit()}
        how = {"batch": options.batch, "layout": options.layout, "mixed_precision": options.precision}
        how |= {"graphs": options.graphs}
        tune = Recipe(options.tune, options.lr, **how)
        scratch = Recipe(options.scratch, SCRATCH_LR, teacher_weight=0.0, **how)
        self.training = Training(tune, scratch, options.work)

    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.start > 60 * float(self.options.minutes)

    def fill(self, line: Line) -> None:
        """Measure the levels that the row lacks; cut again only if there are any."""
        self.table.refresh()
        row = self.table.rows.get(line.key)
        if self.options.retry and row is not None and row["failed"]:
            row = None
        old = row is not None and row["source"] != self.origin["source"]
        if row is not None:
            lacking = self.wanted(line, row)
            begun = bool(TRAINED.intersection(lacking))  # a training that is still to come needs its cut
            if not (begun or (self.options.renew if old else lacking)):
                return
        row = line.facts() | {"top1": {}, "seconds": {}, "failed": {}} if row is None or old else row
        row |= self.origin
        try:
            cut = self.cut(line)
        except (surgeon.SurgeonError, RivalError) as problem:
            self.fail(line, row, "cut", problem)
            return
        row |= {**cut.facts, **self.sizes(cut)}
        for level in self.wanted(line, row):
            self.measure(line, row, cut, level)

    def wanted(self, line: Line, row: dict[str, Any]) -> list[str]:
        """The levels that the row lacks."""
        if "cut" in row["failed"]:
            return []
        levels = ["lstsq"] if line.steps > 1 else [n for n in HEALING[line.tool] if n in self.options.levels]
        if line.tool != "dense":
            levels += self.training.levels(self.task(line.network))
        elif line.seed == self.options.seeds[0]:  # its training is only there to be told from the cut ones'
            levels += [name for name in self.training.levels(self.task(line.network)) if name != "scratch"]
        return [name for name in levels if name not in row["top1"] and name not in row["failed"]]

    def cut(self, line: Line) -> Cut:
        """The cut that the row is about. Raises SurgeonError or RivalError."""
        task, chosen = self.task(line.network), self.chosen(line.network, line.seed)
        if line.tool == "dense":
            return whole(task, chosen)
        keep = self.options.work / f"{line.key.replace('/', '_')}_{self.options.images}.safetensors"
        if line.tool == "surgeon":
            how = {"steps": line.steps, "round_to": line.round_to}
            return surgeons(task, line.speedup, line.criterion, chosen, line.seed, keep, **how)
        if self._descents is None or self._descents.task is not task or self._descents.chosen is not chosen:
            cases = [case.partition("@") for case in self.options.cases]
            self._descents = Descents(task, chosen, [float(x) for name, _, x in cases if name == line.network])
        return self._descents.cut(line.criterion, line.speedup, keep)

    def measure(self, line: Line, row: dict[str, Any], cut: Cut, level: str) -> None:
        """One level: heal a copy, or train it, and test it."""
        start, task = time.perf_counter(), self.task(line.network)
        try:
            if level in cut.levels:
                model = cut.healed(level)
            else:
                model, facts = self.training.trained(task, cut, level, line.key, line.seed)
                row.setdefault("training", {})[level] = facts
        except surgeon.SurgeonError as problem:
            self.fail(line, row, level, problem)
            return
        row["seconds"][level] = round(cut.seconds.get(level, time.perf_counter() - start), 3)
        row["top1"][level] = task.top1(model)
        self.table.put(line.key, row)
        found, seconds = row["top1"][level], row["seconds"][level]
        say(f"{line.key} {level}: {found:.2f} %, {seconds:.0f} s; MACs {row['macs_left']:.1%}")

    def fail(self, line: Line, row: dict[str, Any], level: str, problem: Exception) -> None:
        """A row that says what went wrong."""
        row["failed"][level] = str(problem).splitlines()[0]
        self.table.put(line.key, row)
        say(f"{line.key} {level}: {row['failed'][level]}")

    def sizes(self, cut: Cut) -> dict[str, Any]:
        """Before and after."""
        assert self._task is not None
        before, after = self._task.sizes(self._task.dense), self._task.sizes(cut.model)
        found = {
            f"{name}_{when}": sizes[name] for when, sizes in (("before", before), ("after", after)) for name in sizes
        }
        return found | {"macs_left": round(after["macs"] / before["macs"], 5)}

    def task(self, network: str) -> Task:
        """The network and its test images, read once as long as it is the same."""
        if self._task is None or self._task.name != network:
            self._task = read_task(network, self.device, self.table.settings["test_images"])
        return self._task

    def chosen(self, network: str, seed: int) -> Images:
        """The images of a seed, read once as long as they are the same."""
        if self._chosen is None or self._chosen[0] != (network, seed):
            self._chosen = (network, seed), self.task(network).draw(self.options.images, seed)
        return self._chosen[1]


if __name__ == "__main__":
    run_main(main)
