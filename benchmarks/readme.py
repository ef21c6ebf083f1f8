"""Write README's tables from the files in ``benchmarks/results``, so that no number in it is typed by hand.

A table stands between ``<!-- results:NAME -->`` and ``<!-- /results -->``; NAME is "summary" or one of ``TABLES``, with
"-cuda" behind it for the results of that device.

    python benchmarks/readme.py            # write the tables
    python benchmarks/readme.py --check    # exit 1 when a table is not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from accuracy_table import accuracy, criteria, healing_cost
from common import RESULTS, ROOT, say, write_text
from coverage_table import coverage
from finegrained_table import masks, packing, shared_values
from latency_table import latency
from steps_table import dogs_cats, gradual
from summary_table import summary
from tables import Results, grid, outcomes, quartiles
from training_table import training

#: The files with markers.
PAGES = ("README.md", "docs/results.md", "docs/ancestors.md", "docs/healing.md", "docs/criteria.md")
SUMMARY = "summary"  # of all the results
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
    pages = [options.readme] if options.readme else [ROOT / page for page in PAGES]
    return max(written(path, options.results, check=options.check) for path in pages)


def written(path: Path, results: Path, *, check: bool) -> int:
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
    if name == SUMMARY:
        return summary(results)
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
    statuses = outcomes(found)
    names = {"exact": "exact", "refused": "refused, with the reason"}
    names["noticed"] = "cut anew: the check refused a first cut"
    names |= {"wrong": "wrong", "crash": "crashed"}
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
    """What the command printed from the table of layers on."""
    lines = found["lines"]
    start = next((k for k, line in enumerate(lines) if ": out-channels" in line), 0)
    return "\n".join(["```text", *(line.rstrip() for line in lines[start:]), "```"])


TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "accuracy": ("accuracy", accuracy),
    "criteria": ("accuracy", criteria),
    "healing-cost": ("healing_cost", healing_cost),
    "training": ("accuracy_training", training),
    "training-long": ("accuracy_training_long", training),
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
