"""One model, one tool, one process: what :mod:`coverage` starts for every row.

python benchmarks/coverage_row.py SET NAME SIDE FILE    # facts as lines of JSON in FILE
"""

from __future__ import annotations

import collections
import copy
import functools
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import ROOT, source_digest
from confined import Emit, Facts, emitter, peak, shortened
from coverage_zoo import Example, build
from known_norms import UNKNOWN, tell_norms
from rival import race, theirs
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import surgeon
from surgeon.errors import BudgetError, NothingToCutError, VerificationError
from surgeon.rewriting import fit
from tests.networks import redraw, settled
from tests.oracle import OracleError, compare

RATIO = 0.5
JUDGED = 60e6  # parameters up to which the oracle judges: it holds several float64 copies
SHOWN = 8  # pinned layers and unproven places named in a row
STATUSES: tuple[tuple[type[Exception], str], ...] = (
    (VerificationError, "wrong"),
    (NothingToCutError, "refused"),
    (BudgetError, "refused"),
)


def main(words: list[str]) -> None:
    """Build the model and hand it to one side."""
    name_of_set, name, side, path = words
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with emitter(path) as emit:
        emit({"stage": "build"})
        example = build(name_of_set, name)
        emit({"parameters": parameters(example.model), "source": source_digest()})
        SIDES[side](example, emit)


def parameters(model: nn.Module) -> int:
    """How many there are, tied ones once."""
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- ours


def ours(example: Example, emit: Emit) -> None:
    """Prune half of every group with the check on; then run the small model, then ask the oracle."""
    emit({"stage": "forward"})
    start = time.perf_counter()
    wanted = outline(example.model, example)
    emit({"forward_s": since(start)})
    try:
        result = surgeon.prune(
            example.model, example.inputs, ratio=RATIO, scope="local", criterion="random", progress=stages(emit)
        )
    except Exception as problem:  # noqa: BLE001  # whatever it is, it's the row's result
        emit({"status": status_of(problem), "detail": described(problem), "peak_mb": peak()})
        return
    emit({**facts(result.report), "peak_mb": peak(), "stage": "the small model's forward"})
    emit(runs_again(result.model, example, wanted))
    emit({"stage": "oracle"})
    emit({"oracle": judged(example, result.plan)})


def stages(emit: Emit) -> Callable[[str, int, int], None]:
    """A progress callback that says which stage has begun, and when."""
    start = time.perf_counter()

    def progress(stage: str, done: int, _: int) -> None:
        if not done:
            emit({"stage": f"{stage}, begun after {since(start):.1f} s"})

    return progress


def since(start: float) -> float:
    """Seconds since a reading of the clock."""
    return round(time.perf_counter() - start, 3)


def status_of(problem: Exception) -> str:
    """ "refused" and "wrong" are surgeon's own words; all else is a crash."""
    return next((status for kind, status in STATUSES if isinstance(problem, kind)), "crash")


def described(problem: Exception) -> str:
    """The exception and the places it comes from: the last one in surgeon, and the last one at all."""
    frames = traceback.extract_tb(problem.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT / "surgeon")]
    places = dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*inside[-1:], *frames[-1:]))
    return shortened(f"{type(problem).__name__}: {problem}") + f" [{', '.join(places)}]"


def facts(report: surgeon.Report) -> Facts:
    """What a report says, for a row."""
    check = report.check
    assert check is not None
    pinned = [pin for pin in report.pinned if pin.reason != "output"]
    seconds = {stage: round(value, 3) for stage, value in report.seconds.items()}
    return {
        "status": "right" if check.status == "passed" else check.status,
        "detail": shortened("; ".join(check.unproven[:SHOWN])),
        "check": {"error": check.error, "own_error": check.own_error, "nodes": check.nodes},
        "unproven": len(check.unproven),
        "params_left": round(report.params_after / report.params_before, 4),
        "macs_left": round(report.macs_after / max(report.macs_before, 1), 4),
        "reasons": dict(collections.Counter(shortened(pin.reason) for pin in pinned).most_common()),
        "pinned": [shortened(f"{p.layer}: {p.reason} ({p.channels} of {p.of}; {p.source})") for p in pinned[:SHOWN]],
        "stages_s": seconds,
        "seconds": round(sum(value for stage, value in seconds.items() if stage != "verify"), 3),
    }


# ---------------------------------------------------------------- does it run, is it exact


def outline(model: nn.Module, example: Example) -> Any:
    """The structure of the model's outputs and their shapes, the first axis (found objects) left out."""
    torch.manual_seed(0)  # how long a sound becomes may be drawn
    with torch.no_grad():
        leaves, structure = pytree.tree_flatten(model(*example.inputs.args, **example.inputs.kwargs))
    return structure, [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def runs_again(model: nn.Module, example: Example, wanted: Any) -> Facts:
    """Whether the pruned model's own forward runs and gives what the dense one's gives, by its shapes."""
    try:
        same = outline(model, example) == wanted
    except Exception as problem:  # noqa: BLE001  # whatever it is, it's the row's result
        return {"status": "wrong", "detail": f"the next forward fails: {described(problem)}"}
    return {} if same else {"status": "wrong", "detail": "the next forward gives other shapes"}


def judged(example: Example, plan: surgeon.Plan) -> Facts:
    """The oracle's word (`tests.oracle`) on the same plan on redrawn weights in float64, or why there is none."""
    if parameters(example.model) > JUDGED:
        return {"silent": "too large"}
    if type(example.model).__name__ in UNKNOWN:
        return {"silent": UNKNOWN[type(example.model).__name__]}
    torch.set_default_dtype(torch.float64)  # what the forward makes itself
    try:
        inputs = example.inputs.to(None, torch.float64)
        model = redrawn(example.model, inputs)
        plan = replace(plan, fitted=fit(model, plan, inputs))
        assert plan.fitted is not None
        small = surgeon.rewrite(model, plan)
        tell_norms(model)
        with Doubled():  # type: ignore[no-untyped-call]
            verdict = compare(model, small, plan.fitted.source, *inputs.args, **inputs.kwargs)
    except OracleError as problem:
        return {"silent" if "nothing can be said" in str(problem) else "differs": shortened(str(problem))}
    except Exception as problem:  # noqa: BLE001  # the oracle is a test's tool: it may not know this model
        return {"silent": described(problem)}
    return {"error": verdict.error, "effect": verdict.effect}


class Doubled(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """What a forward computes in float32 on purpose (norms, rotary angles, softmax) stays in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        double = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **double)


def redrawn(dense: nn.Module, inputs: surgeon.Inputs) -> nn.Module:
    """A float64 copy on healthy random weights; with its own buffers where others (a variance below 0) break it."""
    model = settled(redraw(copy.deepcopy(dense).double(), 0), *inputs.args, **inputs.kwargs)
    if not finite(model, inputs):
        own = dict(dense.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(own[name])
        settled(model, *inputs.args, **inputs.kwargs)
    return model


@torch.no_grad()
def finite(model: nn.Module, inputs: surgeon.Inputs) -> bool:
    """Whether all that the model gives is finite."""
    leaves = pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))
    return all(bool(leaf.isfinite().all()) for leaf in leaves if isinstance(leaf, torch.Tensor))


SIDES: dict[str, Callable[[Example, Emit], None]] = {
    "ours": ours,
    "theirs": functools.partial(theirs, outline=outline),
    "race": race,
}

if __name__ == "__main__":
    main(sys.argv[1:])
