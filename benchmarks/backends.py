"""A cut model under other back ends: the same outputs, and what is left of the speed-up there.

ResNet-50 (torchvision, random weights) cut to half of its MACs in steps of 8 channels, against the dense one under
eager, ``torch.compile`` and ONNX Runtime, one image and eight, batch norms folded on both sides. Target: outputs within
1e-4 of eager's.

    python benchmarks/backends.py --threads 2       # about 5 minutes
    python benchmarks/backends.py --quick           # ResNet-18 on small images, two rounds
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torchvision
from common import Table, arguments, environment, output_path, pick_device, run_main, say

import surgeon
from surgeon.measure import BACKENDS, latency

TARGET = 1e-4  # largest difference from eager, relative to the largest output


def main() -> int:
    """Measure every back end at every batch size; 1 where one computes something else."""
    options = parse()
    device = pick_device(options)
    settings = {name: getattr(options, name) for name in ("model", "size", "rounds", "threads", "max_macs", "round_to")}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh)
    torch.manual_seed(0)
    dense = torchvision.models.get_model(options.model, weights=None).eval().to(device)
    x = torch.randn(1, 3, options.size, options.size, device=device)
    cut = {"max_macs": options.max_macs, "round_to": options.round_to, "criterion": "random", "scope": "local"}
    small = surgeon.prune(dense, x, **cut).model
    for backend in BACKENDS:
        for batch in options.batch_sizes:
            if f"{backend}/{batch}" not in table.rows:
                row = measured({"dense": dense, "cut": small}, x, backend, batch, options.rounds)
                table.put(f"{backend}/{batch}", row | {"environment": environment(device)})
    for name, row in table.rows.items():
        say(f"{name}: {verdict(row)}")
    return int(any(row["difference"] > TARGET for row in table.rows.values()))


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("A cut model under eager, torch.compile and ONNX Runtime.", "backends")
    parser.add_argument("--model", default="resnet50", help="torchvision name")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="images at a time")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--max-macs", type=float, default=0.5, help="share of the MACs that is kept")
    parser.add_argument("--round-to", type=int, default=8, help="kept widths are multiples of this")
    options = parser.parse_args()
    if options.quick:
        options.model, options.size, options.rounds, options.batch_sizes = "resnet18", 64, 2, [1]
    return options


def measured(models: dict[str, Any], x: torch.Tensor, backend: str, batch: int, rounds: int) -> dict[str, Any]:
    """One row: both latencies, the speed-up, and the larger of the differences from eager."""
    found = latency(models, x, rounds=rounds, batch_size=batch, backend=backend, fold_bn=True)
    return {
        **found.to_dict(),
        "speed_up": found.speed_up("cut", "dense").to_dict(),
        "difference": max(found.differences.values(), default=0.0),
    }


def verdict(row: dict[str, Any]) -> str:
    """One line for the person who is watching."""
    dense, cut = row["latencies"]
    ratio = row["speed_up"]
    return (
        f"{dense['median'] * 1e3:.1f} ms -> {cut['median'] * 1e3:.1f} ms, {ratio['ratio']:.2f}x "
        f"({ratio['low']:.2f} to {ratio['high']:.2f}), {row['difference']:.1e} from eager (target {TARGET:.0e})"
    )


if __name__ == "__main__":
    run_main(main)
