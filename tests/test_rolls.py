"""Deliberately wrong wirings: the index of each consumer rolled by one in turn, every one caught by verify."""

from __future__ import annotations

import copy

import pytest
import torch

import surgeon
from surgeon.errors import VerificationError
from tests.test_zoo import build
from tests.zoo import ZOO

NETWORKS = (
    "PlainChain",
    "ResidualIdentity",
    "DenseList",
    "EqualSplit",
    "ChannelShuffle",
    "SqueezeExcite",
    "FusedAttention",
    "LayerNormLast",
    "FlattenLinear",
    "CalledTwice",
    "UNet",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_rolled_consumer_is_caught(name: str) -> None:
    model, inputs = build(name), ZOO[name].example()
    result = surgeon.prune(model, inputs, ratio=0.4, scope="local", criterion="random")
    graph = surgeon.channel_graph(surgeon.trace(model, inputs))
    consumers = {
        (member.tensor, member.axis)
        for group in graph.groups
        if group.name in result.plan.removed
        for member in group.members
        if member.role == "consumes"
    }
    rolled = 0
    for tensor, axis in sorted(consumers):
        small = copy.deepcopy(result.model)
        weight = small.get_parameter(tensor)
        if weight.shape[axis] == 1:
            continue
        with torch.no_grad():
            weight.copy_(weight.roll(1, axis))
        rolled += 1
        with pytest.raises(VerificationError):
            surgeon.verify(model, small, result.plan, inputs)
    assert rolled, "no consumer was rolled: this network shows nothing"
    surgeon.verify(model, result.model, result.plan, inputs)
