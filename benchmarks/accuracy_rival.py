"""Torch-Pruning for the accuracy table, at its best: ranked anew at each of many small steps, global, on labels.

Its Taylor criterion looks at the labels of the first 128 of the images that surgeon's healing sees without theirs; its
magnitude (l2) looks at none. A step takes 0.45 % of the channels; the first network within the MACs counts, so one
descent serves all budgets. The network is in eval mode for the gradients.

It takes apart networks whose shortcuts pad channels (ResNet-56 and -20 here: the next forward raises) as soon as it
cuts those. Budgets that it misses so are tried once more with all layers left whole that share channels with others.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accuracy_cut import HEALING, Cut, recalibrated
from accuracy_task import Task
from common import Images, MissingError, say, write_json
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

IMAGES = 128
DEEPEST, STEPS = 0.9, 200  # share of the channels and steps to it: 0.45 % each
CRITERIA = ("taylor", "l2")


class RivalError(Exception):
    """The other tool fails, or doesn't get there."""


@dataclass
class Descents:
    """Cuts of one network on one set of images, made in one descent per criterion and kept."""

    task: Task
    chosen: Images
    speedups: Sequence[float]
    _found: dict[str, Mapping[float, Cut | RivalError]] = field(default_factory=dict)

    def cut(self, criterion: str, speedup: float, keep: Path) -> Cut:
        """The first network of the descent within the budget, or the one kept at `keep`. Raises RivalError."""
        if keep.with_suffix(".json").exists():
            return kept(keep, self.task, self.chosen)
        if criterion not in self._found:
            self._found[criterion] = descend(self.task, self.chosen, criterion, self.speedups)
        found = self._found[criterion][speedup]
        if isinstance(found, RivalError):
            raise found
        keep.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in found.model.state_dict().items()}, keep)
        write_json(keep.with_suffix(".json"), {"facts": found.facts})
        return found


def kept(keep: Path, task: Task, chosen: Images) -> Cut:
    """A cut that a run before has kept: the dense network with its tensors, on the network's device."""
    small, facts = copy.deepcopy(task.dense), json.loads(keep.with_suffix(".json").read_text(encoding="utf-8"))["facts"]
    for name, value in load_file(keep, str(task.test.inputs.device)).items():
        place, _, own = name.rpartition(".")
        module = small.get_submodule(place)
        old = getattr(module, own)
        setattr(module, own, nn.Parameter(value) if isinstance(old, nn.Parameter) else value)
        if own == "weight":
            resize(module, value)
    return Cut(small, lambda level: recalibrated(small, chosen, level), HEALING["torch-pruning"], facts)


def resize(module: nn.Module, weight: torch.Tensor) -> None:
    """Widths in a layer's attributes follow its weight."""
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = len(weight)


def descend(task: Task, chosen: Images, criterion: str, speedups: Sequence[float]) -> dict[float, Cut | RivalError]:
    """Down to every budget; those that are missed once more with the coupled layers whole."""
    found = dict[float, Cut | RivalError]()
    reasons = []
    for coupled_whole in (False, True):
        left = sorted(set(speedups) - set(found))
        if left:
            reached, reason = once(task, chosen, criterion, left, coupled_whole=coupled_whole)
            found |= reached
            reasons += [reason] if reason else []
            say(f"Torch-Pruning {criterion}: {len(reached)} of {len(left)} budgets of {task.name} reached; {reason}")
    return {speedup: RivalError("; ".join(reasons)) for speedup in speedups} | found


def once(
    task: Task, chosen: Images, criterion: str, left: list[float], *, coupled_whole: bool
) -> tuple[dict[float, Cut], str]:
    """Step by step down to the least budget, and why it stopped short if it did; the first network within counts."""
    model, ranking = copy.deepcopy(task.dense), chosen.take(torch.arange(min(IMAGES, len(chosen))))
    found = dict[float, Cut]()
    dense, start = task.sizes(model)["macs"], time.perf_counter()
    try:
        pruner = make_pruner(model, ranking.inputs[:1], criterion, coupled_whole=coupled_whole)
        for number in range(1, STEPS + 1):
            step(pruner, model, ranking, criterion)
            macs = task.sizes(model)["macs"]
            for speedup in [s for s in left if s not in found and macs * s <= dense]:
                cut = snapshot(model, chosen, criterion, number, time.perf_counter() - start)
                found[speedup] = replace(cut, facts={**cut.facts, "coupled_whole": coupled_whole})
            if len(found) == len(left):
                return found, ""
    except Exception as problem:  # noqa: BLE001  # whatever it is, it's the row's result
        return found, f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    return found, f"{STEPS} steps did not get there"


def make_pruner(model: nn.Module, example: torch.Tensor, criterion: str, *, coupled_whole: bool = False) -> Any:
    """Its global pruner with all defaults but these; the classifier keeps its classes. Raises MissingError."""
    try:
        import torch_pruning
    except ImportError:
        raise MissingError("torch_pruning is not installed") from None
    kinds = {
        "taylor": torch_pruning.importance.TaylorImportance,
        "l2": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
    }
    whole: list[nn.Module] = []
    whole += [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if coupled_whole:
        whole += coupled(torch_pruning.DependencyGraph().build_dependency(model, example), whole)
    return torch_pruning.pruner.BasePruner(
        model, example, importance=kinds[criterion](), global_pruning=True, pruning_ratio=DEEPEST,
        iterative_steps=STEPS, ignored_layers=whole,
    )  # fmt: skip


def coupled(graph: Any, ignored: list[nn.Module]) -> list[nn.Module]:
    """Convolutions that share their output channels with another one (a depth-wise one has those of its input)."""
    found: list[nn.Module] = []
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d]):
        makers: dict[int, nn.Module] = {
            id(dep.target.module): dep.target.module
            for dep, _ in group
            if isinstance(dep.target.module, nn.Conv2d)
            and dep.target.module.groups == 1
            and graph.is_out_channel_pruning_fn(dep.handler)
        }
        found += makers.values() if len(makers) > 1 else ()
    return found


def step(pruner: Any, model: nn.Module, ranking: Images, criterion: str) -> None:
    """One step, with fresh gradients where the criterion reads them."""
    model.eval()
    if criterion == "taylor":
        model.zero_grad()
        functional.cross_entropy(model(ranking.inputs), ranking.targets).backward()  # type: ignore[no-untyped-call]
    pruner.step()


def snapshot(model: nn.Module, chosen: Images, criterion: str, number: int, seconds: float) -> Cut:
    """The network as it is now."""
    model.zero_grad()
    small = copy.deepcopy(model)
    facts = {"cut_s": round(seconds, 3), "labelled": criterion == "taylor", "check": None, "rival_steps": number}
    return Cut(small, lambda level: recalibrated(small, chosen, level), HEALING["torch-pruning"], facts)
