"""Numbers that follow a width, where one weight stands in front of several of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.zoo.base import CONSTANT, ZooNetwork, zoo


class Steps(ZooNetwork):
    """An embedding of 16, `step` twice with the same layers, and a head."""

    shape: ClassVar[tuple[int, ...]] = (2, 6, 10)
    cuts: ClassVar[tuple[str, ...]] = ("stem", "query", "key", "value")
    keeps: ClassVar[tuple[str, ...]] = ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = nn.Linear(10, 16), nn.LayerNorm(16), nn.Linear(16, 5)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def step(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.step(self.step(self.stem(x))).mean(1))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each query's mean of the values."""
    return torch.softmax(query @ key.mT, dim=-1) @ value


@zoo
class ScaledTwice(Steps):
    """Universal transformer: the layers run twice, and each time divide by the root of what the forward knows."""

    def step(self, x: Tensor) -> Any:
        y = self.norm(x)
        return x + attend(self.query(y) / math.sqrt(x.shape[-1]), self.key(y), self.value(y))


@zoo
class ScaledInParts(Steps):
    """The same by two numbers, one behind the other: the weights in front take both."""

    def step(self, x: Tensor) -> Any:
        y, part = self.norm(x), x.shape[-1] ** -0.25
        return x + attend(self.query(y) * part * part, self.key(y), self.value(y))


@zoo
class ScaledBehindKeys(Steps):
    """Slot attention: keys made once meet the queries of each step, and the products are scaled."""

    def forward(self, x: Tensor) -> Any:
        key, value = self.key(x := self.stem(x)), self.value(x)
        for _ in range(2):
            scores = torch.matmul(self.query(self.norm(x)), key.mT) * x.shape[-1] ** -0.5
            x = x + torch.softmax(scores, dim=-1) @ value
        return self.fc(x.mean(1))


@zoo
class ScaledBothWays(Steps):
    """Two queries of one layer meet each other both ways: its weights would take the factor twice, and stay."""

    cuts, keeps, pins = (), ("query", "fc"), CONSTANT

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        one, other, scale = self.query(self.norm(x)), self.query(x), x.shape[-1] ** -0.5
        weights = torch.softmax(one @ other.mT * scale, -1) + torch.softmax(other @ one.mT * scale, -1)
        return self.fc(weights @ self.key(self.value(x)).relu())
