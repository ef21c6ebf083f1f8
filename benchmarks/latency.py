"""Really faster? Cut models timed beside the dense ones and beside Torch-Pruning's, in the same interleaved rounds.

Rows, by their first letter; a run goes on where the last one stopped:

``A`` half the MACs of four networks (224 x 224, batch 1 and 8) with ``round_to="auto"``: measured speed-up over the
ratio of the MACs, beside Torch-Pruning's uniform ratio at the same MACs, as it is and in steps of 16. Targets: faster
than its better row by 5 %; at batch 8 at least 0.95 (vgg16_bn, resnet50) and 0.9 (the others).
``B`` ``max_latency`` of 75, 50 and 33 %: measured anew within 5 % of what was asked, or refused beforehand; and a plan
made from MACs alone that is as fast keeps no more of the score.
``C`` VGG16 through the command line, ``--max-latency`` and ``--max-params`` together: a third of the CPU time at batch
8 and a quarter of the file. It asks for 30 %: up to 5 % more counts as kept, and a later measurement is 5 % off again.
``E`` (``--device cuda``) half the MACs by Fisher scores per byte of activation, and by the time measured, against
scores per MAC, batch 1, 32 and 256.

Weights are random and channels ranked by magnitude (E: Fisher scores on random images): which ones go makes no
difference to the time. Where they go does, and scores of random weights say little about it: E has one network with
trained weights and real photographs as well, if they are there.

    python benchmarks/latency.py --threads 2              # A to C, about 20 minutes on two idle cores
    python benchmarks/latency.py --quick                  # mobilenet_v2 alone, small images, few rounds
    python benchmarks/latency.py --device cuda --only E
    python benchmarks/latency.py --device cuda --only A --batches 256 --networks resnet50 vgg16_bn
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import (
    MissingError,
    Table,
    arguments,
    environment,
    output_path,
    pick_device,
    run_main,
    say,
    version_of,
)
from latency_memory import GPU_BATCHES, GPU_DTYPES, GPU_NETWORKS, by_memory
from latency_rows import Row, images, kept_of, network, pace, target, times
from timing import Case, interleaved, paired_ratio
from torch import nn

import surgeon
from surgeon.deadline import Timing
from surgeon.measure import file_bytes, footprint, latency, rounds_for

NETWORKS = ("vgg16_bn", "resnet50", "mobilenet_v2", "efficientnet_b0")
BATCHES = (8, 1)
SHARES = (0.75, 0.5, 0.33)
#: Speed-up over MACs ratio that is aimed at, at batch 8.
EFFICIENCY = {"vgg16_bn": 0.95, "resnet50": 0.95, "mobilenet_v2": 0.9, "efficientnet_b0": 0.9}
FASTER = 1.05  # than the other tool's better row, at least
WITHIN = 0.05  # of the time that was asked for
PEER, PEER_STEP = "torch_pruning", 16
_SEARCHING = 9  # rounds, while a plan from MACs alone is searched for


def main() -> int:
    """Measure what was asked for and isn't there yet, the most telling rows first."""
    options = parse()
    device = pick_device(options)
    settings = {name: getattr(options, name) for name in ("rounds", "threads", "image_size", "macs")}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh, mixed=True)
    for key, measure in wanted(options, device):
        if key in table.rows:
            continue
        say(f"{key} ...")
        row = measure()
        table.put(key, row | {"environment": environment(device)})
        say(f"{key}: {'; '.join(verdicts(row)) or row['status']}")
    return 0


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = arguments("Measured speed of cut models.", "latency")
    parser.add_argument(
        "--only", nargs="+", default=["A", "B", "C", "E"], help="which rows, by the start of their names"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="torchvision names")
    parser.add_argument("--batches", nargs="+", type=int, help="of A (8 and 1 unless given) and E (1, 32, 256)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the MACs that is left in A and E")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.rounds, options.image_size = ["mobilenet_v2"], 3, 64
    return options


def wanted(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Names of the rows and what measures them, by importance."""
    rows: list[tuple[str, Callable[[], Row]]] = []
    for batch, name in itertools.product(options.batches or BATCHES, options.networks):
        rows.append((f"A/{name}/{batch}", partial(half_the_macs, name, batch, options, device)))
    if device.type == "cpu":
        rows.append(("C/vgg16/8", partial(through_the_command_line, options)))
    for share, name in itertools.product(SHARES, options.networks):
        rows.append((f"B/{name}/{share}", partial(in_time, name, share, options, device)))
    if device.type == "cuda" or options.quick:
        for name, batch, dtype in itertools.product(GPU_NETWORKS, options.batches or GPU_BATCHES, GPU_DTYPES):
            rows.append((f"E/{name}/{batch}/{dtype}", partial(by_memory, name, batch, dtype, options, device)))
    return ((key, measure) for key, measure in rows if key.startswith(tuple(options.only)))


def verdicts(row: Row) -> list[str]:
    """Each target of a row in words."""
    return [
        f"{name} {found['value']:.3g} (target {found['rule']} {found['bound']:.3g}: "
        f"{'met' if found['met'] else 'MISSED'})"
        for name, found in row.get("targets", {}).items()
    ]


# ---------------------------------------------------------------- A: half the MACs


def half_the_macs(name: str, batch: int, options: argparse.Namespace, device: torch.device) -> Row:
    """Ours and theirs at the same MACs, in the same rounds."""
    model, x = network(name, device), images(batch, options, device)
    result = surgeon.prune(
        model, x, max_macs=options.macs, round_to="auto", criterion="magnitude", verify=False, progress=told
    )  # fmt: skip
    whole = result.report.macs_before
    models = {"dense": model, "surgeon": result.model}
    limit = result.report.macs_after / whole
    models |= {f"{PEER} {step or 1}": theirs(model, x[:1], limit, step) for step in (None, PEER_STEP)}
    measured = latency(models, x, rounds=options.rounds)
    macs = {key: footprint(m, x).macs for key, m in models.items()}
    rows = {key: pace(measured, macs, key) for key in models if key != "dense"}
    best = max(rows[key]["efficiency"] for key in rows if key != "surgeon")
    ours = rows["surgeon"]["efficiency"]
    targets = {"faster than the better of theirs at equal MACs": target(ours / best, ">=", FASTER)}
    if batch == 8 and name in EFFICIENCY:
        targets["speed-up / MACs ratio"] = target(ours, ">=", EFFICIENCY[name])
    assert result.report.timing is not None
    return {
        "macs": macs, "rows": rows, "times_s": times(measured), "targets": targets, "peer": version_of(PEER),
        "predicted_s": dict(result.report.timing.predicted), "plan_s": dict(result.report.seconds),
        "score_kept": score_kept(model, x, result.plan), "conditions": dict(measured.conditions),
        "widths": {row.name: [row.before, row.after] for row in result.report.layers if row.before != row.after},
    }  # fmt: skip


def theirs(model: nn.Module, example: torch.Tensor, share: float, step: int | None) -> nn.Module:
    """Torch-Pruning's uniform ratio that comes nearest to this share of the MACs."""
    whole = footprint(model, example).macs
    low, high = 0.0, 0.95
    best, miss = model, 1.0
    for _ in range(9):
        middle = (low + high) / 2
        tried = one_step(copy.deepcopy(model), example, middle, step)
        left = footprint(tried, example).macs / whole
        if abs(left - share) < miss:
            best, miss = tried, abs(left - share)
        low, high = (middle, high) if left > share else (low, middle)
    return best


def one_step(model: nn.Module, example: torch.Tensor, ratio: float, step: int | None) -> nn.Module:
    """Torch-Pruning's build and step, in place. Raises MissingError where it isn't installed."""
    try:
        tool = importlib.import_module(PEER)
    except ImportError as reason:
        raise MissingError(f"Torch-Pruning not there (pip install torch-pruning==1.6.1): {reason}") from reason
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    tool.pruner.BasePruner(
        model, example, importance=tool.importance.MagnitudeImportance(p=2), pruning_ratio=ratio, round_to=step,
        ignored_layers=[last], global_pruning=False,
    ).step()  # fmt: skip
    return model


def told(stage: str, done: int, _total: int) -> None:
    """A line when a stage of the cut begins."""
    if done == 0:
        say(f"  {stage}")


# ---------------------------------------------------------------- B: the time that was asked for


#: Times as many rounds as while it was cut: what judges must not be as noisy as what is judged.
_ANEW = 4


def in_time(name: str, share: float, options: argparse.Namespace, device: torch.device) -> Row:
    """Ask for a share of the time; measure anew, beside a plan from MACs alone that is as fast."""
    model, x = network(name, device), images(1, options, device)
    try:
        result = surgeon.prune(
            model, x, max_latency=share, criterion="magnitude", verify=False, progress=told
        )  # fmt: skip
    except surgeon.BudgetError as refusal:
        return {"status": "refused", "asked": share, "reason": str(refusal)}
    when_cut = result.report.timing
    assert when_cut is not None
    measured = latency({"dense": model, "surgeon": result.model}, x, rounds=anew(when_cut, options))
    medians = {found.name: found.median for found in measured.latencies}
    share_measured = medians["surgeon"] / medians["dense"]
    row = {
        "asked": share, "measured": share_measured, "speed_up": measured.speed_up("surgeon", "dense").to_dict(),
        "when_cut": when_cut.speed_up, "tries": when_cut.tries, "predicted_s": dict(when_cut.predicted),
        "times_s": times(measured), "macs_left": result.report.macs_after / result.report.macs_before,
        "targets": {"measured off what was asked": target(abs(share_measured / share - 1), "<=", WITHIN)},
    }  # fmt: skip
    return against_macs_alone(model, x, result, row, options)


def against_macs_alone(
    model: nn.Module, x: torch.Tensor, result: surgeon.Result, row: Row, options: argparse.Namespace
) -> Row:
    """The row with what is kept of the score, by ours and by a plan from MACs alone that is as fast.

    The two are timed in rounds of their own: a third model's weights in turn would change what the caches hold when
    what was asked for is judged.
    """
    kept = {"surgeon": score_kept(model, x, result.plan)}
    row["score_kept"] = kept
    rival = by_macs_alone(model, x, result.model)
    if rival is None:
        return row
    assert result.report.timing is not None
    pair = {"surgeon": result.model, "macs alone": rival.model}
    measured = latency(pair, x, rounds=anew(result.report.timing, options))
    kept["macs alone"] = score_kept(model, x, rival.plan)
    row["macs_alone_speed_up"] = measured.speed_up("macs alone", "surgeon").to_dict()
    row["targets"]["score kept / by MACs alone"] = target(kept["surgeon"] / kept["macs alone"], ">=", 1.0)
    return row


def anew(when_cut: Timing, options: argparse.Namespace) -> int:
    """Rounds of a measurement that judges."""
    return _ANEW * rounds_for(sum(when_cut.predicted.values()), options.rounds)


class _ByMacs(NamedTuple):
    """A model that was planned from its MACs."""

    model: nn.Module
    plan: surgeon.Plan


def by_macs_alone(model: nn.Module, x: torch.Tensor, small: nn.Module) -> _ByMacs | None:
    """Of the plans that know of MACs alone, in the same steps, the largest one that is measured to be as fast."""
    graph = surgeon.channel_graph(surgeon.trace(model, x))
    scores = surgeon.score(graph, "magnitude")
    low, high, best = 0.02, 1.0, None
    for _ in range(7):
        middle = (low + high) / 2
        try:
            plan = surgeon.make_plan(graph, scores, max_macs=middle, round_to=PEER_STEP)
        except surgeon.BudgetError:
            low = middle
            continue
        rival = surgeon.rewrite(model, plan)
        if latency({"ours": small, "theirs": rival}, x, rounds=_SEARCHING).speed_up("theirs", "ours").ratio >= 1:
            low, best = middle, _ByMacs(rival, plan)
        else:
            high = middle
    return best


def score_kept(model: nn.Module, x: torch.Tensor, plan: surgeon.Plan) -> float:
    """Share of the score of all removable channels that a plan keeps."""
    graph = surgeon.channel_graph(surgeon.trace(model, x[:1]))
    return kept_of(surgeon.score(graph, "magnitude"), graph, plan)


# ---------------------------------------------------------------- C: through the command line


def through_the_command_line(options: argparse.Namespace) -> Row:
    """VGG16, time and size together; then the file against the dense model."""
    words = [
        "prune", "--model", "vgg16", "--weights", "none", "--criterion", "magnitude", "--max-latency", "30%",
        "--max-params", "24.9%", "--latency-batch-size", "8", "--no-verify", "--json",
        "--image-size", str(options.image_size),
    ]  # fmt: skip
    words += [] if options.threads is None else ["--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.safetensors"
        command = [sys.executable, "-m", "surgeon_cli", *words, "--output", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"status": "failed", "cli": "surgeon " + " ".join(words), "stderr": done.stderr[-2000:]}
        small, size = surgeon.load(file).eval(), file.stat().st_size
    dense, x = network("vgg16", torch.device("cpu")), images(8, options, torch.device("cpu"))

    def forward(model: nn.Module) -> Case:
        @torch.inference_mode()
        def run(_: Any) -> object:
            return model(x)

        return Case("dense" if model is dense else "small", run)

    samples = interleaved([forward(dense), forward(small)], options.rounds, torch.device("cpu"))
    cpu = paired_ratio(samples["dense"].cpu, samples["small"].cpu)
    whole, report = file_bytes(dense), json.loads(done.stdout)["report"]
    return {
        "cli": "surgeon " + " ".join(words), "cpu_ratio": cpu, "times": {k: s.to_dict() for k, s in samples.items()},
        "bytes": {"dense": whole, "small": size}, "timing": {k: report["timing"][k] for k in ("speed_up", "tries")},
        "targets": {
            "times less CPU time": target(cpu["median"], ">=", 3.0),
            "times smaller file": target(whole / size, ">=", 4.0),
        },
    }  # fmt: skip


if __name__ == "__main__":
    run_main(main)
