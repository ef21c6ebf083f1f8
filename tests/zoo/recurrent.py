"""Recurrent layers whose input and hidden sizes are cut, and cells in loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import ZooNetwork, draw, zoo


class Recurrent(ZooNetwork):
    """Embedding, a recurrent layer of width 12, a head on the mean of all steps."""

    shape, keeps = (2, 6, 7), ("fc",)
    cuts: ClassVar[tuple[str, ...]] = ("embed", "rnn")
    layer: ClassVar[Callable[..., nn.Module]] = nn.LSTM
    options: ClassVar[dict[str, Any]] = {}
    features: ClassVar[int] = 12

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Linear(7, 10), nn.Linear(self.features, 5)
        self.rnn = type(self).layer(10, 12, **{"batch_first": True, **self.options})

    def forward(self, x: Tensor) -> Any:
        out, _ = self.rnn(F.relu(self.embed(x)))
        return self.fc(out.mean(1))


@zoo
class LstmLayer(Recurrent):
    """One layer, batch first."""


@zoo
class LstmTokensFirst(Recurrent):
    """(tokens, batch, features); the last hidden state is what counts."""

    options: ClassVar[dict[str, Any]] = {"batch_first": False}

    def forward(self, x: Tensor) -> Any:
        _, (h, _) = self.rnn(F.relu(self.embed(x)))
        return self.fc(h[-1])


@zoo
class LstmTwoLayers(Recurrent):
    """Two layers with dropout between them."""

    options: ClassVar[dict[str, Any]] = {"num_layers": 2, "dropout": 0.1}


@zoo
class LstmBothWays(Recurrent):
    """Bidirectional: the directions' outputs are concatenated."""

    options, features = {"bidirectional": True}, 24


@zoo
class LstmBothWaysTwice(Recurrent):
    """Bidirectional, two layers."""

    options, features = {"bidirectional": True, "num_layers": 2}, 24


@zoo
class LstmProjected(Recurrent):
    """proj_size: the hidden state is narrower than the cell."""

    options, features = {"proj_size": 8}, 8


@zoo
class LstmProjectedTwice(Recurrent):
    """proj_size, two layers, both ways, no biases."""

    options, features = {"proj_size": 8, "num_layers": 2, "bidirectional": True, "bias": False}, 16


@zoo
class GruLayer(Recurrent):
    """A GRU."""

    layer = nn.GRU


@zoo
class GruTwoLayersBothWays(Recurrent):
    """A GRU, two layers, both ways."""

    layer, options, features = nn.GRU, {"num_layers": 2, "bidirectional": True}, 24


@zoo
class RnnTanh(Recurrent):
    """An Elman network."""

    layer = nn.RNN


@zoo
class RnnRelu(Recurrent):
    """An Elman network with ReLU, two layers."""

    layer, options = nn.RNN, {"nonlinearity": "relu", "num_layers": 2}


@zoo
class LstmWithState(Recurrent):
    """The first states are zeros of self.hidden_size, made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.num_layers, self.hidden_size = 1, 12

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(self.num_layers, x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        out, _ = self.rnn(F.relu(self.embed(x)), (h, torch.zeros_like(h)))
        return self.fc(out[:, -1, :])


@zoo
class LstmLearntState(Recurrent):
    """The first states are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.c = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 1, 12))

    def forward(self, x: Tensor) -> Any:
        state = (self.h.expand(-1, x.shape[0], -1).contiguous(), self.c.expand(-1, x.shape[0], -1).contiguous())
        return self.fc(self.rnn(F.relu(self.embed(x)), state)[0].mean(1))


@zoo
class EncoderDecoder(ZooNetwork):
    """The encoder's states start the decoder."""

    cuts, keeps = ("embed", "encoder", "decoder"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 8), nn.Linear(12, 9)
        self.encoder, self.decoder = (nn.GRU(8, 12, batch_first=True) for _ in range(2))

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (torch.arange(10).view(2, 5) % 9, torch.arange(8).view(2, 4))

    def forward(self, source: Tensor, target: Tensor) -> Any:
        _, state = self.encoder(self.embed(source))
        return self.fc(self.decoder(self.embed(target), state)[0])


@zoo
class PackedSequence(Recurrent):
    """Sequences of their own lengths, packed and padded again."""

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        lengths = torch.tensor([6, 6, 6, 5, 4, 4, 3, 2, 1])
        return draw(len(lengths), *cls.shape[1:]), lengths

    def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]  # its lengths come as well
        packed = nn.utils.rnn.pack_padded_sequence(F.relu(self.embed(x)), lengths, batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(out.mean(1))


@zoo
class LstmCellLoop(ZooNetwork):
    """nn.LSTMCell in a loop, its states made of self.cell.hidden_size."""

    shape, cuts, keeps = (2, 4, 7), ("embed", "cell"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.fc = nn.Linear(7, 10), nn.LSTMCell(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.embed(x))
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        c = torch.zeros_like(h)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return self.fc(h)


@zoo
class GruCellLoop(ZooNetwork):
    """nn.GRUCell in a loop, started with nothing."""

    shape, cuts, keeps = (2, 4, 7), ("embed", "cell"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.fc = nn.Linear(7, 10), nn.GRUCell(10, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x, h = F.relu(self.embed(x)), None
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.fc(h)


@zoo
class ConvGru(ZooNetwork):
    """A convolutional GRU: two gates from one convolution, split by self.hidden."""

    shape, cuts, keeps = (2, 3, 4, 6, 6), ("gates", "candidate"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 8
        self.gates, self.candidate = nn.Conv2d(11, 16, 3, padding=1), nn.Conv2d(11, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(x.shape[0], self.hidden, *x.shape[3:], dtype=x.dtype)
        for step in range(x.shape[2]):
            frame = x[:, :, step]
            reset, update = torch.split(torch.sigmoid(self.gates(torch.cat((frame, h), 1))), self.hidden, 1)
            new = torch.tanh(self.candidate(torch.cat((frame, reset * h), 1)))
            h = (1 - update) * h + update * new
        return self.fc(h.mean((2, 3)))


@zoo
class ImageToSequence(ZooNetwork):
    """CRNN: convolutions, columns as steps, an LSTM both ways."""

    shape, cuts, keeps = (2, 1, 4, 6), ("conv", "rnn"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(24, 5)
        self.rnn = nn.LSTM(8 * 4, 12, bidirectional=True)

    def forward(self, x: Tensor) -> Any:
        n, c, h, w = (x := F.relu(self.conv(x))).size()
        return self.fc(self.rnn(x.permute(3, 0, 1, 2).reshape(w, n, c * h))[0])


@zoo
class AttendedStates(Recurrent):
    """Two inputs: a query attends to an LSTM's states."""

    cuts = ("embed", "rnn", "query")

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4, 12)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (*super().example(), draw(2, 4, seed=8))

    def forward(self, x: Tensor, other: Tensor) -> Any:  # type: ignore[override]  # two inputs
        states, _ = self.rnn(self.embed(x))
        weights = torch.softmax(torch.bmm(states, self.query(other).unsqueeze(2)), dim=1)
        return self.fc((weights * states).sum(1))


@zoo
class MatrixState(Recurrent):
    """RWKV's heads: a state of zeros for each pair of key and value channels fades by a factor for each key channel."""

    cuts = ("embed", "keys", "values")

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(10, 12), nn.Linear(10, 12)
        self.fade, self.heads = nn.Parameter(torch.rand(3, 4)), 3

    def forward(self, x: Tensor) -> Any:
        b, t, _ = (x := self.embed(x)).shape
        keys = self.keys(x).view(b, t, self.heads, -1)
        values = self.values(x).view(b, t, self.heads, -1)
        state, steps = torch.zeros(b, self.heads, keys.shape[3], values.shape[3], dtype=x.dtype), []
        for step in range(t):
            state = state * self.fade.sigmoid()[..., None] + keys[:, step, :, :, None] * values[:, step, :, None]
            steps.append(keys[:, step, :, None] @ state)
        return self.fc(torch.stack(steps, 1).reshape(b, t, -1).mean(1))
