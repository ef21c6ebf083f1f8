"""Recurrent layers of the extended grammar: every layer of torch, with its options, and cells in loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.blocks.attending import image_of, tokens_of
from tests.blocks.base import Place, block, digits, even


@block(extended=True)
class Sequence(nn.Module):
    """LSTM, GRU, RNN over the pixels: layers, directions, projection, biases, batch first or second."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        kind, both, layers, bias, first, self.behind = digits(option, 5, 2, 2, 2, 2, 3)
        layer = (nn.LSTM, nn.GRU, nn.RNN, nn.RNN, nn.LSTM)[kind]
        options: dict[str, Any] = {"bidirectional": bool(both), "num_layers": layers + 1, "bias": not bias}
        if kind == 3:
            options["nonlinearity"] = "relu"
        width = max(3, width // 2)
        hidden = max(2, width - 2) if kind == 4 else width
        if kind == 4:
            options["proj_size"] = hidden
            width += 1
        self.first = first == 0
        self.enter = nn.Linear(place.channels, width)
        self.rnn = layer(width, width, batch_first=self.first, **options)
        self.leave = nn.Linear(hidden * (1 + both), place.channels)

    def forward(self, x: Tensor) -> Any:
        t = F.relu(self.enter(tokens_of(x)))
        out, _ = self.rnn(t if self.first else t.transpose(0, 1))
        out = self.leave(out if self.first else out.transpose(0, 1))
        if self.behind == 0:
            return image_of(out, x)
        return x + image_of(out, x) if self.behind == 1 else x * torch.sigmoid(image_of(out, x))


@block(extended=True)
class LastState(nn.Module):
    """The last hidden state is read, and gates every place; perhaps a second layer starts from it."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.lstm, self.chain = digits(option, 2, 2)
        layer = nn.LSTM if self.lstm else nn.GRU
        width = max(3, width // 2)
        self.rnn, self.again = layer(place.channels, width, batch_first=True), layer(place.channels, width)
        self.leave = nn.Linear(width, place.channels)

    def forward(self, x: Tensor) -> Any:
        t = tokens_of(x)
        _, state = self.rnn(t)
        if self.chain:
            _, state = self.again(t.transpose(0, 1), state)
        last = state[0][-1] if self.lstm else state[-1]
        gate = torch.sigmoid(self.leave(last))
        return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))


@block(extended=True)
class Cells(nn.Module):
    """A cell of torch called once for each of four places, its state from the cell's size, an attribute, or nothing."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        self.kind, self.start = digits(option, 3, 3)
        width = max(3, width // 2)
        cell = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)[self.kind]
        self.hidden = width
        self.cell, self.leave = cell(place.channels, width), nn.Linear(width, place.channels)

    def first(self, t: Tensor) -> Tensor | None:
        if self.start == 0:
            return None
        size = self.hidden if self.start == 1 else self.cell.hidden_size
        return torch.zeros(t.shape[0], size, dtype=t.dtype)

    def forward(self, x: Tensor) -> Any:
        t, h = tokens_of(x), self.first(tokens_of(x))
        state: Any = (h, h) if self.kind == 0 and h is not None else h
        for step in t[:, :4].unbind(1):
            state = self.cell(step, state)
        out = self.leave(state[0] if self.kind == 0 else state)
        return x + out.view(*out.shape, *(1,) * (x.ndim - 2))


@block(extended=True)
class GatedLoop(nn.Module):
    """A minimal gated unit by hand over three calls of one pair of layers, gates from one matrix."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 3)
        self.hidden = even(width) // 2
        self.gates = nn.Linear(place.channels + self.hidden, 2 * self.hidden)
        self.candidate = nn.Linear(place.channels + self.hidden, self.hidden)
        self.leave = nn.Linear(self.hidden, place.channels)

    def split(self, both: Tensor) -> Any:
        if self.kind == 0:
            return both.chunk(2, -1)
        if self.kind == 1:
            return torch.split(both, self.hidden, dim=-1)
        return both[..., : self.hidden], both[..., self.hidden :]

    def forward(self, x: Tensor) -> Any:
        t = tokens_of(x)
        h = torch.zeros(*t.shape[:2], self.hidden, dtype=t.dtype)
        for _ in range(3):
            reset, update = self.split(torch.sigmoid(self.gates(torch.cat((t, h), -1))))
            new = torch.tanh(self.candidate(torch.cat((t, reset * h), -1)))
            h = (1 - update) * h + update * new
        return x + image_of(self.leave(h), x)


@block(extended=True)
class StateSpace(nn.Module):
    """Mamba's outline: two halves, a causal depth-wise convolution, a diagonal scan, a gate."""

    def __init__(self, place: Place, width: int, option: int) -> None:
        super().__init__()
        (self.kind,) = digits(option, 2)
        self.inner = max(2, width // 2)
        self.enter, self.leave = nn.Linear(place.channels, 2 * self.inner), nn.Linear(self.inner, place.channels)
        self.conv = nn.Conv1d(self.inner, self.inner, 3, padding=2, groups=self.inner)
        self.decay = nn.Parameter(torch.randn(self.inner))

    def forward(self, x: Tensor) -> Any:
        both = self.enter(tokens_of(x))
        t, gate = both.chunk(2, dim=-1) if self.kind else both.split([self.inner, self.inner], dim=-1)
        t = F.silu(self.conv(t.transpose(1, 2))[..., : t.shape[1]].transpose(1, 2))
        state, out = torch.zeros_like(t[:, 0]), []
        for step in t[:, :6].unbind(1):
            state = torch.sigmoid(self.decay) * state + step
            out.append(state)
        t = torch.cat((torch.stack(out, 1), t[:, 6:]), 1)
        return x + image_of(self.leave(t * F.silu(gate)), x)
