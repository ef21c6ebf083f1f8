"""README's table of accuracies after training: both tools and the dense network by one recipe."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tables import Results, grid, level_cell, ranged


def training(found: Results) -> str:
    """Top-1 after the same training: a row per network and budget, the dense network trained alike beside it."""
    grouped = by_case(found)
    rows = []
    for network, speedup in dict.fromkeys((row["network"], row["speedup"]) for row in found["rows"].values()):
        if speedup == 1:
            continue
        alike = grouped.get((network, 1.0, "dense"), [])
        ours, theirs = (grouped.get((network, speedup, tool), []) for tool in ("surgeon", "torch-pruning"))
        cells = [level_cell(alike[:1], "none"), level_cell(alike, "tuned")]
        cells += [level_cell(ours, "lstsq"), level_cell(ours, "tuned"), level_cell(theirs, "bn")]
        rows.append([f"{network}, {speedup:g}x", *cells, level_cell(theirs, "tuned"), difference(ours, theirs)])
    head = ["network, times fewer MACs", "dense", "dense, trained alike", "surgeon", "surgeon, trained"]
    return grid([*head, "Torch-Pruning", "Torch-Pruning, trained", "difference"], sorted(rows)) + training_words(found)


def by_case(found: Results) -> dict[tuple[Any, ...], list[Results]]:
    """Rows by network, budget and tool, each tool with the criterion that did best on the average of its seeds."""
    grouped: dict[tuple[Any, ...], dict[str, list[Results]]] = {}
    for row in found["rows"].values():
        case = grouped.setdefault((row["network"], row["speedup"], row["tool"]), {})
        case.setdefault(row["criterion"], []).append(row)

    def height(group: Sequence[Results]) -> float:
        found = [row["top1"]["tuned"] for row in group if "tuned" in row["top1"]]
        return statistics.fmean(found) if found else 0.0

    return {case: max(groups.values(), key=height) for case, groups in grouped.items()}


def difference(ours: Sequence[Results], theirs: Sequence[Results]) -> str:
    """surgeon's points above the other tool, over the seeds that both have."""
    mine, other = ({row["seed"]: row["top1"]["tuned"] for row in g if "tuned" in row["top1"]} for g in (ours, theirs))
    seeds = sorted(mine.keys() & other.keys())
    return ranged([mine[seed] - other[seed] for seed in seeds]) if seeds else "not measured"


def training_words(found: Results) -> str:
    """How all were trained, and on what the columns stand."""
    rows = [row for row in found["rows"].values() if "tuned" in row.get("training", {})]
    recipes = {recipe_words(row["training"]["tuned"]) for row in rows}
    criteria = sorted({f"{row['tool']} by {row['criterion']}" for row in rows if row["tool"] != "dense"})
    hours = sum(row["training"]["tuned"]["seconds"] for row in rows) / 3600
    return (
        "\n\nTop-1 in % on the test images: mean (least to greatest) over the seeds measured. surgeon's cuts are "
        "healed (lstsq), the other tool's batch norms are measured anew, both before training and on the same "
        f"{found['settings']['images']} images. Criteria: {', '.join(criteria) or 'none yet'}. All are trained alike: "
        f"{'; or '.join(sorted(recipes)) or 'not yet'}; the last weights count. {len(rows)} trainings took "
        f"{hours:.1f} hours on a machine that had other work as well."
    )


def recipe_words(used: Results) -> str:
    """One recipe in a line."""
    taught = f"distilled from the dense network (weight {used['teacher_weight']:g}, T {used['temperature']:g})"
    rate = f"{used['lr']:g} ({used['schedule']}, {used['warmup_epochs']:g} of warm-up)"
    return (
        f"{used['epochs']} epochs of {used['images']:,} images, {used['optimizer']} at {rate}, "
        f"batches of {used['batch']}, weight decay {used['weight_decay']:g}, "
        f"{taught if used['teacher_weight'] else 'no teacher'}, precision {used['mixed_precision']}"
    )
