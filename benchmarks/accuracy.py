"""Real images, real weights: ResNet-56 on CIFAR-10 at half its MACs, ranked on 512 training images, no training.

For each criterion and seed: top-1 on the 10,000 test images straight after the cut, and after BatchNorm recalibration
on the same 512 images (labels unused), with the result of surgeon's own check beside it. A seed chooses the 512 images,
and the scores of ``random``; ``magnitude`` looks at no image, so its three cuts are one, recalibrated on three sets.
Written after each row to ``benchmarks/results/accuracy.json``; a second run goes on where the first stopped.

    python benchmarks/accuracy.py            # about 15 minutes on 2 cores
    python benchmarks/accuracy.py --quick    # 500 test images, one seed
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from typing import Any

import torch
from common import Images, Table, arguments, cifar10, drawn, output_path, pick_device, run_main, say, trained
from torch import nn

import surgeon
from surgeon.report import Report

NETWORK = "resnet56-cifar10"
CRITERIA = ("taylor", "magnitude", "random")
TRAIN_TOTAL, TEST_TOTAL = 50_000, 10_000
BATCH = 128  # of the ranking and of the recalibration; the test's batch changes no figure
TEST_BATCH = 500


def main() -> int:
    """Fill the table row by row, and say each row."""
    options = parse()
    device = pick_device(options)
    dense, stats = trained(NETWORK, device)
    settings = settings_of(options)
    table = Table.open(output_path(options), settings, device, fresh=options.fresh)
    test = cifar10("test", stats, device, torch.arange(settings["test_images"]))
    if "dense_top1" not in table.facts:
        table.facts["dense_top1"] = top1(dense, test)
    say(f"{NETWORK} dense: {table.facts['dense_top1']:.2f} % on {len(test)} test images")
    for seed in options.seeds:
        wanted = [name for name in options.criteria if f"{name}/{seed}" not in table.rows]
        if not wanted:
            continue
        chosen = cifar10("train", stats, device, drawn(TRAIN_TOTAL, options.images, seed))
        table.facts.setdefault("dense_top1_bn", {})[str(seed)] = recalibrated_top1(dense, chosen, test)
        for name in wanted:
            row = measure(dense, name, seed, chosen, test, options)
            table.put(f"{name}/{seed}", row)
            say(describe(row))
    return 0


def parse() -> argparse.Namespace:
    """Read the options; ``--quick`` narrows the seeds and the test images."""
    parser = arguments("Accuracy of ResNet-56 on CIFAR-10 after a cut, without training.", "accuracy")
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), help="in this order within a seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each chooses its own images")
    parser.add_argument("--images", type=int, default=512, help="training images to rank and recalibrate on")
    parser.add_argument("--max-macs", type=float, default=0.5, help="share of the MACs to keep within")
    parser.add_argument("--scope", default="global", choices=("global", "local"), help="of the ranking")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for two rows to stand in one table."""
    return {
        "network": NETWORK,
        "images": options.images,
        "test_images": 500 if options.quick else TEST_TOTAL,
        "max_macs": options.max_macs,
        "scope": options.scope,
        "batch": BATCH,
    }


def measure(
    dense: nn.Module, criterion: str, seed: int, chosen: Images, test: Images, options: argparse.Namespace
) -> dict[str, Any]:
    """Cut once, test, recalibrate, test again: one row."""
    start = time.perf_counter()
    result = surgeon.prune(
        dense,
        chosen.inputs[:8],  # of 2, a layer cut to one channel can be all zero behind its ReLU: unproven
        max_macs=options.max_macs,
        criterion=criterion,
        dataloader=chosen.batches(BATCH),
        scope=options.scope,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    row = {"criterion": criterion, "seed": seed, "top1": top1(result.model, test)}
    row["top1_bn"] = recalibrated_top1(result.model, chosen, test)
    return row | facts_of(result.report) | {"prune_s": round(seconds, 3), "prune_stages_s": dict(result.report.seconds)}


def facts_of(report: Report) -> dict[str, Any]:
    """Sizes before and after, and what the check said."""
    names = [f"{what}_{when}" for what in ("macs", "params", "filters") for when in ("before", "after")]
    check = report.check
    found = None if check is None else {"status": check.status, "error": check.error, "own_error": check.own_error}
    nodes = {} if check is None else {"check_nodes": check.nodes, "check_unproven": len(check.unproven)}
    return {name: getattr(report, name) for name in names} | {"check": found} | nodes


@torch.inference_mode()
def top1(model: nn.Module, images: Images) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(TEST_BATCH))
    return 100 * right / len(images)


def recalibrated_top1(model: nn.Module, chosen: Images, test: Images) -> float:
    """Top-1 accuracy in percent of a copy of ``model`` that is recalibrated on ``chosen``."""
    other = copy.deepcopy(model)
    recalibrate(other, (inputs for inputs, _ in chosen.batches(BATCH)))
    return top1(other, test)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace every BatchNorm's running statistics by their plain average over ``batches``, in place.

    Only the BatchNorm layers are in train mode meanwhile; momentum and mode are as before afterwards.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for inputs in batches:
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def describe(row: dict[str, Any]) -> str:
    """One line for the person who is watching."""
    macs = row["macs_after"] / row["macs_before"]
    check = row["check"] or {"status": "off", "error": float("nan")}
    return (
        f"{row['criterion']:>10} seed {row['seed']}: {row['top1']:.2f} % straight after the cut, "
        f"{row['top1_bn']:.2f} % recalibrated; MACs {100 * macs:.1f} %; "
        f"check {check['status']}, error {check['error']:.1e}"
    )


if __name__ == "__main__":
    run_main(main)
