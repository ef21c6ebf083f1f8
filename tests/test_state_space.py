"""Heads with a state: two labelled axes become one, and each head has lost places of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon

BATCH, STEPS, HEADS, PLACES, STATE = 1, 6, 3, 8, 10


class States(nn.Module):
    """Each head writes the product of its places and a state that all heads share, and reads it step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim, self.state = PLACES, STATE
        self.values, self.into, self.back = nn.Linear(6, HEADS * PLACES), nn.Linear(6, STATE), nn.Linear(6, STATE)
        self.decay, self.last = nn.Linear(6, HEADS), nn.Linear(HEADS * PLACES, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x).view(BATCH, STEPS, -1, self.head_dim)
        states = torch.einsum("bln,blhp->bhlpn", self.into(x), values)
        decay = self.decay(x).permute(0, 2, 1)[..., None] * torch.ones(1, 1, 1, STEPS).tril()
        mixed = torch.einsum("bhlz,bhzpn->bhlpn", decay, states)  # places and state are one axis of a matrix here
        read = torch.einsum("bln,bhlpn->blhp", self.back(x), mixed)
        result: Tensor = self.last(read.reshape(BATCH, STEPS, -1))
        return result


@pytest.mark.parametrize("seed", range(3))
def test_heads_and_their_states_are_cut(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = States().eval(), torch.randn(BATCH, STEPS, 6)
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random", seed=seed)
    check = result.report.check
    assert check is not None
    assert check.status == "passed", check
    assert {row.name: row.after for row in result.report.layers} == {
        "values": HEADS * PLACES // 2, "into": STATE // 2, "back": STATE // 2, "decay": HEADS, "last": 5,
    }  # fmt: skip
