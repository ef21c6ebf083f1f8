"""One member of each torchvision family at full size: exact at half of every group, and at a random global plan.

The check compares every aligned node with the silenced dense model on redrawn float64 weights. Weights are random:
exactness doesn't depend on them. A row per network in ``benchmarks/results/families.json``; a second run goes on.

    python benchmarks/families.py            # about 6 minutes on 2 cores
    python benchmarks/families.py --quick    # the first three
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
import torchvision
from common import Table, arguments, output_path, pick_device, run_main, say

import surgeon

NETWORKS = (
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
    "inception_v3", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0",
    "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0", "convnext_tiny",
    "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large",
)  # fmt: skip
PLANS: dict[str, dict[str, Any]] = {
    "half of every group": {"ratio": 0.5, "scope": "local"},
    "random global 0.3": {"ratio": 0.3, "scope": "global"},
}


def main() -> int:
    """Fill the table row by row; exit code 1 if any network was not proven."""
    options = parse()
    device = pick_device(options)
    table = Table.open(output_path(options), {"plans": PLANS}, device, fresh=options.fresh)
    for name in NETWORKS[:3] if options.quick else NETWORKS:
        for plan, amount in PLANS.items():
            key = f"{name}/{plan}"
            if key not in table.rows:
                table.put(key, measure(name, amount, device))
                say(f"{key}: {table.rows[key]}")
    return int(any(row["status"] != "passed" for row in table.rows.values()))


def parse() -> argparse.Namespace:
    """Read the options."""
    return arguments("Exactness over the torchvision families.", "families").parse_args()


def measure(name: str, amount: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Prune one network and say what the check found."""
    model = build(name).to(device)
    size = 299 if name == "inception_v3" else 224
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    start = time.perf_counter()
    report = surgeon.prune(model, example, criterion="random", **amount).report
    check = report.check
    assert check is not None
    return {
        "status": check.status,
        "error": check.error,
        "own_error": check.own_error,
        "nodes": check.nodes,
        "params_left": round(report.params_after / report.params_before, 4),
        "macs_left": round(report.macs_after / report.macs_before, 4),
        "pinned": [f"{pin.layer}: {pin.reason}" for pin in report.pinned if pin.reason != "output"],
        "seconds": round(time.perf_counter() - start, 2),
    }


def build(name: str) -> torch.nn.Module:
    """A torchvision model with random weights, from a fixed seed."""
    torch.manual_seed(0)
    backbone = {"weights_backbone": None} if any(part in name for part in ("deeplab", "fcn", "lraspp")) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's own, on GoogLeNet's initialisation
        model: torch.nn.Module = torchvision.models.get_model(name, weights=None, **backbone)
    return model.eval()


if __name__ == "__main__":
    run_main(main)
