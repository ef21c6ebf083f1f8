"""Torch-Pruning on the same models: half of every group, by the rules of its own torchvision test."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from confined import Emit, Facts, peak, shortened
from coverage_zoo import Example
from timing import Case, interleaved, paired_ratio
from torch import nn

import surgeon

RATIO = 0.5
ROUNDS = 3
#: Layers whose width is the task's, by the end of their names: predictors of detectors and of optical flow.
HEADS = (
    "cls_logits", "bbox_pred", "bbox_reg", "bbox_ctrness", "cls_score", "mask_fcn_logits", "kps_score_lowres",
    "mask_predictor.3", "flow_head.conv2", "convrelu", "context_encoder.conv",
)  # fmt: skip


def pruned(model: nn.Module, example: Example) -> None:
    """Build Torch-Pruning's dependency graph and take one step, in place."""
    import torch_pruning

    arguments: Any = example.inputs.kwargs or example.inputs.args
    pruner = torch_pruning.pruner.BasePruner(
        model, arguments, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=heads(model), global_pruning=False,
    )  # fmt: skip
    pruner.step()


def heads(model: nn.Module) -> list[nn.Module]:
    """Layers that keep their outputs: the last one that makes classes, and predictors."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    chosen = [m for name, m in layers if name.endswith(HEADS) or (isinstance(m, nn.Linear) and m.out_features == 1000)]
    return [*chosen, *(m for _, m in layers[-1:] if m not in chosen)]


def theirs(example: Example, emit: Emit, outline: Callable[[nn.Module, Example], Any]) -> None:
    """Build and step; then see whether the next forward gives the same shapes."""
    model = example.model
    wanted, before = outline(model, example), sum(p.numel() for p in model.parameters())
    emit({"stage": "build and step"})
    start = time.perf_counter()
    try:
        pruned(model, example)
        emit({"seconds": round(time.perf_counter() - start, 3), "stage": "the next forward"})
        same = outline(model, example) == wanted
    except Exception as problem:  # noqa: BLE001  # whatever it is, it's the row's result
        emit({"status": "crash", "detail": shortened(f"{type(problem).__name__}: {problem}"), "peak_mb": peak()})
        return
    left = sum(p.numel() for p in model.parameters()) / before
    status = ("runs" if left < 1 else "whole") if same else "other shapes"
    emit({"status": status, "params_left": round(left, 4), "peak_mb": peak()})


def race(example: Example, emit: Emit) -> None:
    """Seconds of one forward, of ours and of theirs on fresh copies, interleaved; the copies are off the clock."""
    torch.set_num_threads(1)
    emit({"stage": "ours"})

    def fresh() -> nn.Module:
        return copy.deepcopy(example.model)

    def cut(model: nn.Module) -> None:
        surgeon.prune(
            model, example.inputs, ratio=RATIO, scope="local", criterion="random", verify=False, inplace=True
        )  # fmt: skip

    def forward(model: nn.Module) -> Any:
        with torch.no_grad():
            return model(*example.inputs.args, **example.inputs.kwargs)

    cases = [Case("forward", forward, fresh), Case("ours", cut, fresh)]
    # ours on its own first: it stands where theirs doesn't come to an end
    emit({"status": "alone", **_figures(interleaved(cases, ROUNDS, torch.device("cpu")))})
    emit({"stage": "the other tool"})
    if _works(lambda: pruned(fresh(), example)):
        emit({"stage": "race"})
        cases.append(Case("theirs", lambda model: pruned(model, example), fresh))
        emit({"status": "raced", **_figures(interleaved(cases, ROUNDS, torch.device("cpu")))})


def _works(run: Callable[[], object]) -> bool:
    try:
        run()
    except Exception:  # noqa: BLE001  # theirs may fail in any way
        return False
    return True


def _figures(samples: Any) -> Facts:
    medians = {f"{name}_s": round(sorted(found.wall)[len(found.wall) // 2], 4) for name, found in samples.items()}
    medians["within"] = medians["ours_s"] <= 5 * medians["forward_s"] + 2
    if "theirs" in samples:
        medians["ratio"] = paired_ratio(samples["ours"].cpu, samples["theirs"].cpu)
    return medians
