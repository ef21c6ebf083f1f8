"""README's table of accuracy after a cut and after healing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tables import Results, grid, level_cell, mean_top1, ranged


def accuracy(found: Results) -> str:
    """Top-1 after the cut and after healing: a row per network, budget and criterion, the other tool beside it."""
    grouped: dict[tuple[Any, ...], list[Results]] = {}
    for row in found["rows"].values():
        key = tuple(row[name] for name in ("tool", "network", "speedup", "criterion", "steps"))
        grouped.setdefault(key, []).append(row)
    measured = {name for row in found["rows"].values() for name in row["top1"]}
    trained = [name for name in ("tuned", "scratch") if name in measured]
    levels = [name for name in ("bn", "bias", "gram", "lstsq") if name in measured]
    rows = []
    for (tool, network, speedup, criterion, steps), group in sorted(grouped.items()):
        if tool == "surgeon" or (tool == "dense" and trained):  # any training may raise the dense one as well
            words = criterion + f", {steps} steps" * (steps > 1) + ", labelled" * group[0].get("labelled", False)
            dense = level_cell(grouped.get(("dense", network, 1.0, "-", 1), [])[:1], "none")  # no seed changes it
            cells = [level_cell(group, level) for level in ("none", *levels, *trained)]
            rows.append([f"{network}, {speedup:g}x", words, dense, *cells, rival_cell(grouped, network, speedup)])
    head = ["network, times fewer MACs", "ranked by", "dense", "cut", *levels, *trained, "Torch-Pruning + bn"]
    return grid(head, rows) + accuracy_words(found)


def accuracy_words(found: Results) -> str:
    """What the columns are."""
    settings, rows = found["settings"], list(found["rows"].values())
    checks = [row["check"]["status"] == "passed" for row in rows if row.get("check")]
    notes = sorted({f" {row['network']}: {row['note']}." for row in rows if "note" in row})
    sources = len({row["source"] for row in rows})
    return (
        "\n\nTop-1 in %: mean (least to greatest) over the seeds, or the figure of one seed. Each seed draws "
        f"{settings['images']} training images; up to {settings['test_images']:,} test images judge. cut: as it is; "
        "bn: batch norms measured anew; bias: what a layer lost goes into its bias; gram: removed channels become "
        "combinations of kept ones; lstsq: layers fitted anew to the dense ones; all without labels or training. "
        f"{rival_words(rows, settings['rival_images'])} surgeon's check passed on {sum(checks)} of {len(checks)} cuts, "
        f"any other is unproven. Rows of {sources} version{'s' * (sources != 1)} of the sources.{''.join(notes)}"
    )


def rival_words(rows: Sequence[Results], images: int) -> str:
    """How the other tool's cuts were made, and where it could not."""
    theirs = [row for row in rows if row["tool"] == "torch-pruning"]
    used = " or ".join(sorted({row["criterion"] for row in theirs if row["top1"]}))
    words = f"Torch-Pruning: by {used}, ranked anew at each 0.45 % of the channels, on {images} labelled images"
    for name in sorted({row["criterion"] for row in theirs}):
        failed = dict.fromkeys(row["network"] for row in theirs if row["criterion"] == name and "cut" in row["failed"])
        words += f"; {name} fails on {' and '.join(failed)}" * bool(failed)
    whole = dict.fromkeys(f"{row['network']} at {row['speedup']:g}x" for row in theirs if row.get("coupled_whole"))
    words += f"; {', '.join(whole)}: all layers that share channels are left whole, since it fails on them" * bool(
        whole
    )
    return words + "."


def rival_cell(grouped: Mapping[tuple[Any, ...], Sequence[Results]], network: str, speedup: float) -> str:
    """The other tool's best criterion at the same MACs."""
    found = {}
    for (tool, *case, criterion, _), group in grouped.items():
        values = [row["top1"]["bn"] for row in group if "bn" in row["top1"]]
        if tool == "torch-pruning" and case == [network, speedup] and values:
            words = "labelled" if group[0]["labelled"] else "unlabelled"
            found[statistics.fmean(values)] = f"{ranged(values)}, {criterion}, {words}"
    return found[max(found)] if found else "-"


#: What docs/criteria.md compares: cuts that every criterion has made.
COMPARED = (("resnet20-cifar10", 1.7), ("resnet56-cifar10", 2.0), ("resnet56-cifar10", 3.0))


def criteria(found: Results) -> str:
    """Top-1 by what ranked: as cut, and healed."""
    lines, measured = [], list(found["rows"].values())
    for network, speedup in COMPARED:
        dense = mean_top1(measured, (network, 1.0, "dense", "-"), "none")
        title = f"{network}, {speedup:g}x (dense {dense:.2f})"
        for criterion in ("random", "taylor", "obs-mac", "auto"):
            case = (network, speedup, "surgeon", criterion)
            means = [mean_top1(measured, case, level) for level in ("none", "bn", "lstsq")]
            lines.append([title, f"`{criterion}`", *(f"{mean:.2f}" for mean in means)])
            title = ""
    head = ["network, times fewer MACs", "ranked by", "cut", '`heal="bn"`', '`heal="lstsq"`']
    return grid(head, lines) + "\n\nTop-1 in %, the mean over the seeds."


def healing_cost(found: Results) -> str:
    """Seconds and memory of ``lstsq``."""
    rows = [[name, f"{row['seconds']:.0f}", f"{row['beyond_mb']:,}"] for name, row in found["rows"].items()]
    head = ["network, half its MACs cut", "seconds", "MB beyond the two models and the images"]
    return grid(head, rows) + f"\n\n`lstsq` on {found['settings']['images']} images."
