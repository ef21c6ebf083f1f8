"""A small network that draws random numbers, data for it, and what stops a run at any item."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import surgeon
import surgeon.iteration.running

X = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()


class Net(nn.Module):
    """Two convolutions with batch norm, dropout (so a run draws random numbers) and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        result: Tensor = self.head(self.drop(x.mean((2, 3))))
        return result


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


tune: Callable[..., surgeon.Tuned] = surgeon.tune  # with arguments that the types forbid


def line() -> nn.Linear:
    """A 2 -> 3 layer with known weights."""
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.25, -2.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    return layer


ONE = (torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([0, 2]))


def loader(size: int = 8, *, shuffle: bool = True, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), size, shuffle=shuffle, **kwargs)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def same_state(one: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    ours, theirs = one.state_dict()["state"], other.state_dict()["state"]
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[i][k], theirs[i][k]) if isinstance(ours[i][k], Tensor) else ours[i][k] == theirs[i][k]
        for i in ours
        for k in ours[i]
    )


EPOCHS = 4


class Stop(BaseException):
    """An interruption."""


class Breaking(Dataset[Any]):
    """The data, of which the n-th item that is asked for stops everything."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.left -= 1
        if self.left == 0:
            raise Stop
        return X[index] + 0.1 * torch.randn(3, 6, 6) + random.random() + np.random.rand(), Y[index]  # noqa: NPY002
