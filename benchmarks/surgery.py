"""What a cut costs: one pass against one filter at a time, and the whole way against Torch-Pruning's.

``vgg16``: 512 filters of VGG16 (torchvision, random weights), CPU time. One pass is ``surgeon.rewrite(model, plan)`` on
a given plan, the new model's copy included; the same with the plan read from JSON, so that the model is traced and the
widths are tried again, stands beside it. The other side works in place on a copy that is made off the clock. Both
must give the same tensors to the bit. Target: at most 1/40 of the time.

``resnet50``: trace + channel_graph + score("magnitude") + make_plan(ratio=0.5, scope="local") + rewrite on one image of
224 x 224 and one thread, against a forward of the model (target: less than 10 of them + 1 s) and against
Torch-Pruning's dependency graph + step at the same ratio and criterion, without its copy (target: at most twice).
Verification is timed apart: the other tool has none.

    python benchmarks/surgery.py             # about 5 minutes on one core
    python benchmarks/surgery.py --quick     # 16 filters, one round
"""

from __future__ import annotations

import argparse
import copy
import importlib
import time
from itertools import pairwise
from typing import Any

import torch
import torchvision
from common import MissingError, Table, arguments, environment, output_path, pick_device, run_main, say, version_of
from one_at_a_time import remove_filters
from timing import Case, interleaved, paired_ratio, spread
from torch import nn

import surgeon

ONE_PASS_TARGET = 40.0  # one at a time / one pass, CPU time, at least
FORWARDS_TARGET, SECONDS_TARGET = 10.0, 1.0  # forwards + seconds, wall time, less than
RIVAL_TARGET = 2.0  # surgeon / Torch-Pruning, wall time, at most
PEER = "torch_pruning"


def main() -> int:
    """Measure what was asked for; 1 where the tensors differ, whatever the times are."""
    options = parse()
    device = pick_device(options)
    settings = {name: getattr(options, name) for name in ("filters", "ratio", "rounds", "threads", "with_init")}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh)
    for name, measure in {"vgg16": vgg16, "resnet50": resnet50}.items():
        if name in options.only and name not in table.rows:
            table.put(name, measure(options, device) | {"environment": environment(device)})
    for name, row in table.rows.items():
        say(f"{name}: " + "; ".join(verdicts(row)))
    return 0


def parse() -> argparse.Namespace:
    """Read the options; one thread unless told otherwise."""
    parser = arguments("CPU and wall time of the surgery itself.", "surgery")
    parser.set_defaults(threads=1)
    parser.add_argument("--only", nargs="+", default=["vgg16", "resnet50"], help="which of the two")
    parser.add_argument("--filters", type=int, default=512, help="of VGG16, to remove")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the channels of ResNet-50 to remove")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds after one that doesn't count")
    parser.add_argument("--with-init", action="store_true", help="also the baseline that initialises each new layer")
    options = parser.parse_args()
    if options.quick:
        options.filters, options.rounds = 16, 1
    return options


def verdicts(row: dict[str, Any]) -> list[str]:
    """Each target of a row in words."""
    return [
        f"{name} {target['value']:.3g} (target {target['rule']} {target['bound']:.3g}: "
        f"{'met' if target['met'] else 'MISSED'})"
        for name, target in row["targets"].items()
    ]


def target(value: float, rule: str, bound: float) -> dict[str, Any]:
    """A figure beside its target; ``rule`` is ">=", "<=" or "<"."""
    met = {">=": value >= bound, "<=": value <= bound, "<": value < bound}[rule]
    return {"value": value, "rule": rule, "bound": bound, "met": met}


# ---------------------------------------------------------------- one pass against one at a time


def vgg16(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time both ways on one plan, and compare every tensor of the two results."""
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None).eval().to(device)
    example = torch.randn(1, 3, 224, 224, device=device)
    graph = surgeon.channel_graph(surgeon.trace(model, example))
    plan = surgeon.make_plan(graph, surgeon.score(graph, "random"), filters=options.filters)
    removed = {name: tuple(channels) for name, channels in plan.removed.items()}
    assert sum(map(len, removed.values())) == options.filters, "the plan has another number of filters"
    same_tensors(surgeon.rewrite(model, plan), remove_filters(copy.deepcopy(model), removed))
    fresh = surgeon.Plan.from_json(plan.to_json())
    cases = [
        Case("one_pass", lambda _: surgeon.rewrite(model, plan)),
        Case("one_pass_from_json", lambda _: surgeon.rewrite(model, fresh)),
        sequential("one_at_a_time", model, removed),
    ]
    if options.with_init:
        cases.append(sequential("one_at_a_time_init", model, removed, initialise=True))
    times = interleaved(cases, options.rounds, device)
    ratio = paired_ratio(times["one_at_a_time"].cpu, times["one_pass"].cpu)
    return {
        "filters": options.filters,
        "layers": {name: len(channels) for name, channels in removed.items()},
        "times": {name: samples.to_dict() for name, samples in times.items()},
        "cpu_ratio": ratio,
        "bit_identical": True,
        "targets": {"one at a time / one pass, CPU time": target(ratio["median"], ">=", ONE_PASS_TARGET)},
    }


def sequential(name: str, model: nn.Module, removed: dict[str, tuple[int, ...]], *, initialise: bool = False) -> Case:
    """The baseline as a case: the copy is made off the clock."""

    def run(given: nn.Module) -> nn.Module:
        return remove_filters(given, removed, initialise=initialise)

    return Case(name, run, lambda: copy.deepcopy(model))


def same_tensors(one: nn.Module, other: nn.Module) -> None:
    """Raise AssertionError, naming the first tensor that differs in name, type, shape or a single bit."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys(), f"names differ: {sorted(left.keys() ^ right.keys())}"
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, f"{name}: {tensor.dtype} and {right[name].dtype}"
        assert torch.equal(tensor, right[name]), f"{name}: {tuple(tensor.shape)} and {tuple(right[name].shape)} differ"


# ---------------------------------------------------------------- the whole way


def resnet50(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time a forward, surgeon's whole way and Torch-Pruning's, interleaved."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval().to(device)
    example = torch.randn(1, 3, 224, 224, device=device)
    stages: list[dict[str, float]] = []
    cases = [
        Case("forward", lambda _: forward(model, example)),
        Case("surgeon", lambda _: whole_way(model, example, options.ratio, stages)),
        Case(PEER, lambda given: peer(given, example, options.ratio), lambda: copy.deepcopy(model)),
    ]
    times = interleaved(cases, options.rounds, device)
    wall = {name: samples.wall for name, samples in times.items()}
    bound = FORWARDS_TARGET * spread(wall["forward"])["median"] + SECONDS_TARGET
    against_peer = paired_ratio(wall["surgeon"], wall[PEER])
    return {
        "ratio": options.ratio,
        "peer": f"Torch-Pruning {version_of(PEER)}",
        "times": {name: samples.to_dict() for name, samples in times.items()},
        "stages_s": {name: spread([s[name] for s in stages[-options.rounds :]]) for name in stages[-1]},
        "peer_ratio": against_peer,
        "peer_cpu_ratio": paired_ratio(times["surgeon"].cpu, times[PEER].cpu),  # less disturbed by other processes
        "verification": verification(model, example, options.ratio),
        "parameters": parameters(model, example, options.ratio),
        "targets": {
            "surgeon, wall seconds": target(spread(wall["surgeon"])["median"], "<", bound),
            "surgeon / Torch-Pruning, wall time": target(against_peer["median"], "<=", RIVAL_TARGET),
        },
    }


@torch.inference_mode()
def forward(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """One forward as a user who only predicts would run it."""
    output: torch.Tensor = model(example)
    return output


def whole_way(
    model: nn.Module, example: torch.Tensor, ratio: float, stages: list[dict[str, float]]
) -> tuple[nn.Module, surgeon.Plan]:
    """From the model to the smaller model and its plan; the wall seconds of each stage go to ``stages``."""
    ticks = [time.perf_counter()]
    trace = surgeon.trace(model, example)
    ticks.append(time.perf_counter())
    graph = surgeon.channel_graph(trace)
    ticks.append(time.perf_counter())
    scores = surgeon.score(graph, "magnitude")
    ticks.append(time.perf_counter())
    plan = surgeon.make_plan(graph, scores, ratio=ratio, scope="local")
    ticks.append(time.perf_counter())
    small = surgeon.rewrite(model, plan)
    ticks.append(time.perf_counter())
    names = ("trace", "graph", "scores", "plan", "rewrite")
    stages.append({name: stop - start for name, (start, stop) in zip(names, pairwise(ticks), strict=True)})
    return small, plan


def peer(model: nn.Module, example: torch.Tensor, ratio: float) -> nn.Module:
    """Torch-Pruning's build and step, in place. Raises MissingError where it isn't installed."""
    try:
        tool = importlib.import_module(PEER)
    except ImportError as reason:
        raise MissingError(f"Torch-Pruning not there (pip install torch-pruning==1.6.1): {reason}") from reason
    pruner = tool.pruner.BasePruner(
        model,
        example,
        importance=tool.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule("fc")],
    )
    pruner.step()
    return model


def verification(model: nn.Module, example: torch.Tensor, ratio: float) -> dict[str, Any]:
    """Time surgeon's check of the same cut, once, and say what it found."""
    small, plan = whole_way(model, example, ratio, [])
    start = time.perf_counter()
    check = surgeon.verify(model, small, plan, example)
    return {"wall_s": time.perf_counter() - start, "status": check.status, "error": check.error, "nodes": check.nodes}


def parameters(model: nn.Module, example: torch.Tensor, ratio: float) -> dict[str, int]:
    """Parameters before, and after either tool: both must have done the same amount of work."""
    small, _ = whole_way(model, example, ratio, [])
    models = {"before": model, "surgeon": small, PEER: peer(copy.deepcopy(model), example, ratio)}
    return {name: sum(p.numel() for p in each.parameters()) for name, each in models.items()}


if __name__ == "__main__":
    run_main(main)
