"""What healing takes: seconds and memory, beyond the two models and the images, on the trained networks.

Each network is cut to half its MACs by magnitude, which costs no memory to speak of, and healed by ``lstsq`` on 512
training images. Memory is the process's peak while it heals over what it held before. Target for ResNet-56: under 10
minutes on two cores, under 2 GiB.

    python benchmarks/healing_cost.py --threads 2
    python benchmarks/healing_cost.py --quick            # ResNet-20, 64 images
"""

from __future__ import annotations

import copy
import ctypes
import time
from typing import Any

import torch
from accuracy_cut import inputs_of
from accuracy_task import BATCH, CIFAR, read_task
from common import Table, arguments, environment, output_path, pick_device, run_main, say
from confined import peak_now, restart_peak

import surgeon

MACS, IMAGES, MINUTES, GIBIBYTES = 0.5, 512, 10, 2


def main() -> int:
    """Measure each network that isn't there yet."""
    parser = arguments("What healing takes.", "healing_cost")
    parser.add_argument("--networks", nargs="+", default=list(CIFAR), choices=CIFAR)
    options = parser.parse_args()
    device = pick_device(options)
    images = 64 if options.quick else IMAGES
    networks = ["resnet20-cifar10"] if options.quick else options.networks
    settings = {"max_macs": MACS, "images": images, "threads": torch.get_num_threads()}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh)
    for name in networks:
        if name not in table.rows:
            row = measured(name, images, device)
            table.put(name, row | {"environment": environment(device)})
            say(f"{name}: {row['seconds']:.0f} s, {row['beyond_mb']:,.0f} MB beyond the models and the images")
    return 0


def measured(name: str, images: int, device: torch.device) -> dict[str, Any]:
    """One network, cut and healed."""
    task = read_task(name, device, 1000)
    batches = inputs_of(task.draw(images, 0))
    cut = surgeon.prune(task.dense, batches[0][:8], max_macs=MACS, criterion="magnitude", verify=False)
    small = copy.deepcopy(cut.model)
    ctypes.CDLL(None).malloc_trim(0)  # what the cut has freed would be used again, and not be seen
    held, start = restart_peak(), time.perf_counter()
    surgeon.heal(task.dense, small, cut.plan, batches, "lstsq")
    seconds, beyond = time.perf_counter() - start, peak_now() - held
    report = cut.report
    return {
        "seconds": round(seconds, 1), "beyond_mb": round(beyond / 1e6), "batch": BATCH,
        "macs_left": round(report.macs_after / report.macs_before, 4),
        "top1": {"cut": task.top1(cut.model), "healed": task.top1(small)},
        "targets": {"met": seconds < 60 * MINUTES and beyond < GIBIBYTES * 2**30},
    }  # fmt: skip


if __name__ == "__main__":
    run_main(main)
