"""Single weights on real networks: masks by magnitude and by gradient, and shared values, before and after training.

*Masks*: ResNet-20 and ResNet-56 (CIFAR-10), the smallest 30 to 90 % of the convolutions' weights gone and of the linear
layer's likewise, no training: top-1 on the test images beside the figures of the ancestor that did this (its own
weights, so the loss is what compares). *Sharing*: 4 to 35 values per layer in a VGG-16-BN of a quarter of the width,
untrained, and with the codebooks trained for some epochs of some training images; the dense network trained in the
same way stands beside it. Written after each row to ``benchmarks/results/finegrained.json``; a second run goes on.

    python benchmarks/finegrained.py --threads 1    # about half a minute a row
    python benchmarks/finegrained.py --quick        # 500 test images, 500 to train on
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
from pathlib import Path

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
BATCH = 250
GRADIENT_IMAGES = 512
LR = 0.0005
#: Half the time and less where the processor computes in it.
PRECISION = "bf16"


def main() -> int:
    """Measure what is not there yet."""
    options = parse()
    device = pick_device(options)
    settings = {"test_images": options.test_images, "images": options.images, "seed": options.seed, "lr": LR}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh, mixed=True)
    sharing(table, options, device)
    for network in MASKED:
        masks(table, network, "magnitude", options, device)
    for network in MASKED:
        masks(table, network, "gradient", options, device)
    table.write()
    return 0


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("Masks and shared weights on CIFAR-10.", "finegrained")
    parser.add_argument("--test-images", type=int, default=10_000, help="that judge")
    parser.add_argument("--images", type=int, default=10_000, help="training images for the codebooks")
    parser.add_argument("--epochs", type=int, default=10, help="of the codebooks' training")
    parser.add_argument("--seed", type=int, default=0, help="of the images and their order")
    options = parser.parse_args()
    if options.quick:
        options.test_images = options.images = 500
        options.epochs = 1
    return options


def masks(table: Table, network: str, by: str, options: argparse.Namespace, device: torch.device) -> None:
    """Rows of one network: dense, and every amount by one score."""
    dense, stats = trained(network, device)
    test = cifar10("test", stats, device, torch.arange(options.test_images))
    seen = cifar10("train", stats, device, drawn(50_000, GRADIENT_IMAGES, options.seed)).batches(32)
    if f"{network}/dense" not in table.rows:
        table.put(f"{network}/dense", {"top1": top1(dense, test), "file_bytes": file_bytes(dense)})
    for amount in AMOUNTS:
        key = f"{network}/{by}/{amount}"
        if key in table.rows:
            continue
        model = copy.deepcopy(dense)
        found = finegrained.sparsify(model, {"conv": amount, "linear": amount}, by=by, dataloader=seen)
        limits = {row.kind: row.threshold for row in found.layers}
        row = {"top1": top1(model, test), "sparsity": found.sparsity, "thresholds": limits}
        table.put(key, row | {"file_bytes": file_bytes(model), "source": source_digest()})
        say(f"{key}: {row['top1']:.2f}")


def sharing(table: Table, options: argparse.Namespace, device: torch.device) -> None:
    """Rows of the shared network: dense and every k, first untrained, then trained."""
    dense, stats = trained(SHARED, device)
    test = cifar10("test", stats, device, torch.arange(options.test_images))
    for phase, k in itertools.product(("top1", "trained"), (None, *KS)):
        key = f"{SHARED}/{k or 'dense'}"
        known = table.rows.get(key, {})
        if phase in known and (phase == "top1" or known.get("epochs") == options.epochs):
            continue
        model = copy.deepcopy(dense)
        rate = 1.0 if k is None else finegrained.share(model, k).rate
        if phase == "trained":
            train(model, cifar10("train", stats, device, drawn(50_000, options.images, options.seed)), options)
        found = {"rate": rate, phase: top1(model, test), f"{phase}_bytes": file_bytes(model)}
        found |= {"epochs": options.epochs} if phase == "trained" else {}
        table.put(key, known | found | {"precision": PRECISION, "source": source_digest()})
        say(f"{key}: {found}")


def train(model: nn.Module, images: Images, options: argparse.Namespace) -> None:
    """One recipe for all: the dense network trains all its weights, the shared ones their codebooks."""
    data = torch.utils.data.TensorDataset(images.inputs, images.targets)
    loader = torch.utils.data.DataLoader(data, batch_size=100, shuffle=True)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    surgeon.tune(
        model, loader, epochs=options.epochs, optimizer=optimizer, seed=options.seed, mixed_precision=PRECISION
    )


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
