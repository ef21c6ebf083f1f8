"""Complex numbers: recorded, cut, proven and scored like real ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.channels import analyse, label
from surgeon.criteria.gates import GatedModel
from surgeon.errors import VerificationError
from surgeon.tracing import Inputs, operator_name, record

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Waves(nn.Module):
    """A complex product between real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(5, 3)
        self.real, self.imaginary = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, 1.0)

    def gated(self, x: Tensor, gate: Tensor | float) -> Tensor:
        x = self.first(x)
        x = torch.complex(x, x.sin()) * (1 + 0.3j) * gate
        return self.last((x @ torch.complex(self.real, self.imaginary)).abs())  # type: ignore[no-any-return]


class Spectrum(nn.Module):
    """A complex result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.last(self.first(x).relu()))  # type: ignore[no-any-return]


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().eval()


@pytest.mark.parametrize("kind", [Waves, Spectrum])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cut_through_complex_numbers_is_proven(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model = made(kind).to(dtype)
    result = surgeon.prune(model, X.to(dtype), ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.report.check.error < 1e-12
    assert {row.name: row.after for row in result.report.layers}["first"] == 4


def test_a_complex_result_that_differs_is_caught() -> None:
    model = made(Spectrum)
    result = surgeon.prune(model, X, ratio=0.5, criterion="random", verify=False)
    wrong = copy.deepcopy(result.model)
    wrong.forward = lambda x: result.model(x).conj()  # the real parts still agree
    with pytest.raises(VerificationError):
        surgeon.verify(model, wrong, result.plan, X)


def test_a_gate_on_complex_numbers_is_the_derivative() -> None:
    model = made(Waves)
    assert isinstance(model, Waves)
    structure = analyse(label(record(model, Inputs((X,)))))
    gated = GatedModel(structure, model)
    gated(X).sum().backward()
    start = structure.labels.space.starts[structure.labels.space.index["first.weight", 0]]
    step = torch.zeros(8, dtype=torch.float64)
    step[2] = 1e-6
    with torch.no_grad():
        wanted = (model.gated(X, 1 + step) - model.gated(X, 1 - step)).sum(1) / 2e-6
    torch.testing.assert_close(gated.gates[:, structure.channel[start + 2]], wanted, rtol=1e-7, atol=1e-8)


def test_a_call_that_writes_beside_its_result_is_recorded() -> None:
    """It writes noise, not the input that it reads: nothing of the caller's would change."""
    trace = surgeon.trace(nn.Sequential(nn.RReLU(), nn.Linear(6, 3)).double(), X)
    assert "rrelu_with_noise" in {operator_name(node) for node in trace.calls}
