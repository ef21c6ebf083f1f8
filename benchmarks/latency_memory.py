"""Cuts by bytes of activation, and by the time measured, against cuts by MACs, at equal MACs on a GPU."""

from __future__ import annotations

import argparse
import contextlib
from functools import lru_cache
from typing import NamedTuple

import torch
from accuracy_task import IMAGENET, read_task
from latency_rows import Row, images, kept_of, network, pace, random_images, target, times
from torch import nn

import surgeon
from surgeon.measure import footprint, latency

GPU_NETWORKS, GPU_BATCHES, GPU_DTYPES = ("resnet50", "vgg16_bn", IMAGENET), (1, 32, 256), ("float32", "bfloat16")
#: Widths in steps of so many, and no less.
GPU_STEPS = {"resnet50": 32, "vgg16_bn": 32, IMAGENET: 8}
GPU_FASTER = 1.2
BY_TIME = "fisher, by time"
PHOTOGRAPHS = 128  # that rank the filters of the trained network


def by_memory(name: str, batch: int, dtype: str, options: argparse.Namespace, device: torch.device) -> Row:
    """Coupled cuts by score per byte of activation, and by time, against score per MAC, all at the same MACs.

    Per MAC twice: of all channels, and of those alone that no other layer shares, which is all that many tools cut.
    """
    asked = name, options.macs, options.image_size
    cuts = {**by_criterion(*asked, device), BY_TIME: by_time(*asked, batch, device)}
    models, kept = {key: cut.model for key, cut in cuts.items()}, {key: cut.kept for key, cut in cuts.items()}
    x = images(2, options, device)
    measured = latency(models, x, rounds=options.rounds, dtype=dtype, layout="channels_last", batch_size=batch)
    macs = {key: footprint(m, x).macs for key, m in models.items()}
    activations = {key: footprint(m, x).activation_bytes for key, m in models.items()}
    rows = {key: pace(measured, macs, key) for key in models if key != "dense"}
    pace_of = {way: rows[key]["efficiency"] for way, key in (("memory", "fisher-memory"), ("time", BY_TIME))}
    targets = {
        f"by {way} / {key}, at equal MACs": target(found / rows[key]["efficiency"], ">=", GPU_FASTER)
        for way, found in pace_of.items() for key in rows if key not in ("fisher-memory", BY_TIME)
    }  # fmt: skip
    return {
        "macs": macs, "activation_bytes": activations, "score_kept": kept, "rows": rows, "times_s": times(measured),
        "conditions": dict(measured.conditions), "targets": targets,
    }  # fmt: skip


class Ranked(NamedTuple):
    """A model, and the share of the Fisher score that it kept."""

    model: nn.Module
    kept: float


def labelled(name: str, size: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random images, each of a class of its own; photographs for the network that was trained on such."""
    if name == IMAGENET:
        return list(read_task(name, device, 1).draw(PHOTOGRAPHS, 0).batches(8))
    x = random_images(8, size, device)
    return [(x, torch.arange(len(x), device=device))]


@lru_cache(maxsize=1)
def by_time(name: str, share: float, size: int, batch: int, device: torch.device) -> Ranked:
    """Fisher scores, and what may be spent in MACs planned by the times measured at this batch (float32)."""
    model = network(name, device)
    x = random_images(batch, size, device).contiguous(memory_format=torch.channels_last)
    graph = surgeon.channel_graph(surgeon.trace(model.to(memory_format=torch.channels_last), x))
    scores = surgeon.score(graph, "fisher", labelled(name, size, device))
    plan = surgeon.make_plan(graph, scores, max_macs=share, round_to="auto")
    return Ranked(surgeon.rewrite(model, plan), kept_of(scores, graph, plan))


@lru_cache(maxsize=1)
def by_criterion(name: str, share: float, size: int, device: torch.device) -> dict[str, Ranked]:
    """The dense network and its cuts to this share of the MACs."""
    step, model, batches = GPU_STEPS[name], network(name, device), labelled(name, size, device)
    graph = surgeon.channel_graph(surgeon.trace(model, batches[0][0][:2]))
    coupled = [layer for group in graph.groups if len(group.producers) > 1 for layer in group.producers]
    cuts: dict[str, tuple[str, list[str]]] = {"fisher-memory": ("fisher-memory", []), "fisher-mac": ("fisher-mac", [])}
    if coupled:
        cuts["fisher-mac, inner layers"] = ("fisher-mac", coupled)
    fisher = surgeon.score(graph, "fisher", batches)
    models = {"dense": Ranked(model, 1.0)}
    for key, (criterion, ignored) in cuts.items():
        scores = surgeon.score(graph, criterion, batches)
        with contextlib.suppress(surgeon.BudgetError):  # there may be too few of those that no other layer shares
            plan = surgeon.make_plan(
                graph, scores, max_macs=share, round_to=step, min_channels=step, ignored_layers=ignored
            )  # fmt: skip
            models[key] = Ranked(surgeon.rewrite(model, plan), kept_of(fisher, graph, plan))
    return models
