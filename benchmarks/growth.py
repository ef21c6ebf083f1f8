"""Does the cost of a cut grow linearly with depth? ResNets of 50, 200 and 800 layers, half of every group.

Each depth stands in a process of its own: trace + graph + plan + rewrite in place, one image of 64 x 64, one thread,
seconds of wall time and the process's peak of resident memory, beside what one forward takes of both. The networks are
torchvision's bottleneck ResNet with more blocks in the third stage, where ResNet-152 has its own. Bound: 3 times the
model's memory + 300 MB beyond one forward.

    python benchmarks/growth.py             # about a minute
    python benchmarks/growth.py --quick     # 50 layers alone
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import torch
from common import ROOT, Table, arguments, output_path, pick_device, run_main, say
from torchvision.models.resnet import Bottleneck, ResNet

import surgeon

DEPTHS = (50, 200, 800)
SIDE = 64


def main() -> int:
    """Fill the table, one process per depth and kind."""
    parser = arguments("Time and memory of a cut by the depth of the network.", "growth")
    parser.set_defaults(threads=1)
    parser.add_argument("--worker", nargs=2, metavar=("DEPTH", "KIND"), help="one measurement, printed")
    options = parser.parse_args()
    if options.worker:
        print(measured(int(options.worker[0]), options.worker[1]))
        return 0
    table = Table.open(output_path(options), {"side": SIDE}, pick_device(options), fresh=options.fresh)
    for depth in DEPTHS[: 1 if options.quick else None]:
        if str(depth) not in table.rows:
            table.put(str(depth), row(depth))
        say(f"{depth} layers: {table.rows[str(depth)]}")
    return 0


def network(depth: int) -> ResNet:
    """A bottleneck ResNet of `depth` layers; 50 is torchvision's own."""
    blocks = (depth - 2) // 3
    torch.manual_seed(0)
    return ResNet(Bottleneck, [3, 4, blocks - 10, 3]).eval()


def row(depth: int) -> dict[str, Any]:
    """Seconds and megabytes of a forward and of a cut."""
    found: dict[str, Any] = {}
    for kind in ("forward", "cut"):
        command = [sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--worker", str(depth), kind]
        seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        found |= {f"{kind}_s": round(float(seconds), 3), f"{kind}_peak_mb": round(float(peak))}
    model_mb = sum(t.numel() * t.element_size() for t in network(depth).state_dict().values()) / 1e6
    beyond = found["cut_peak_mb"] - found["forward_peak_mb"]
    return found | {
        "model_mb": round(model_mb),
        "beyond_forward_mb": beyond,
        "ms_per_layer": round(1e3 * found["cut_s"] / depth, 1),
        "within_memory": beyond <= 3 * model_mb + 300,
    }


def measured(depth: int, kind: str) -> str:
    """Seconds of the second run and the peak in MB, with a space between."""
    torch.set_num_threads(1)
    images = torch.randn(1, 3, SIDE, SIDE)
    for _ in range(2):
        model = network(depth)
        start = time.perf_counter()
        if kind == "forward":
            with torch.no_grad():
                model(images)
        else:
            surgeon.prune(
                model, images, ratio=0.5, scope="local", criterion="random", verify=False, inplace=True
            )  # fmt: skip
        seconds = time.perf_counter() - start
    return f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}"


if __name__ == "__main__":
    run_main(main)
