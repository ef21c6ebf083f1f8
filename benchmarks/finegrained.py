"""Single weights on real networks: masks by magnitude and by gradient, and shared values, before and after training.

*Masks*: ResNet-20 and ResNet-56 (CIFAR-10), the smallest 30 to 90 % of the convolutions' weights gone and of the linear
layer's likewise, no training: top-1 on the test images beside the figures of the ancestor that did this (its own
weights, so the loss is what compares); as they are, and healed with 512 training images without their labels.
*Sharing*: 4 to 35 values per layer in a VGG-16-BN of a quarter of the width, untrained, healed likewise, and then with
the codebooks trained for some epochs of some training images; the dense network trained in the same way stands beside
it. Written after each row to ``benchmarks/results/finegrained.json``; a second run goes on, ``--again`` measures again.

    python benchmarks/finegrained.py --threads 1    # one to three minutes a row
    python benchmarks/finegrained.py --quick        # 500 test images, 500 to train on
    python benchmarks/finegrained.py --threads 1 --only shared --values 4 --again healed
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import (
    Images,
    Table,
    arguments,
    cifar10,
    drawn,
    output_path,
    pick_device,
    run_main,
    say,
    source_digest,
    trained,
)
from torch import nn

import surgeon
from surgeon import finegrained

MASKED = ("resnet20-cifar10", "resnet56-cifar10")
AMOUNTS = (0.3, 0.5, 0.7, 0.9)
SHARED = "vgg16bn-w025-cifar10"
KS = (4, 9, 13, 35)
PHASES = ("top1", "healed", "trained", "healed_trained")
BATCH = 250
GRADIENT_IMAGES = HEALING_IMAGES = 512
LR = 0.0005
#: Half the time and less where the processor computes in it.
PRECISION = "bf16"


def main() -> int:
    """Measure what is not there yet."""
    options = parse()
    device = pick_device(options)
    settings = {"test_images": options.test_images, "images": options.images, "seed": options.seed, "lr": LR}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh, mixed=True)
    masked = [Task.of(network, options, device) for network in MASKED if "masks" in options.only]
    for task in masked:
        masks(table, task, "magnitude")
    if "shared" in options.only:
        sharing(table, Task.of(SHARED, options, device), options)
    for task in masked:
        masks(table, task, "gradient")
    table.write()
    return 0


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("Masks and shared weights on CIFAR-10.", "finegrained")
    parser.add_argument("--test-images", type=int, default=10_000, help="that judge")
    parser.add_argument("--images", type=int, default=10_000, help="training images for the codebooks")
    parser.add_argument("--epochs", type=int, default=10, help="of the codebooks' training")
    parser.add_argument("--seed", type=int, default=0, help="of the images and their order")
    parser.add_argument(
        "--only", nargs="+", choices=("masks", "shared"), default=["masks", "shared"], help="which rows"
    )
    parser.add_argument("--values", nargs="+", type=int, default=[0, *KS], help="values per layer; 0: all, dense")
    parser.add_argument("--again", nargs="+", choices=PHASES, default=[], help="of shared weights, whatever is there")
    options = parser.parse_args()
    if options.quick:
        options.test_images = options.images = 500
        options.epochs = 1
    return options


@dataclass(frozen=True)
class Task:
    """A trained network, the images that judge it, and those that may be drawn for learning."""

    name: str
    dense: nn.Module
    stats: Mapping[str, Any]
    test: Images
    images: int
    seed: int
    device: torch.device

    @classmethod
    def of(cls, name: str, options: argparse.Namespace, device: torch.device) -> Task:
        """Read it."""
        dense, stats = trained(name, device)
        test = cifar10("test", stats, device, torch.arange(options.test_images))
        return cls(name, dense, stats, test, options.images, options.seed, device)

    def drawn(self, count: int) -> Images:
        """Training images, drawn by the seed."""
        return cifar10("train", self.stats, self.device, drawn(50_000, count, self.seed))


def masks(table: Table, task: Task, by: str) -> None:
    """Rows of one network: dense, and every amount by one score; by magnitude also healed."""
    seen, heals = task.drawn(GRADIENT_IMAGES).batches(32), by == "magnitude"
    if f"{task.name}/dense" not in table.rows:
        table.put(f"{task.name}/dense", {"top1": top1(task.dense, task.test), "file_bytes": file_bytes(task.dense)})
    for amount in AMOUNTS:
        key = f"{task.name}/{by}/{amount}"
        if key in table.rows and ("healed" in table.rows[key] or not heals):
            continue
        model = copy.deepcopy(task.dense)
        found = finegrained.sparsify(model, {"conv": amount, "linear": amount}, by=by, dataloader=seen)
        limits = {row.kind: row.threshold for row in found.layers}
        row = {"top1": top1(model, task.test), "sparsity": found.sparsity, "thresholds": limits}
        if heals:
            row |= {"healing_cpu_s": healed(task.dense, model, task), "healed": top1(model, task.test)}
        table.put(key, row | {"file_bytes": file_bytes(model), "source": source_digest()})
        say(f"{key}: {row['top1']:.2f}" + (f", healed {row['healed']:.2f}" if heals else ""))


def healed(dense: nn.Module, model: nn.Module, task: Task) -> float:
    """Heal the model with some training images; seconds of CPU time that it took."""
    images = task.drawn(HEALING_IMAGES)
    start = time.process_time()
    finegrained.heal(dense, model, [inputs for inputs, _ in images.batches(64)])
    return time.process_time() - start


def sharing(table: Table, task: Task, options: argparse.Namespace) -> None:
    """Rows of the shared network: dense and every k, as it is, healed, trained, and both."""
    epochs = options.epochs
    for phase, k in itertools.product(PHASES, options.values):
        key = f"{SHARED}/{k or 'dense'}"
        known = table.rows.get(key, {})
        trains, heals = phase.endswith("trained"), phase.startswith("healed")
        done = phase in known and phase not in options.again
        if (done and (not trains or known.get("epochs") == epochs)) or (heals and not k):
            continue
        model = copy.deepcopy(task.dense)
        rate = finegrained.share(model, k).rate if k else 1.0
        found: dict[str, Any] = {"healing_cpu_s": healed(task.dense, model, task)} if heals else {}
        if trains:
            train(model, task, epochs)
        found |= {"rate": rate, phase: top1(model, task.test), f"{phase}_bytes": file_bytes(model)}
        found |= {"epochs": epochs} if trains else {}
        table.put(key, known | found | {"precision": PRECISION, "source": source_digest()})
        say(f"{key}: {found}")


def train(model: nn.Module, task: Task, epochs: int) -> None:
    """One recipe for all: the dense network trains all its weights, the shared ones their codebooks."""
    images = task.drawn(task.images)
    data = torch.utils.data.TensorDataset(images.inputs, images.targets)
    loader = torch.utils.data.DataLoader(data, batch_size=100, shuffle=True)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    surgeon.tune(model, loader, epochs=epochs, optimizer=optimizer, seed=task.seed, mixed_precision=PRECISION)


@torch.inference_mode()
def top1(model: nn.Module, images: Images) -> float:
    """Right answers in %."""
    model.eval()
    right = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in images.batches(BATCH))
    return 100 * right / len(images)


def file_bytes(model: nn.Module) -> int:
    """Size of the compact file."""
    with tempfile.TemporaryDirectory() as folder:
        finegrained.pack(Path(folder) / "model.safetensors", model)
        return (Path(folder) / "model.safetensors").stat().st_size


if __name__ == "__main__":
    run_main(main)
