"""Does a score foretell the loss? Spearman correlation with the true change when each filter of ResNet-20 is removed.

Each channel of each group is really removed, alone, with surgeon's own plan and rewrite, and the mean cross entropy is
measured again: on the training images that the scores have seen, and on test images that they have not. Nothing
upstream of a cut changes, so each cut model starts from the dense activations in front of its first changed block:
exact, and half the work. Channels come in a shuffled order, so that a run cut short by ``--minutes`` is a fair sample.
Written after each channel to ``benchmarks/results/taylor.json``; a second run goes on where the first stopped.

    python benchmarks/taylor.py                # about 10 minutes on 2 cores
    python benchmarks/taylor.py --minutes 5    # bounded; run again to go on
    python benchmarks/taylor.py --quick        # 40 channels, 128 + 128 images
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from common import Images, Table, arguments, cifar10, drawn, output_path, pick_device, run_main, say, trained
from torch import nn
from torch.nn import functional

import surgeon

NETWORK = "resnet20-cifar10"
CRITERIA = ("taylor", "magnitude", "random")
RANDOM_SEEDS = 20  # one random ranking says little: its mean correlation and its spread over these
RAW = ", not normalised"  # behind a criterion's name
SAMPLES = 1000  # of the bootstrap
SMALLEST_GROUP = 4  # channels; below, a rank correlation of a group means nothing
BATCH = 128
Piece = Callable[[torch.Tensor], torch.Tensor]


def main() -> int:
    """Measure what is not there yet, then correlate all that is."""
    options = parse()
    device = pick_device(options)
    dense, stats = trained(NETWORK, device)
    settings = {"network": NETWORK, "seed": options.seed, "batch": BATCH}
    settings |= {"images": options.images, "test_images": options.test_images}
    table = Table.open(output_path(options), settings, device, fresh=options.fresh)
    seen = cifar10("train", stats, device, drawn(50_000, options.images, options.seed))
    unseen = cifar10("test", stats, device, drawn(10_000, options.test_images, options.seed))
    graph = surgeon.channel_graph(surgeon.trace(dense, seen.inputs[:2]))
    losses = {"seen": Ladder(dense, seen), "unseen": Ladder(dense, unseen)}
    table.facts["dense_loss"] = {name: ladder.dense_loss for name, ladder in losses.items()}
    measure_all(table, dense, graph, losses, options)
    scores = scores_of(graph, seen, options)
    table.facts["scores"] = {name: found for name, found in scores.items() if not name.startswith("random#")}
    table.facts["correlation"] = correlations(table, scores)
    table.write()
    report(table)
    return 0


def parse() -> argparse.Namespace:
    """Read the options; ``--quick`` narrows the images and the channels."""
    parser = arguments("Correlation of scores with the true change of loss on ResNet-20.", "taylor")
    parser.add_argument("--criteria", nargs="+", default=list(CRITERIA), help="to compare")
    parser.add_argument("--images", type=int, default=512, help="training images to rank on")
    parser.add_argument("--test-images", type=int, default=1024, help="images that the scores have not seen")
    parser.add_argument("--seed", type=int, default=0, help="of the images, the order and the bootstrap")
    parser.add_argument("--minutes", type=float, default=60.0, help="measure new channels for at most so long")
    parser.add_argument("--channels", type=int, default=None, help="at most so many in all (default: every one)")
    options = parser.parse_args()
    if options.quick:
        options.images, options.test_images, options.channels = 128, 128, 40
    return options


# ---------------------------------------------------------------- the true change of loss


class Ladder:
    """The dense model's activations in front of each piece of the network, to climb in at any of them."""

    def __init__(self, dense: nn.Module, images: Images) -> None:
        self.shapes = {name: tensor.shape for name, tensor in dense.state_dict().items()}
        self.targets = [targets for _, targets in images.batches(BATCH)]
        self.rungs: list[list[torch.Tensor]] = [[inputs for inputs, _ in images.batches(BATCH)]]
        with torch.inference_mode():
            for piece in pieces(dense)[:-1]:
                self.rungs.append([piece(x) for x in self.rungs[-1]])
        self.dense_loss = self.loss(dense)

    @torch.inference_mode()
    def loss(self, model: nn.Module) -> float:
        """Mean cross entropy of ``model`` in nats, summed in float64, from its first changed piece on."""
        start = self.first_changed(model)
        total = 0.0
        for x, targets in zip(self.rungs[start], self.targets, strict=True):
            for piece in pieces(model)[start:]:
                x = piece(x)
            total += float(functional.cross_entropy(x, targets, reduction="none").double().sum())
        return total / sum(map(len, self.targets))

    def first_changed(self, model: nn.Module) -> int:
        """Index of the first piece with a tensor of another shape; the dense model climbs in at the bottom."""
        names = [name for name, tensor in model.state_dict().items() if tensor.shape != self.shapes[name]]
        return min(map(piece_of, names), default=0)


def pieces(model: nn.Module) -> list[Piece]:
    """The shared ResNet for CIFAR as a chain: stem, nine blocks, head."""

    def stem(x: torch.Tensor) -> torch.Tensor:
        return functional.relu(part("bn1")(part("conv1")(x)))

    def head(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = part("linear")(part("pool")(x).flatten(1))
        return logits

    part = model.get_submodule
    blocks = [block for k in (1, 2, 3) for block in part(f"layer{k}").children()]
    return [stem, *blocks, head]


def piece_of(name: str) -> int:
    """The index in :func:`pieces` of the tensor ``name``; three blocks to a layer."""
    first, second = name.split(".")[:2]
    if first.startswith("layer"):
        return 1 + 3 * (int(first.removeprefix("layer")) - 1) + int(second)
    return 0 if first in ("conv1", "bn1") else 10


def measure_all(
    table: Table,
    dense: nn.Module,
    graph: surgeon.ChannelGraph,
    losses: Mapping[str, Ladder],
    options: argparse.Namespace,
) -> None:
    """Remove one channel after the other until all are done or the time is over; a row each."""
    todo = [(group.name, channel) for group in graph.groups for channel in group.channels]
    table.facts["channels"] = len(todo)
    random.Random(options.seed).shuffle(todo)
    todo = [(name, channel) for name, channel in todo[: options.channels] if f"{name}/{channel}" not in table.rows]
    blank = surgeon.make_plan(graph, surgeon.score(graph, "random"), filters=16)
    stop = time.monotonic() + 60 * options.minutes
    for done, (name, channel) in enumerate(todo):
        if time.monotonic() > stop:
            say(f"stopped after {options.minutes:g} minutes with {len(todo) - done} channels to go: run again to go on")
            return
        plan = surgeon.Plan(blank.model, {name: (channel,)}, blank.inputs)
        table.put(f"{name}/{channel}", {"group": name, "channel": channel} | change(dense, plan, losses))
        if done % 20 == 0:
            say(f"{done + 1} of {len(todo)} channels")


def change(dense: nn.Module, plan: surgeon.Plan, losses: Mapping[str, Ladder]) -> dict[str, Any]:
    """The change of loss when the plan is carried out, or why surgeon refuses it."""
    try:
        small = surgeon.rewrite(dense, plan)
    except surgeon.SurgeonError as reason:
        return {"refused": str(reason)}
    return {name: ladder.loss(small.eval()) - ladder.dense_loss for name, ladder in losses.items()}


# ---------------------------------------------------------------- scores and correlations


def scores_of(graph: surgeon.ChannelGraph, seen: Images, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every criterion's score of every channel, with and without each group's normalisation; ``random`` once per seed.

    Normalising doesn't change the order within a group, but it does over all: a group whose channels all matter is
    then no dearer than one whose channels don't.
    """
    found = {}
    for name in (n for n in options.criteria if n != "random"):
        scores = surgeon.score(graph, name, seen.batches(BATCH), seed=options.seed)
        found[name] = flat(graph, scores.normalised)
        found[name + RAW] = flat(graph, scores.raw)
    for seed in range(RANDOM_SEEDS if "random" in options.criteria else 0):
        found[f"random#{seed}"] = flat(graph, surgeon.score(graph, "random", seed=seed).raw)
    return found


def flat(graph: surgeon.ChannelGraph, scores: Any) -> dict[str, float]:
    """One number per channel of the graph, under the keys of the rows."""
    pairs = ((group, scores[group.numbers].tolist()) for group in graph.groups)
    return {f"{g.name}/{c}": value for g, values in pairs for c, value in zip(g.channels, values, strict=True)}


def correlations(table: Table, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Per criterion and per set of images: Spearman over all channels and averaged over groups."""
    keys = [key for key, row in table.rows.items() if "refused" not in row]
    result: dict[str, Any] = {}
    for where in ("seen", "unseen"):
        true = {key: table.rows[key][where] for key in keys}
        whole = {name: spearman_of(true, found, table) for name, found in scores.items()}
        result[where] = merged(whole) | {"loss_change": quartiles(list(true.values()))}
    return result


def spearman_of(true: Mapping[str, float], scores: Mapping[str, float], table: Table) -> dict[str, Any]:
    """One criterion: over all channels, with a bootstrap interval, and the mean over the groups with its spread."""
    keys = list(true)
    change, score = np.array([true[k] for k in keys]), np.array([scores[k] for k in keys])
    groups = defaultdict(list)
    for place, key in enumerate(keys):
        groups[table.rows[key]["group"]].append(place)
    each = [spearman(score[p], change[p]) for p in groups.values() if len(p) >= SMALLEST_GROUP]
    return {
        "all": spearman(score, change),
        "all_95": bootstrap(score, change, table.settings["seed"]),
        "all_absolute": spearman(score, np.abs(change)),
        "groups": statistics.fmean(each) if each else None,
        "groups_sd": statistics.stdev(each) if len(each) > 1 else None,
        "group_count": len(each),
        "channels": len(keys),
    }


def spearman(one: Any, other: Any) -> float:
    """Rank correlation; 0 where one side does not vary."""
    if len(set(one.tolist())) < 2 or len(set(other.tolist())) < 2:
        return 0.0
    return float(scipy.stats.spearmanr(one, other).statistic)


def bootstrap(one: Any, other: Any, seed: int) -> list[float]:
    """95 % interval of the rank correlation over resampled channels."""
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(one), len(one)) for _ in range(SAMPLES))
    low, high = np.quantile([spearman(one[d], other[d]) for d in draws], [0.025, 0.975])
    return [float(low), float(high)]


def merged(whole: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The random rankings as one entry: means, and the spread over the seeds."""
    several = [entry for name, entry in whole.items() if name.startswith("random#")]
    found = {name: entry for name, entry in whole.items() if not name.startswith("random#")}
    if several:
        found["random"] = several[0] | {
            key: statistics.fmean([entry[key] for entry in several])
            for key in ("all", "all_absolute", "groups")
            if several[0][key] is not None
        }
        low, high = np.quantile([entry["all"] for entry in several], [0.025, 0.975])
        found["random"] |= {"all_95": [float(low), float(high)], "seeds": len(several)}
    return found


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """How large the true changes are, in nats."""
    low, middle, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"q1": low, "median": middle, "q3": high, "least": min(values), "most": max(values)}


def report(table: Table) -> None:
    """Say the correlations."""
    refused = sum("refused" in row for row in table.rows.values())
    say(f"{len(table.rows)} of {table.facts['channels']} channels measured, {refused} refused")
    for where, found in table.facts["correlation"].items():
        for name in (n for n in found if n != "loss_change"):
            entry = found[name]
            groups = "-" if entry["groups"] is None else f"{entry['groups']:.3f}"
            say(f"{where:>7} images, {name:>25}: Spearman {entry['all']:.3f} over all, {groups} mean over groups")


if __name__ == "__main__":
    run_main(main)
