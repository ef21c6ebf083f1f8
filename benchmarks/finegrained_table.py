"""The tables of masks, shared values and packed files, beside the ancestors' figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from tables import Results, grid

#: Figures of the ancestors on their own weights, by network: dense, and by share of zeros or number of values.
ANCESTORS: Mapping[str, Mapping[str, float]] = {
    "resnet20-cifar10": {"dense": 92.1, "0.3": 91.24, "0.5": 87.85, "0.7": 53.53, "0.9": 11.11},
    "resnet56-cifar10": {"dense": 92.86, "0.3": 92.75, "0.5": 92.29, "0.7": 86.6, "0.9": 18.78},
    "vgg16bn-w025-cifar10": {"dense": 92.22, "4": 90.93, "9": 91.86, "13": 92.23},
}


def masks(found: Results) -> str:
    """Top-1 with single weights gone, and what the ancestor had."""
    rows = []
    for network in ("resnet20-cifar10", "resnet56-cifar10"):
        for amount in ("dense", "0.3", "0.5", "0.7", "0.9"):
            ways = ["magnitude", "gradient"] if amount != "dense" else ["", ""]
            keys = [f"{network}/{way}/{amount}".replace("//", "/") for way in ways]
            cells = [found["rows"].get(key, {}) for key in keys]
            told = [f"{cell['top1']:.2f}" if cell else "not measured" for cell in cells]
            told.insert(1, "" if amount == "dense" else measured(cells[0], "healed"))
            size = f"{cells[0]['file_bytes'] / 1e3:,.0f}" if cells[0] else "not measured"
            rows.append([f"{network}, {amount}", *told, f"{ANCESTORS[network][amount]:.2f}", size])
    head = [
        "network, share of weights that is zero",
        "by magnitude",
        "and healed",
        "by gradient",
        "pytorch-weight-prune (its weights)",
        "file, kB",
    ]
    return (
        grid(head, rows)
        + "\n\nTop-1 in % of 10,000 test images, no training; convolutions and linear layers ranked apart. Healed: "
        "with 512 training images without their labels (`finegrained.heal`), "
        + f"{healing_seconds(found, 'resnet')} s of CPU time."
    )


def measured(row: Results, name: str) -> str:
    """A top-1, if it is there."""
    return f"{row[name]:.2f}" if name in row else "not measured"


def healing_seconds(found: Results, network: str) -> str:
    """What healing took at least and at most."""
    times = [r["healing_cpu_s"] for key, r in found["rows"].items() if key.startswith(network) and "healing_cpu_s" in r]
    return f"{min(times):.0f} to {max(times):.0f}" if times else "?"


def shared_values(found: Results) -> str:
    """Top-1 with few values per layer, and what the ancestor had."""
    network, rows = "vgg16bn-w025-cifar10", []
    for k in ("dense", "4", "9", "13", "35"):
        row = found["rows"].get(f"{network}/{k}")
        other = ANCESTORS[network].get(k)
        cells = ["not measured"] * 6
        if row is not None:
            ways = [measured(row, way) for way in ("top1", "healed", "trained", "healed_trained")]
            ways = [told if k != "dense" or number in (0, 2) else "" for number, told in enumerate(ways)]
            cells = [*ways, f"{row['rate']:.1f}", f"{row['top1_bytes'] / 1e3:,.0f}"]
        rows.append([k, *cells, "-" if other is None else f"{other:.2f}"])
    head = [
        "values per layer",
        "untrained",
        "healed",
        "trained",
        "healed and trained",
        "rate by the formula",
        "file, kB",
        "Deep-Compression (VGG19-BN)",
    ]
    settings, epochs = found["settings"], found["rows"].get(f"{network}/dense", {}).get("epochs", 1)
    return grid(head, rows) + (
        f"\n\n{network}: top-1 in % of {settings['test_images']:,} test images. Healed: with 512 training images "
        f"without their labels, {healing_seconds(found, network)} s of CPU time. Trained: {epochs} epoch(s) of "
        f"{settings['images']:,} training images in bf16, the codebooks (dense: all weights), one recipe for all."
    )


def packing(found: Results) -> str:
    """Tensors that went there and back."""
    rows = list(found["rows"].values())
    kinds = dict.fromkeys(row["kind"] for row in rows)
    lines = []
    for kind in kinds:
        own = [row for row in rows if row["kind"] == kind]
        most = max(row["weights"] for row in own)
        same = sum(row["same"] for row in own)
        left = statistics.median(row["file_bytes"] / row["plain_bytes"] for row in own if row["weights"] >= 10_000)
        lines.append([kind, str(len(own)), str(same), f"{most:,}", f"{left:.1%}"])
    head = ["tensors", "count", "back to the bit", "largest", "median file, of plain (10,000 weights or more)"]
    return grid(head, lines) + f"\n\nWith one NaN: {found['facts']['nan_refused']} of {len(rows)} refused."
