"""README's tables of measured speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tables import Results, grid, quartiles


def latency(found: Results) -> str:
    """All parts that were measured."""
    parts = {"A": latency_macs, "B": latency_asked, "C": latency_cli, "E": latency_gpu}
    told = []
    for letter, render in parts.items():
        rows = {key: row for key, row in found["rows"].items() if key.startswith(f"{letter}/")}
        told += [render(rows)] if rows else []
    settings = found["settings"]
    asked = [row for row in found["rows"].values() if "asked" in row and "times_s" in row]
    most = max((row["times_s"]["dense"]["n"] for row in asked), default=settings["rounds"])
    longer = f" (fast models asked for a time: up to {most})" if most > settings["rounds"] else ""
    ranked = "magnitude" if any(not key.startswith("E/") for key in found["rows"]) else "Fisher scores of random images"
    return "\n\n".join(told) + (
        f"\n\nMedians of {settings['rounds']} interleaved rounds{longer}, images of {settings['image_size']} x "
        f"{settings['image_size']}, random weights, channels ranked by {ranked}. * quartiles more than 10 % apart."
        f"{devices(found)}"
    )


def devices(found: Results) -> str:
    """Which parts were measured where, if not all on one device."""
    parts: dict[str, list[str]] = {}
    for key, row in found["rows"].items():
        letters = parts.setdefault(row["environment"]["device"], [])
        letters += [key[0]] if key[0] not in letters else []
    if len(parts) == 1:
        return ""
    return " " + "; ".join(f"{' and '.join(sorted(letters))}: {device}" for device, letters in parts.items()) + "."


def latency_macs(rows: Mapping[str, Results]) -> str:
    """Speed-up over the ratio of MACs, ours beside theirs."""
    cells = []
    for key, row in rows.items():
        _, name, batch = key.split("/")
        noisy = "*" * bool(row["times_s"]["noisy"])
        dense = f"{1000 * row['times_s']['dense']['median']:.1f}{noisy}"
        cells.append([f"{name}, batch {batch}", dense, *map(pace_cell, row["rows"].values())])
    head = ["network", "dense, ms", "surgeon", "Torch-Pruning", "Torch-Pruning, steps of 16"]
    kept = [row["score_kept"] for row in rows.values()]
    return grid(head, cells) + (
        "\n\nMeasured speed-up divided by the ratio of the MACs; in brackets the speed-up, its 95 % interval, and the "
        "MACs that are left. surgeon's widths are chosen for time, the other's are uniform; what either costs in "
        "accuracy is not measured here: of the score of all channels surgeon keeps "
        f"{min(kept):.0%} to {max(kept):.0%}."
    )


def pace_cell(found: Results) -> str:
    """One model's speed."""
    speed = found["speed_up"]
    interval = f"{speed['low']:.2f} to {speed['high']:.2f}"
    return f"{found['efficiency']:.2f} ({speed['ratio']:.2f}x, {interval}; {1 / found['macs_ratio']:.1%})"


def latency_asked(rows: Mapping[str, Results]) -> str:
    """The time that was asked for, and what came."""
    cells = []
    for key, row in rows.items():
        _, name, _ = key.split("/")
        asked = f"{row['asked']:.0%}"
        if row.get("status") == "refused":
            cells.append([name, asked, "said to be out of reach", "-", "-"])
            continue
        kept = row["score_kept"]
        alone = f"{kept['macs alone']:.1%}" if "macs alone" in kept else "-"
        told = f"{row['measured']:.1%}{'*' * bool(row['times_s']['noisy'])}"
        met = row["targets"]["measured off what was asked"]["met"]
        cells.append([name, asked, told if met else f"**{told}**", f"{kept['surgeon']:.1%}", alone])
    head = ["network, batch 1", "time asked for", "measured anew", "score kept", "score kept by MACs alone, as fast"]
    missed = any("**" in cell[2] for cell in cells)
    return grid(head, cells) + (
        "\n\nScore kept: the share of the score of all channels that the kept ones have."
        + " In bold: more than 5 % off." * missed
    )


def latency_cli(rows: Mapping[str, Results]) -> str:
    """One model, time and size together."""
    row = next(iter(rows.values()))
    if "cpu_ratio" not in row:
        return f"`{row['cli']}`: {row['status']}."
    size = row["bytes"]
    return (
        f"`{row['cli']}`: {quartiles(row['cpu_ratio'])} times less CPU time at batch 8, "
        f"{size['dense'] / size['small']:.2f} times smaller file ({size['small'] / 1e6:.0f} of "
        f"{size['dense'] / 1e6:.0f} MB)."
    )


def latency_gpu(rows: Mapping[str, Results]) -> str:
    """Cuts by memory against cuts by MACs."""
    ways = ("fisher-memory", "fisher, by time", "fisher-mac", "fisher-mac, inner layers")
    cells = [gpu_cells(key, row, ways) for key, row in rows.items()]
    head = ["GPU, half the MACs", "dense, ms", "by memory", "by time", "by MACs", "by MACs, inner layers"]
    head += ["memory / MACs", "time / MACs", "time / inner layers"]
    return grid(head, cells) + (
        "\n\nSpeed-ups over the dense network and, in brackets, the share of the Fisher score that the cut keeps; "
        "then ratios of two speed-ups at equal MACs. By time: what may be spent in MACs is planned with times measured "
        'at this batch in float32 (`round_to="auto"`).'
    )


def gpu_cells(key: str, row: Results, ways: Sequence[str]) -> list[str]:
    """One network, batch and number type."""
    _, name, batch, dtype = key.split("/")
    found, kept = row["rows"], row.get("score_kept", {})
    paces = [f"{found[way]['speed_up']['ratio']:.2f}x" if way in found else "-" for way in ways]
    paces = [f"{pace} ({kept[way]:.0%})" if way in kept else pace for way, pace in zip(ways, paces, strict=True)]
    memory, time, macs, inner = (found[way]["efficiency"] if way in found else None for way in ways)
    pairs = ((memory, macs), (time, macs), (time, inner))
    ratios = [f"{ours / other:.2f}" if ours and other else "-" for ours, other in pairs]
    noisy = "*" * bool(row["times_s"]["noisy"])
    dense = f"{1000 * row['times_s']['dense']['median']:.1f}{noisy}"
    return [f"{name}, batch {batch}, {dtype}", dense, *paces, *ratios]
