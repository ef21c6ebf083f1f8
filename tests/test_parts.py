"""Calls that only a GPU makes, as they are recorded: the numbers of the others, and cut like them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon.tracing import parts
from surgeon.tracing.indices import check_places
from tests.test_zoo import build, inputs_of

_aten = torch.ops.aten


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_cells_are_torchs_own(bias: bool) -> None:
    x, h, c = drawn(3, 5), drawn(3, 4), drawn(3, 4)
    with torch.no_grad():
        lstm, gru = (kind(5, 4, bias=bias).double() for kind in (nn.LSTMCell, nn.GRUCell))
        hidden, cell = lstm(x, (h, c))
        ours = parts.lstm_cell(
            x @ lstm.weight_ih.t(), h @ lstm.weight_hh.t(), c, *([lstm.bias_ih, lstm.bias_hh] if bias else [])
        )
        torch.testing.assert_close(ours[:2], (hidden, cell))
        state = parts.gru_cell(
            x @ gru.weight_ih.t(), h @ gru.weight_hh.t(), h, *([gru.bias_ih, gru.bias_hh] if bias else [])
        )
        torch.testing.assert_close(state[0], gru(x, h))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_norm_is_torchs_own(dtype: torch.dtype, eps: float | None, scaled: bool) -> None:
    x, weight = drawn(2, 3, 4).to(dtype), drawn(3, 4).to(dtype) if scaled else None
    ours, _ = parts.rms_norm(x, [3, 4], weight, eps)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, F.rms_norm(x, [3, 4], weight, eps))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "size"), [(0, (5, 1, 1)), (2, (1, 1, 3))])
def test_weight_norm_is_torchs_own(dtype: torch.dtype, dim: int, size: tuple[int, ...]) -> None:
    v, g = drawn(5, 4, 3).to(dtype), drawn(*size).to(dtype)
    ours, norms = parts.weight_norm(v, g, dim)
    assert (ours.dtype, norms.shape) == (dtype, size)
    torch.testing.assert_close(ours, torch._weight_norm(v, g, dim))


def test_random_slopes_are_recorded_as_the_call_that_draws_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return self.last(_aten.rrelu_with_noise_functional(x, torch.empty_like(x))[0])

    model = Model().double().eval()
    result: Any = surgeon.prune(model, drawn(2, 4), ratio=0.5, scope="local", criterion="magnitude")
    assert result.report.check.status == "passed"
    assert result.model.first.out_features == 4


def fused_lstm_cell(
    x: Tensor, state: Iterable[Tensor], w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What torch calls on a GPU; a recording takes it apart, nothing else runs it on a CPU."""
    h, c = state
    made: tuple[Tensor, Tensor, Tensor] = _fused(_aten._thnn_fused_lstm_cell, parts.lstm_cell)(
        x.mm(w_ih.t()), h.mm(w_hh.t()), c, *biases
    )
    return made[0], made[1]


def fused_gru_cell(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, *biases: Tensor | None) -> Tensor:
    made: tuple[Tensor, Tensor] = _fused(_aten._thnn_fused_gru_cell, parts.gru_cell)(
        x.mm(w_ih.t()), h.mm(w_hh.t()), h, *biases
    )
    return made[0]


def fused_rms_norm(x: Tensor, size: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    made: tuple[Tensor, Tensor] = _fused(_aten._fused_rms_norm, parts.rms_norm)(x, size, weight, eps)
    return made[0]


def _fused(fused: Any, elsewhere: Callable[..., Any]) -> Callable[..., Any]:
    """The GPU's call where it is recorded, its parts in a plain forward."""
    return fused if torch.utils._python_dispatch._get_current_dispatch_mode() is not None else elsewhere


@pytest.mark.parametrize("name", ["LstmCellLoop", "GruCellLoop", "QkRmsNormed"])
def test_a_network_is_cut_as_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = surgeon.prune(build(name), inputs_of(name), ratio=0.5, scope="local", criterion="magnitude")
    monkeypatch.setattr(torch._VF, "lstm_cell", fused_lstm_cell, raising=False)
    monkeypatch.setattr(torch._VF, "gru_cell", fused_gru_cell, raising=False)
    monkeypatch.setattr(F, "rms_norm", fused_rms_norm)
    fused = surgeon.prune(build(name), inputs_of(name), ratio=0.5, scope="local", criterion="magnitude")
    assert fused.report.check is not None
    assert fused.report.check.status == "passed"
    assert plain.plan.removed == fused.plan.removed


def elsewhere(*numbers: int) -> Any:
    """Whole numbers that say they were on a GPU."""

    class Elsewhere(Tensor):
        device = torch.device("cuda")

    return torch.tensor(numbers).as_subclass(Elsewhere)


X = torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (_aten.index.Tensor, (X, [None, elsewhere(0, 9)])),
        (_aten.index.Tensor, (X, [elsewhere(-3)])),
        (_aten.index_select.default, (X, 1, elsewhere(6))),
        (_aten.index_select.default, (X, 1, elsewhere(-1))),
        (_aten.embedding.default, (X, elsewhere(2))),
        (_aten.take.default, (X, elsewhere(12))),
        (_aten.gather.default, (X, 1, elsewhere(6))),
        (_aten.scatter.src, (X, 0, elsewhere(2), X)),
        (_aten.index_put.default, (X, [elsewhere(2)], X)),
    ],
)
def test_a_place_that_is_not_there_is_an_error_on_any_device(call: Any, args: tuple[Any, ...]) -> None:
    """On a GPU it is an assertion that ends the whole process's use of it."""
    with pytest.raises(IndexError, match="out of bounds"):
        check_places(call, args)


def test_places_that_are_there_are_none() -> None:
    check_places(_aten.index.Tensor, (X, [elsewhere(-2, 1), elsewhere(5, -6)]))
    check_places(_aten.gather.default, (X, 1, elsewhere(5)))
    check_places(_aten.index_select.default, (torch.zeros(()), 0, elsewhere(0)))
    check_places(_aten.index.Tensor, (X, [elsewhere().bool()]))
