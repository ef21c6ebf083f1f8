"""Which recipe trains a cut best: short runs on training images, judged on 5,000 others of them.

The network is cut and healed as in the accuracy table and trained on some of the 45,000 other images. The dense network
was trained on all 50,000 (there is no other data to judge by but the test set, which chooses nothing here): the
accuracies are inflated and favour recipes that stay near it, so they rank recipes of a kind and nothing more.

    python benchmarks/recipes.py --threads 1
    python benchmarks/recipes.py --threads 1 --network vgg16bn-w025-cifar10 --speedup 2 --only base plain
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from accuracy_cut import surgeons
from accuracy_task import TRAIN_TOTAL, Task, read_task, top1
from accuracy_training import Recipe, digest
from common import ROOT, Images, Table, arguments, cifar10, drawn, output_path, pick_device, run_main, say, trained
from torch import nn

HELD_OUT, SEED, RANKED_ON = 5_000, 0, 512
#: Changes to the recipe of the accuracy table.
RECIPES: dict[str, dict[str, Any]] = {
    "base": {},
    "plain": {"teacher_weight": 0.0},
    "half-taught": {"teacher_weight": 0.5},
    "slow": {"lr": 0.003},
    "fast": {"lr": 0.03},
    "large-batch": {"batch": 128, "lr": 0.02},
    "one-cycle": {"schedule": "one-cycle"},
    "averaged": {"ema": 0.998},
    "light-decay": {"weight_decay": 1e-4},
    "float32": {"mixed_precision": "no"},
}


def main() -> int:
    """Fill the table, recipe by recipe."""
    parser = arguments("Recipes of fine-tuning, compared on training images.", "recipes")
    parser.add_argument("--network", default="resnet20-cifar10")
    parser.add_argument("--speedup", type=float, default=1.725)
    parser.add_argument("--criterion", default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=9_000, help="training images of a run")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    device = pick_device(options)
    settings = {"held_out": HELD_OUT} | {name: vars(options)[name] for name in ("images", "epochs", "criterion")}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh, mixed=True)
    task = read_task(options.network, device, HELD_OUT)
    start = cut(task, options)
    _, stats = trained(options.network, device)
    order = drawn(TRAIN_TOTAL, TRAIN_TOTAL, SEED)
    held, seen = (cifar10("train", stats, device, index) for index in (order[:HELD_OUT], order[HELD_OUT:]))
    seen = seen.take(torch.arange(options.images))
    before = {"cut": top1(start, held, 50), "dense": top1(task.dense, held, 50)}
    for name in options.only:
        key = f"{options.network}/{options.speedup:g}x/{name}"
        if key not in table.rows:
            recipe = replace(Recipe(options.epochs), **RECIPES[name])
            table.put(key, before | run(task, start, seen, held, recipe, key))
    return 0


def cut(task: Task, options: argparse.Namespace) -> nn.Module:
    """The healed cut, made on images that are trained on as well."""
    chosen = task.draw(RANKED_ON, SEED)
    return surgeons(task, options.speedup, options.criterion, chosen, SEED).healed("lstsq")


def run(task: Task, start: nn.Module, seen: Images, held: Images, recipe: Recipe, key: str) -> dict[str, object]:
    """One recipe's row."""
    model = copy.deepcopy(start)
    folder = ROOT / "build" / "recipes" / f"{key.replace('/', '_')}_{digest(model, recipe)}"
    tuned = recipe.fit(model, seen, task.dense, folder, SEED, key)
    found = top1(model, held, 50)
    say(f"{key}: {found:.2f} %")
    return asdict(recipe) | {"top1": found, "seconds": round(sum(row.seconds for row in tuned.history), 1)}


if __name__ == "__main__":
    run_main(main)
