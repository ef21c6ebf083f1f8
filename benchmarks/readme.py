"""Write README's tables from the files in ``benchmarks/results``, so that no number in it is typed by hand.

A table stands between ``<!-- results:NAME -->`` and ``<!-- /results -->``; NAME is one of ``TABLES``, with "-cuda"
behind it for the results of that device.

    python benchmarks/readme.py            # write the tables
    python benchmarks/readme.py --check    # exit 1 when a table is not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, say, write_text
from coverage_table import coverage
from steps_table import dogs_cats, gradual
from tables import Results, grid, level_cell, quartiles, ranged
from training_table import training

MARKED = re.compile(r"(<!-- results:(?P<name>\S+) -->\n).*?(<!-- /results -->)", re.DOTALL)


class UnknownTableError(Exception):
    """A marker names no table, or a table whose results were never measured."""


def main() -> int:
    """Write or check; 2 where a marker can't be followed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table is stale")
    parser.add_argument("--readme", type=Path, help="the file with the markers; by default all that have some")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder with the measured files")
    options = parser.parse_args()
    pages = [options.readme] if options.readme else [ROOT / "README.md", ROOT / "docs" / "ancestors.md"]
    return max(page(path, options.results, check=options.check) for path in pages)


def page(path: Path, results: Path, *, check: bool) -> int:
    """One page, and the exit code of that."""
    try:
        old = path.read_text(encoding="utf-8")
        new = filled(old, results)
    except (OSError, UnknownTableError) as reason:
        say(f"error: {reason}")
        return 2
    if check:
        stale = [name for name, one, other in compared(old, new) if one != other]
        say(f"stale: {', '.join(stale)}; run python benchmarks/readme.py" if stale else "all tables are up to date")
        return 1 if stale else 0
    write_text(path, new)
    return 0


def filled(text: str, results: Path) -> str:
    """``text`` with every marked table made anew. Raises UnknownTableError."""

    def table(match: re.Match[str]) -> str:
        return match[1] + "\n" + rendered(match["name"], results).strip() + "\n\n" + match[3]

    opened, whole = text.count("<!-- results:"), len(MARKED.findall(text))
    if opened != whole:
        raise UnknownTableError(f"{opened} tables are opened, {whole} are closed with <!-- /results -->")
    return MARKED.sub(table, text)


def compared(old: str, new: str) -> Iterable[tuple[str, str, str]]:
    """Each table's name, and the table as it is and as it should be."""
    for one, other in zip(MARKED.finditer(old), MARKED.finditer(new), strict=True):
        yield one["name"], one[0], other[0]


def rendered(name: str, results: Path) -> str:
    """One table as Markdown, from its file. Raises UnknownTableError."""
    base, kind = (name.removesuffix("-cuda"), "-cuda") if name.endswith("-cuda") else (name, "")
    if base not in TABLES:
        raise UnknownTableError(f"no table {base!r}; there are {', '.join(TABLES)}")
    file, render = TABLES[base]
    path = results / f"{file}{kind}.json"
    if not path.exists():
        raise UnknownTableError(f"table {name!r} needs {path.name}: run python benchmarks/{file}.py")
    found = json.loads(path.read_text(encoding="utf-8"))
    return render(found) + "\n\n" + source(found.get("environment", found))


def source(environment: Results) -> str:
    """Where and with what the numbers were measured, and how to measure them again."""
    versions = environment["versions"]
    count = environment.get("threads")  # the oracle says it with the device
    threads = "" if count is None else f", {count} thread{'s' * (count != 1)}"
    return (
        f"*Measured on {environment['device']}{threads}, torch {versions['torch']}, "
        f"{environment['date'][:10]}: `{environment['command']}`.*"
    )


# ---------------------------------------------------------------- the tables


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
        "Torch-Pruning: the better of its criteria, ranked anew at each 0.45 % of the channels, Taylor on "
        f"{settings['rival_images']} labelled images. surgeon's check: {sum(checks)} of {len(checks)} cuts passed, any "
        f"other is unproven. Rows of {sources} version{'s' * (sources != 1)} of the sources.{''.join(notes)}"
    )


def rival_cell(grouped: Mapping[tuple[Any, ...], Sequence[Results]], network: str, speedup: float) -> str:
    """The other tool's best criterion at the same MACs."""
    found = {}
    for (tool, *case, criterion, _), group in grouped.items():
        values = [row["top1"]["bn"] for row in group if "bn" in row["top1"]]
        if tool == "torch-pruning" and case == [network, speedup] and values:
            words = "labelled" if group[0]["labelled"] else "unlabelled"
            found[statistics.fmean(values)] = f"{ranged(values)}, {criterion}, {words}"
    return found[max(found)] if found else "-"


def taylor(found: Results) -> str:
    """Rank correlations, a row per criterion."""
    seen, unseen = found["facts"]["correlation"]["seen"], found["facts"]["correlation"]["unseen"]
    rows = [[name, *taylor_cells(seen[name]), *taylor_cells(unseen[name])] for name in seen if name != "loss_change"]
    head = ["criterion", "ranking images: all [95 %]", "within groups (sd)", "test images: all [95 %]"]
    settings, refused = found["settings"], sum("refused" in row for row in found["rows"].values())
    entry = next(entry for name, entry in seen.items() if name != "loss_change")
    return grid([*head, "within groups (sd)"], rows) + (
        f"\n\nSpearman correlation with the true change of loss when one channel of ResNet-20 (CIFAR-10) is removed: "
        f"{entry['channels']} of {found['facts']['channels']} channels ({refused} refused), ranked on "
        f"{settings['images']} training images, measured on these and on {settings['test_images']} test images."
    )


def taylor_cells(entry: Results) -> list[str]:
    """One criterion on one set of images."""
    low, high = entry["all_95"]
    whole = f"{entry['all']:.2f} [{low:.2f}, {high:.2f}]"
    if entry["groups"] is None:
        return [whole, "-"]
    return [whole, f"{entry['groups']:.2f} ({entry['groups_sd'] or 0:.2f})"]


def surgery(found: Results) -> str:
    """Both tables."""
    return surgery_vgg16(found) + "\n\n" + surgery_resnet50(found)


def surgery_vgg16(found: Results) -> str:
    """One pass against one at a time."""
    row = found["rows"]["vgg16"]
    names = {
        "one_pass": "surgeon, one pass, copy included",
        "one_pass_from_json": "the same, plan read from JSON: traced again",
        "one_at_a_time": "one at a time",
        "one_at_a_time_init": "one at a time, each new layer initialised first",
    }
    rows = [[names[name], quartiles(times["cpu_s"], digits=3)] for name, times in row["times"].items()]
    return grid([f"removing {row['filters']} filters of VGG16", "CPU time, s"], rows) + (
        f"\n\nRatio {quartiles(row['cpu_ratio'], digits=1)}; the same tensors to the bit. {rounds(row['cpu_ratio'])}"
    )


def surgery_resnet50(found: Results) -> str:
    """The whole way against a forward and the other tool."""
    row = found["rows"]["resnet50"]
    names = {"forward": "one forward", "surgeon": "surgeon: trace to rewrite", "torch_pruning": row["peer"]}
    lines = [[names[name], quartiles(times["wall_s"], 1000, 0)] for name, times in row["times"].items()]
    lines += [[f"surgeon: {name} alone", quartiles(times, 1000, 0)] for name, times in row["stages_s"].items()]
    lines.append(["surgeon: verification, on top", f"{1000 * row['verification']['wall_s']:.0f}"])
    head = [f"ResNet-50, {100 * row['ratio']:g} % of the channels, one image of 224 x 224", "wall time, ms"]
    return grid(head, lines) + (
        f"\n\nsurgeon / {row['peer']}: {quartiles(row['peer_ratio'])}. {rounds(row['peer_ratio'])}"
    )


def rounds(ratio: Results) -> str:
    """How the medians came about."""
    return f"Median (quartiles) of {ratio['n']} interleaved rounds."


def oracle(found: Results) -> str:
    """How many random networks came out how."""
    statuses = found["statuses"]
    names = {"exact": "exact", "refused": "refused, with the reason", "wrong": "wrong", "crash": "crashed"}
    rows = [[words, str(statuses.get(name, 0))] for name, words in names.items()]
    return grid(["random networks, random plans", "count"], rows) + (
        f"\n\nExact: within {found['tolerance']}, of the dense network with the removed channels silenced; "
        f"the largest error is {found['worst_error']:.0e}. Of the exact ones surgeon's own check left "
        f"{len(found['unproven'])} unproven."
    )


def families(found: Results) -> str:
    """One row per torchvision network: parameters left and the check's error under both plans."""
    plans = list(found["settings"]["plans"])
    names = list(dict.fromkeys(key.partition("/")[0] for key in found["rows"]))
    rows = []
    for name in names:
        cells = [found["rows"].get(f"{name}/{plan}") for plan in plans]
        rows.append([name, *(family_cell(cell) for cell in cells)])
    head = ["network", *(f"{plan}: parameters left, error" for plan in plans)]
    return grid(head, rows)


def family_cell(row: Results | None) -> str:
    """What one plan came to."""
    if row is None:
        return "not measured"
    return f"{row['params_left']:.1%}, {row['error']:.0e}" + (
        "" if row["status"] == "passed" else f" ({row['status']})"
    )


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


def backends(found: Results) -> str:
    """Dense and cut under each back end and batch size."""
    rows = []
    for name, row in found["rows"].items():
        dense, cut = row["latencies"]
        ratio = row["speed_up"]
        told = f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        times = [f"{1e3 * side['median']:.1f}{' *' if side['noisy'] else ''}" for side in (dense, cut)]
        rows.append([name.replace("/", ", batch "), *times, told, f"{row['difference']:.0e}"])
    head = ["back end", "dense, ms", "cut, ms", "times faster [95 %]", "from eager"]
    made = found["settings"]
    return grid(head, rows) + (
        f"\n\n{made['model']} at {made['max_macs']:.0%} of its MACs in steps of {made['round_to']} channels, batch "
        f"norms folded on both sides. Medians of {made['rounds']} interleaved rounds; * quartiles more than 10 % apart."
    )


def example(found: Results) -> str:
    """What the command printed from the table of layers on, as an indented block."""
    lines = found["lines"]
    start = next((k for k, line in enumerate(lines) if ": out-channels" in line), 0)
    return "\n".join(f"    {line}".rstrip() for line in lines[start:])


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
    )


def latency_macs(rows: Mapping[str, Results]) -> str:
    """Speed-up over the ratio of MACs, ours beside theirs."""
    cells = []
    for key, row in rows.items():
        _, name, batch = key.split("/")
        noisy = "*" * bool(row["times_s"]["noisy"])
        figures = [f"{found['efficiency']:.2f} ({found['speed_up']['ratio']:.2f}x)" for found in row["rows"].values()]
        left = f"{row['macs']['surgeon'] / row['macs']['dense']:.1%}"
        cells.append(
            [f"{name}, batch {batch}", f"{1000 * row['times_s']['dense']['median']:.1f}{noisy}", left, *figures]
        )
    head = ["network", "dense, ms", "MACs left", "surgeon", "Torch-Pruning", "Torch-Pruning, steps of 16"]
    return grid(head, cells) + "\n\nMeasured speed-up divided by the ratio of the MACs (and the speed-up)."


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
        noisy = "*" * bool(row["times_s"]["noisy"])
        cells.append([name, asked, f"{row['measured']:.1%}{noisy}", f"{kept['surgeon']:.1%}", alone])
    head = ["network, batch 1", "time asked for", "measured anew", "score kept", "score kept by MACs alone, as fast"]
    return grid(head, cells)


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
    cells = []
    ways = ("fisher-memory", "fisher-mac", "fisher-mac, inner layers")
    for key, row in rows.items():
        _, name, batch, dtype = key.split("/")
        found = row["rows"]
        paces = [f"{found[way]['speed_up']['ratio']:.2f}x" if way in found else "-" for way in ways]
        ours = found[ways[0]]["efficiency"]
        ratios = [f"{ours / found[way]['efficiency']:.2f}" if way in found else "-" for way in ways[1:]]
        noisy = "*" * bool(row["times_s"]["noisy"])
        dense = f"{1000 * row['times_s']['dense']['median']:.1f}{noisy}"
        cells.append([f"{name}, batch {batch}, {dtype}", dense, *paces, *ratios])
    head = ["GPU, half the MACs", "dense, ms", "by memory", "by MACs", "by MACs, inner layers", "memory / MACs"]
    head.append("memory / inner layers")
    return grid(head, cells) + "\n\nSpeed-ups over the dense network, then the ratio of two of them at equal MACs."


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "accuracy": ("accuracy", accuracy),
    "training": ("accuracy_training", training),
    "taylor": ("taylor", taylor),
    "surgery": ("surgery", surgery),
    "surgery-vgg16": ("surgery", surgery_vgg16),
    "surgery-resnet50": ("surgery", surgery_resnet50),
    "dogs-cats": ("dogs_cats", dogs_cats),
    "gradual": ("gradual", gradual),
    "oracle": ("oracle", oracle),
    "backends": ("backends", backends),
    "example": ("example", example),
    "masks": ("finegrained", masks),
    "shared-values": ("finegrained", shared_values),
    "packing": ("packing", packing),
    "families": ("families", families),
    "coverage-torchvision": ("coverage_torchvision", coverage),
    "coverage-timm": ("coverage_timm", coverage),
    "coverage-huggingface": ("coverage_huggingface", coverage),
    "oracle-extended": ("oracle_extended", oracle),
    "latency": ("latency", latency),
}

if __name__ == "__main__":
    sys.exit(main())
