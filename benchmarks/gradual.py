"""Gradual against instant, at equal epochs: a quarter-width VGG-16-BN on CIFAR-10, several repeats of each.

*Filters*: ``surgeon.compare`` cuts to 30 % of the MACs in three steps with training in between, and at once with all
the training behind it; the whole network, trained as long, stands beside them (it is under-trained, so any training
raises it). *Weights*: 90 and 95 % masked, in three steps that keep the same share of the survivors each, and at once;
that is what the ancestor compared. Each once more with what is left healed before it is trained (512 images without
labels). Every run trains for six epochs of the same 5,000 images with crops and mirror images; 500 others choose the
epoch, 2,000 test images judge. Written to ``benchmarks/results/gradual.json`` after each repeat; a second run goes on.

    python benchmarks/gradual.py --threads 1              # some 50 minutes
    python benchmarks/gradual.py --threads 1 --healed     # healed masks again, where surgeon has changed
    python benchmarks/gradual.py --quick                  # one repeat, 100 images
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import time
from collections.abc import Mapping
from typing import Any

import torch
from common import (
    ROOT,
    Table,
    arguments,
    drawn,
    loader,
    output_path,
    pick_device,
    run_main,
    say,
    shared,
    source_digest,
    trained,
)
from torch import nn

import surgeon
from surgeon import data, finegrained
from surgeon.tuning import evaluate

NETWORK = "vgg16bn-w025-cifar10"
MACS = 0.3
AMOUNTS = (0.9, 0.95)
STEPS, EPOCHS = 3, 6
TUNING: dict[str, Any] = {"lr": 0.02, "warmup_epochs": 0.5, "mixed_precision": "bf16"}
BATCH, JUDGED, HEALING = 64, 500, 512


def main() -> int:
    """Measure what is not there yet."""
    options = parse()
    device = pick_device(options)
    settings = {"images": options.images, "test_images": options.test_images, "steps": STEPS, "epochs": EPOCHS} | TUNING
    table = Table.open(output_path(options), settings, device, fresh=options.fresh, mixed=True)
    runs = Runs(options, device, settings)
    parts = AMOUNTS if options.healed else (None, *AMOUNTS)
    for seed, amount in itertools.product(options.seeds, parts):
        part = "filters" if amount is None else amount
        last = "healed one-shot" if options.healed else "one-shot"
        known = table.rows.get(f"{part}/{last}/{seed}")
        if known is not None and (not options.healed or known["source"] == source_digest()):
            continue
        if time.monotonic() > runs.until:
            say("time is up; a second run goes on")
            return 0
        for key, row in (runs.filters(seed) if amount is None else runs.weights(amount, seed)).items():
            table.put(key, row | {"source": source_digest()})
            say(f"{key}: {row}")
    table.write()
    return 0


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("Gradual against instant, on CIFAR-10.", "gradual")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one repeat each")
    parser.add_argument("--images", type=int, default=5_000, help="to train on")
    parser.add_argument("--test-images", type=int, default=2_000, help="that judge")
    parser.add_argument("--healed", action="store_true", help="healed masks again, if they are of other sources")
    parser.add_argument("--minutes", type=float, default=60.0, help="no repeat begins after so long")
    options = parser.parse_args()
    if options.quick:
        options.images, options.test_images, options.seeds = 100, 200, [0]
    return options


class Runs:
    """The network, the images, and the two ways to cut."""

    def __init__(self, options: argparse.Namespace, device: torch.device, settings: Mapping[str, Any]) -> None:
        self.until = time.monotonic() + 60 * options.minutes
        self.device, self.settings = device, settings
        self.healing = (True,) if options.healed else (True, False)
        self.place = ROOT / "build" / ("gradual" + "-quick" * options.quick) / "-".join(map(str, options.seeds))
        if options.fresh:
            shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True, exist_ok=True)
        model, stats = trained(NETWORK, device)
        self.model = model.to(memory_format=torch.channels_last)
        made = data.Preprocess(32, 32, tuple(stats["mean"]), tuple(stats["std"]))
        chosen = drawn(50_000, options.images + JUDGED, seed=0)
        train = split("train").take(chosen[: options.images])
        self.train = data.batches(train, made, BATCH, data.Augment())
        self.rank = [batch for batch, _ in zip(data.batches(train, made, BATCH), range(4), strict=False)]
        self.calibration = list(data.batches(split("train").take(chosen[:HEALING]), made, BATCH))
        self.val = data.batches(split("train").take(chosen[options.images :]), made, 250)
        self.test = data.batches(split("test").take(torch.arange(options.test_images)), made, 250)

    def filters(self, seed: int) -> dict[str, dict[str, Any]]:
        """Gradual, at once, and the whole network, by surgeon.compare."""
        grid = surgeon.Experiment(("taylor",), ({"max_macs": MACS},), ("cubic", "one-shot"), (seed,), STEPS, EPOCHS)
        found = surgeon.compare(
            self.model, torch.zeros(1, 3, 32, 32, device=self.device), self.train, self.val, grid, judge=self.test,
            directory=self.place, about=self.settings, tuning=TUNING, dataloader=self.rank,
        )  # fmt: skip
        rows = {}
        for cell in found.cells:
            assert cell.accuracy is not None
            key = f"filters/{cell.key.schedule}/{seed}"
            rows[key] = {"top1": 100 * cell.accuracy, "macs": cell.macs, "params": cell.params}
        return rows

    def weights(self, amount: float, seed: int) -> dict[str, dict[str, Any]]:
        """Masks that grow, and masks that come at once; of each what is left healed, and not."""
        rows = {}
        for heals, (name, steps) in itertools.product(self.healing, (("equal-ratio", STEPS), ("one-shot", 1))):
            model = copy.deepcopy(self.model)
            for step in range(steps):
                done = finegrained.sparsify(model, 1 - (1 - amount) ** (1 / steps), of="survivors")
                if heals:
                    finegrained.heal(self.model, model, self.calibration, seed=seed)
                    surgeon.settle(model, self.calibration)
                surgeon.tune(model, self.train, self.val, epochs=EPOCHS // steps, seed=seed + step, **TUNING)
            key = f"{amount}/healed {name}/{seed}" if heals else f"{amount}/{name}/{seed}"
            rows[key] = {"top1": self._top1(model), "sparsity": done.sparsity}
        return rows

    def _top1(self, model: nn.Module) -> float:
        seen = evaluate(model, self.test)
        assert seen.accuracy is not None
        return 100 * seen.accuracy


def split(part: str) -> data.Split:
    """CIFAR-10's images as surgeon takes them."""
    shared(f"data/cifar10_{part}.npz")
    pixels, labels = loader().cifar10(part)
    return data.Split(torch.from_numpy(labels).long(), torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


if __name__ == "__main__":
    run_main(main)
