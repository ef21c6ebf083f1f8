"""README's own table: each promise with the figures that answer it, taken from all the results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tables import Results, grid, mean_top1, outcomes

_ALIKE = 1.02  # times fewer MACs than ours that go for the same
_SETS = {"torchvision": "of torchvision's", "timm": "timm families", "huggingface": "transformers"}
_CUTS = (("resnet56-cifar10", 2.0, "ResNet-56"), ("resnet20-cifar10", 1.7, "ResNet-20"))
_TRAINED = (("resnet56-cifar10", 2.1, "ResNet-56"), ("resnet20-cifar10", 1.725, "ResNet-20"))


def summary(folder: Path) -> str:
    """One row per promise; raises FileNotFoundError where results were never measured."""
    rows = [
        ["never wrong", "; ".join(never_wrong(folder))],
        ["any model", "; ".join(any_model(folder))],
        ["really faster", "; ".join(really_faster(folder))],
        ["accurate, no training", "; ".join(healed(folder))],
        ["accurate, trained", "; ".join(trained(folder))],
    ]
    return grid(["promise", "measured"], rows).replace("---:", "---")


def read(folder: Path, name: str) -> Results:
    """One file of results."""
    found: Results = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def never_wrong(folder: Path) -> Iterator[str]:
    """Random networks by what came of them."""
    found = outcomes(read(folder, "oracle_extended"))
    anew = f"{found['noticed']} cut anew because the check refused a first cut, " if found["noticed"] else ""
    yield (
        f"{sum(found.values()):,} random networks, judged by an oracle of their own: {found.get('exact', 0):,} exact, "
        f"{found.get('refused', 0)} refused with the reason, {anew}{found['wrong']} wrong, "
        f"{found.get('crash', 0)} crashed"
    )


def any_model(folder: Path) -> Iterator[str]:
    """Models of three libraries."""
    for name, words in _SETS.items():
        rows = read(folder, f"coverage_{name}")["rows"].values()
        ours = [row["ours"]["status"] for row in rows if "ours" in row]
        theirs = [row["theirs"]["status"] for row in rows if "theirs" in row]
        beside = f" (Torch-Pruning: {theirs.count('runs')} of {len(theirs)} run)" if theirs else ""
        yield f"{ours.count('right')} of {len(ours)} {words} right{beside}"


def really_faster(folder: Path) -> Iterator[str]:
    """Half the MACs at batch 8, beside the other tool's better row at the same MACs."""
    cells = []
    for key, row in read(folder, "latency")["rows"].items():
        if key.startswith("A/") and key.endswith("/8"):
            ours, *theirs = row["rows"].values()
            best = max(theirs, key=lambda found: found["efficiency"])
            left = (
                "" if best["macs_ratio"] / ours["macs_ratio"] < _ALIKE else f" at {1 / best['macs_ratio']:.0%} of them"
            )
            name = key.split("/")[1]
            cells.append(f"{name} {ours['speed_up']['ratio']:.2f}x ({best['speed_up']['ratio']:.2f}x{left})")
    yield f"half the MACs, CPU, batches of 8 (Torch-Pruning's better row): {', '.join(cells)}"
    yield from faster_on_a_gpu(folder)


def faster_on_a_gpu(folder: Path) -> Iterator[str]:
    """Half the MACs at batch 256 in float32, planned by the times of the GPU, beside a plan by MACs."""
    found = read(folder, "latency-cuda")
    cells = []
    for key, row in found["rows"].items():
        if key.startswith("E/") and key.endswith("/256/float32") and "fisher, by time" in row["rows"]:
            timed, counted = (row["rows"][way]["speed_up"]["ratio"] for way in ("fisher, by time", "fisher-mac"))
            cells.append(f"{key.split('/')[1]} {timed:.2f}x ({counted:.2f}x)")
    yield f"half the MACs, H100, batches of 256 (planned by MACs alone): {', '.join(cells)}"


def healed(folder: Path) -> Iterator[str]:
    """Top-1 after healing on 512 images."""
    rows = list(read(folder, "accuracy")["rows"].values())
    cells = []
    for network, speedup, name in _CUTS:
        ours, theirs = both(rows, network, speedup, "lstsq", "bn")
        dense = mean_top1(rows, (network, 1.0, "dense", "-"), "none")
        cells.append(f"{name} at {speedup:g} times fewer MACs {ours:.1f} % of {dense:.1f} % ({theirs:.1f} %)")
    yield f"512 images, healed (Torch-Pruning, batch norms measured anew): {', '.join(cells)}"


def trained(folder: Path) -> Iterator[str]:
    """Top-1 after the same training."""
    rows = list(read(folder, "accuracy_training-cuda")["rows"].values())
    cells = []
    for network, speedup, name in _TRAINED:
        ours, theirs = both(rows, network, speedup, "tuned", "tuned")
        cells.append(f"{name} at {speedup:g} times fewer MACs {ours:.2f} % ({theirs:.2f} %)")
    yield f"16 epochs (Torch-Pruning's cut, trained alike): {', '.join(cells)}"
    longer = list(read(folder, "accuracy_training_long-cuda")["rows"].values())
    epochs = longer[0]["training"]["tuned"]["epochs"]
    cells = [
        f"{speedup:g} times {mean_top1(longer, ('resnet56-cifar10', speedup, 'surgeon', 'auto'), 'tuned'):.2f} %"
        for speedup in sorted({row["speedup"] for row in longer})
    ]
    seeds = len({row["seed"] for row in longer})
    yield f"{epochs} epochs, ResNet-56, {seeds} seed{'s' * (seeds > 1)}: {', '.join(cells)}"


def both(rows: Sequence[Results], network: str, speedup: float, level: str, their_level: str) -> tuple[float, float]:
    """Ours and the other tool's, each by its best criterion and at its own level."""
    return (
        mean_top1(rows, (network, speedup, "surgeon", "auto"), level),
        mean_top1(rows, (network, speedup, "torch-pruning", "taylor"), their_level),
    )
