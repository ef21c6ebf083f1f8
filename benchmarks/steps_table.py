"""Tables of what was cut in steps: photographs of dogs and cats, gradual against instant."""

from __future__ import annotations

from tables import Results, grid, quartiles, ranged


def dogs_cats(found: Results) -> str:
    """Every step of both networks, and the commands."""
    return "\n\n".join(dogs_cats_way(name, row) for name, row in found["rows"].items()) + (
        "\n\nTest photographs that nothing else has seen; CPU time of one forward of 8 photographs, median (quartiles) "
        "of interleaved rounds; files hold weights and plan."
    )


def dogs_cats_way(name: str, row: Results) -> str:
    """One network from the dense one to the last step, and how it was made."""
    cells = []
    for step in row["steps"]:
        timed, speed = step["cpu_s"], step["speed_up"]
        told = "-" if speed is None else f"{speed['ratio']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})"
        cells.append(
            [
                "dense" if not step["number"] else f"step {step['number']}",
                f"{step['filters']:,}",
                f"{step['macs'] / 1e6:,.1f}",
                "-" if step["cut_val"] is None or not step["number"] else f"{100 * step['cut_val']:.1f}",
                f"{100 * step['test']:.1f}",
                quartiles({"n": 2, "median": timed["median"], "q1": timed["low"], "q3": timed["high"]}, 1000, 1),
                told,
                f"{step['file_bytes'] / 1e6:.2f}",
            ]
        )
    head = ["filters", "million MACs", "val. % as cut", "test %", "CPU ms", "times faster (95 %)", "file, MB"]
    commands = "; ".join(
        f"`{row[c]['cli']}` (" + ("stopped and resumed" if row[c]["resumed"] else f"{row[c]['cpu_s']:.0f} CPU s") + ")"
        for c in ("train", "prune")
    )
    return grid([name, *head], cells) + f"\n\n{commands}."


def gradual(found: Results) -> str:
    """Mean, least and greatest of the repeats."""
    parts = {
        "filters": "filters, to 30 % of the MACs",
        "0.9": "weights, 90 % masked",
        "0.95": "weights, 95 % masked",
    }
    others = {"filters": ("-", "-"), "0.9": ("86.4", "88.8"), "0.95": ("86.0", "85.8")}
    masked = ("equal-ratio", "one-shot", "", "healed equal-ratio", "healed one-shot")
    ways = {"filters": ("cubic", "one-shot", "dense", "", ""), "0.9": masked, "0.95": masked}
    rows = []
    for part, words in parts.items():
        cells, counts = [], set()
        for way in ways[part]:
            values = [row["top1"] for key, row in found["rows"].items() if key.startswith(f"{part}/{way}/")]
            counts.add(len(values))
            cells.append(ranged(values) if values else "-")
        rows.append([words, str(max(counts)), *cells, *others[part]])
    head = [
        "quarter-width VGG-16-BN", "repeats", "gradual", "at once", "whole network", "healed, gradual",
        "healed, at once", "S4 gradual", "S4 at once",
    ]  # fmt: skip
    made = found["settings"]
    return grid(head, rows) + (
        f"\n\nTop-1 in % of {made['test_images']:,} test images, mean (least to greatest); before any of it: 86.26. "
        f"Every run trains for {made['epochs']} epochs of {made['images']:,} images, the gradual ones in "
        f"{made['steps']} steps. Healed: what is left is first fitted to the whole network, with 512 of these images, "
        f"without labels, and its batch norms are settled. S4's figures are of its ResNet-56 and its weights."
    )
