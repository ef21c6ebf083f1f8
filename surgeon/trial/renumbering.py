"""Tensors of channel numbers: of a model that keeps some channels they are renumbered, never only sliced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from surgeon.channels import ChannelGraph
from surgeon.channels.structure import Flags, Ints

#: Of each tensor of channel numbers, by name, the numbers in the small model.
ChannelNumbers = Mapping[str, Tensor]


def renumbered(graph: ChannelGraph, kept: Flags) -> dict[str, Tensor]:
    """The numbers when these channels stay (bool per channel): the entries of kept channels, as places among those.

    A tensor whose uses don't agree on them, because they number different channels, is left out: the trial finds the
    place then.
    """
    structure, stays = graph.structure, np.append(kept, True)
    found: dict[str, Ints] = {}
    disagreeing = set()
    for node, labels in structure.labels.ledger.indexed:
        name = str(node.target)
        places = stays[structure.of(labels)]  # the axis that is numbered
        numbers = np.where(places, np.cumsum(places) - 1, -1)[graph.trace.tensors[name].cpu().numpy()]
        numbers = numbers[stays[structure.along(name, 0)]]
        if not np.array_equal(found.setdefault(name, numbers), numbers):
            disagreeing.add(name)
    return {name: torch.from_numpy(numbers) for name, numbers in found.items() if name not in disagreeing}
