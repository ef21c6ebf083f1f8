"""Sparse matrices that a forward multiplies by: an adjacency among the inputs or held by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.errors import ModelError


def adjacency(size: int) -> Tensor:
    torch.manual_seed(size)
    return (torch.rand(size, size) > 0.5).float() + torch.eye(size)


class Convolutions(nn.Module):
    """Two graph convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        x = torch.relu(torch.spmm(edges, self.first(x)))
        return self.head(torch.relu(edges @ self.second(x)))


class Factors(nn.Module):
    """Embeddings of users and items that a matrix of the model's own spreads, as LightGCN does."""

    def __init__(self, keep: Callable[[Tensor], Tensor], *, buffer: bool = False) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(6, 16), nn.Embedding(5, 16)
        edges: Any = keep(adjacency(11))
        if buffer:
            self.register_buffer("edges", edges)
        else:
            self.edges = edges

    def forward(self, users: Tensor, items: Tensor) -> Any:
        x = torch.cat((self.users.weight, self.items.weight))
        x = x + torch.sparse.mm(self.edges, x) + torch.sparse.addmm(x, self.edges, x)
        every, other = x.split((6, 5))
        return (every[users] * other[items]).sum(-1)


PAIRS = torch.tensor([0, 1, 5]), torch.tensor([0, 4, 2])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")  # torch's own word, once in a process
@pytest.mark.parametrize("form", [Tensor.to_sparse_coo, Tensor.to_sparse_csr])
def test_a_sparse_input_is_one_like_any_other(form: Callable[[Tensor], Tensor]) -> None:
    model, x = Convolutions().eval(), torch.randn(7, 6)
    edges = form(adjacency(7))
    before = edges.to_dense()
    result = surgeon.prune(model, (x, edges), ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.model.get_parameter("second.weight").shape == (6, 8)
    assert torch.equal(edges.to_dense(), before)
    assert result.model(torch.randn(9, 6), form(adjacency(9))).shape == (9, 3)


def test_a_sparse_matrix_that_the_model_holds_stays() -> None:
    result = surgeon.prune(Factors(Tensor.to_sparse_coo).eval(), PAIRS, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert {tuple(p.shape) for p in result.model.parameters()} == {(6, 8), (5, 8)}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            lambda: Factors(Tensor.to_sparse_coo, buffer=True),
            r"Factors.edges is stored with the weights and sparse .* as an input",
        ),
        (lambda: Factors(Tensor.to_sparse_csr), r"Factors.edges is sparse .* form of to_sparse_coo\(\)"),
    ],
    ids=["buffer", "compressed"],
)
def test_what_cannot_be_copied_or_stored_is_refused(model: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        surgeon.prune(model().eval(), PAIRS, ratio=0.5, criterion="random")
