"""Cuts for the accuracy table, each with the ways to heal it: surgeon's, and the dense network as it is.

A cut is made once and healed as copies, so that the levels of healing are compared on the same cut.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accuracy_task import BATCH, Task, recalibrate
from common import Images, device_name, source_digest, write_json
from torch import nn
from torch.nn import functional

import surgeon
from surgeon.healing import LEVELS
from surgeon.report import Report

#: ``auto`` on images without their labels.
UNLABELLED = "auto-unlabelled"
#: Levels that need no labels and no training, by who made the cut.
HEALING = {"surgeon": LEVELS, "torch-pruning": ("none", "bn"), "dense": ("none", "bn")}


@dataclass(frozen=True)
class Cut:
    """A cut model, ``healed(level)`` for a copy of it that is healed so, and what a row says of it.

    Attributes
    ----------
    levels:
        What ``healed`` can be asked for; the last one is where training begins.
    facts:
        Seconds, whether labels were looked at, the check.
    seconds:
        Of levels that were healed while the cut was made.
    """

    model: nn.Module
    healed: Callable[[str], nn.Module]
    levels: Sequence[str]
    facts: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)


def whole(task: Task, chosen: Images) -> Cut:
    """The dense network, as it is and recalibrated: what recalibration alone costs or gives."""
    facts = {"cut_s": 0.0, "labelled": False, "check": None}
    levels = HEALING["dense"][::-1]  # as it is, it is at its best
    return Cut(task.dense, lambda level: recalibrated(task.dense, chosen, level), levels, facts)


def recalibrated(model: nn.Module, chosen: Images, level: str) -> nn.Module:
    """A copy, its batch norms measured anew on the chosen images where the level says so."""
    other = copy.deepcopy(model)
    return other if level == "none" else recalibrate(other, inputs_of(chosen))


def inputs_of(chosen: Images) -> list[torch.Tensor]:
    """Batches without their labels."""
    return [inputs for inputs, _ in chosen.batches(BATCH)]


def surgeons(
    task: Task, speedup: float, criterion: str, chosen: Images, seed: int, keep: Path | None = None,
    *, steps: int = 1, round_to: int = 1,
) -> Cut:  # fmt: skip
    """Cut and heal by regression as a user would; the other levels heal the same cut.

    ``auto`` chooses the cut that is best once it is healed so; in several steps each step is healed, and only so. With
    `keep`, a file to be, the cut is kept there, and taken from there where a run before has made it.
    """
    plan, model, facts, healing = kept(keep, task) or made(
        task, speedup, criterion, chosen, seed, keep, steps=steps, round_to=round_to
    )
    if steps > 1:
        return Cut(model, lambda _: model, ("lstsq",), facts, {"lstsq": healing})
    small = surgeon.rewrite(task.dense, plan)

    def healed(level: str) -> nn.Module:
        if level == "lstsq":
            return model
        return surgeon.heal(task.dense, copy.deepcopy(small), plan, inputs_of(chosen), level, seed=seed)

    return Cut(small, healed, HEALING["surgeon"], facts, {"lstsq": healing})


#: A plan, the model that it made, healed, what a row says of it, and the seconds of the healing.
Made = tuple[surgeon.Plan, nn.Module, dict[str, Any], float]


def made(
    task: Task,
    speedup: float,
    criterion: str,
    chosen: Images,
    seed: int,
    keep: Path | None,
    *,
    steps: int,
    round_to: int,
) -> Made:
    """Cut now."""
    seen, blind = Labels(), criterion == UNLABELLED
    start = time.perf_counter()
    result = surgeon.prune(
        task.dense,
        chosen.inputs[:8],  # of 2, a layer cut to one channel can be all zero behind its ReLU: unproven
        max_macs=1 / speedup,
        criterion="auto" if blind else criterion,
        dataloader=inputs_of(chosen) if blind else chosen.batches(BATCH),
        loss_fn=None if blind else seen.loss,
        heal="lstsq",
        calibration=inputs_of(chosen),
        steps=steps,
        round_to=round_to,
        seed=seed,
    )
    healing = result.report.seconds["heal"]
    cutting = round(time.perf_counter() - start - healing, 3)
    origin = {"source": source_digest(), "device": device_name(task.test.inputs.device)}
    facts = {"cut_s": cutting, "labelled": seen.used, "cut_by": origin} | facts_of(result.report)
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        surgeon.save(keep, result.model, result.plan)
        write_json(keep.with_suffix(".json"), {"plan": result.plan.to_json(), "facts": facts, "healing_s": healing})
    return result.plan, result.model, facts, healing


def kept(keep: Path | None, task: Task) -> Made | None:
    """The cut that a run before has kept, on the network's device; None where there is none."""
    if keep is None or not keep.with_suffix(".json").exists():
        return None
    found = json.loads(keep.with_suffix(".json").read_text(encoding="utf-8"))
    model = surgeon.load(keep, lambda: copy.deepcopy(task.dense).cpu()).to(task.test.inputs.device).eval()
    return surgeon.Plan.from_json(found["plan"]), model, found["facts"], found["healing_s"]


class Labels:
    """Cross entropy that remembers whether it was asked for: then the criterion has looked at the labels."""

    def __init__(self) -> None:
        self.used = False

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Per-example cross entropy, which is surgeon's default."""
        self.used = True
        return functional.cross_entropy(outputs, targets, reduction="none")


def facts_of(report: Report) -> dict[str, Any]:
    """Where the time went, and what the check said."""
    check = report.check
    found = None if check is None else {"status": check.status, "error": check.error, "own_error": check.own_error}
    stages = {name: round(seconds, 3) for name, seconds in report.seconds.items()}
    return {"check": found, "stages_s": stages}
