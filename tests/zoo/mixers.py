"""Token mixers, Fourier layers, einsum, and operators that are rarer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.base import Classifier, Tokens, ZooNetwork, draw, zoo


@zoo
class MlpMixer(Tokens):
    """Tokens by one MLP, channels by another."""

    cuts = ("embed", "mixer.tokens.0", "mixer.channels.0", "mixer.channels.2")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
            self.tokens = nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))
            self.channels = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))

        def forward(self, x: Tensor) -> Any:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))


@zoo
class SpatialGating(Tokens):
    """gMLP: half of the channels, normed and mixed over tokens, gates the other half."""

    cuts = ("embed", "mixer.enter", "mixer.leave")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave, self.norm = nn.Linear(16, 24), nn.Linear(12, 16), nn.LayerNorm(12)
            self.spatial = nn.Conv1d(6, 6, 1)

        def forward(self, x: Tensor) -> Any:
            first, second = F.gelu(self.enter(x)).chunk(2, dim=-1)
            return self.leave(first * self.spatial(self.norm(second)))


@zoo
class RowsAndColumns(Classifier):
    """Vision Permutator: one layer mixes each row with shares of the channels, another each column; both are added."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(16, 16), nn.Linear(16, 16)

    def mixed(self, x: Tensor, layer: nn.Module) -> Any:
        """`x (B, H, W, C)`; its second axis is mixed with C / H channels at a time."""
        b, h, w, c = x.shape
        x = x.reshape(b, h, w, h, c // h).transpose(1, 3).reshape(b, h, w, c)
        return layer(x).reshape(b, h, w, h, c // h).transpose(1, 3).reshape(b, h, w, c)

    def middle(self, x: Tensor) -> Any:
        x = F.max_pool2d(x, 2).permute(0, 2, 3, 1)
        columns = self.mixed(x.transpose(1, 2), self.columns).transpose(1, 2)
        return (self.mixed(x, self.rows) + columns).permute(0, 3, 1, 2)


@zoo
class FourierMixer(Tokens):
    """FNet over tokens only: the real part of an FFT along the sequence."""

    cuts = ("embed",)

    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.fft.fft(x, dim=1).real


@zoo
class GlobalFilter(Classifier):
    """GFNet: rfft2 over space, a learnt complex filter per channel, back."""

    def __init__(self) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(16, 8, 5, 2) * 0.02)

    def middle(self, x: Tensor) -> Any:
        y = torch.fft.rfft2(x, dim=(2, 3), norm="ortho") * torch.view_as_complex(self.complex_weight)
        return torch.fft.irfft2(y, s=x.shape[2:], dim=(2, 3), norm="ortho")


@zoo
class SpectralConvolution(Classifier):
    """FNO: low frequencies multiplied by a complex matrix over channels."""

    cuts, arrives = ("stem", "last"), 12

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = (nn.Parameter(torch.randn(16, 12, 3, 3)) for _ in range(2))

    def middle(self, x: Tensor) -> Any:
        y = torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], self.real.shape[1], y.shape[2], y.shape[3], dtype=y.dtype)
        weight = torch.complex(self.real, self.imaginary)
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", y[:, :, :3, :3], weight)
        return torch.fft.irfft2(out, s=x.shape[2:])


@zoo
class EinsumLayers(ZooNetwork):
    """einsum as a linear layer, as a channel-wise scale, and as a bilinear form."""

    shape, cuts, keeps = (2, 6, 10), ("up", "down"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.up, self.scale = nn.Parameter(torch.randn(10, 12)), nn.Parameter(torch.ones(12))
        self.down, self.fc = nn.Parameter(torch.randn(8, 12)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.einsum("btc,cd->btd", x, self.up).relu()
        x = torch.einsum("btd,d->btd", x, self.scale)
        return self.fc(torch.einsum("...d,ed->...e", x, self.down).mean(1))


@zoo
class TensorProducts(ZooNetwork):
    """tensordot, matmul with a raw matrix on the left, baddbmm, addmm."""

    shape, cuts, keeps = (2, 6, 10), ("first", "second"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(10, 12)), nn.Parameter(torch.randn(14, 12))
        self.bias, self.fc = nn.Parameter(torch.randn(14, 1)), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.tensordot(x, self.first, dims=([2], [0])).relu().transpose(1, 2)
        x = torch.baddbmm(self.bias[None], self.second.expand(x.shape[0], -1, -1), x).relu()
        return self.fc(x.mean(2))


@zoo
class BilinearForm(ZooNetwork):
    """nn.Bilinear of two branches."""

    shape, cuts, keeps = (2, 10), ("left", "right", "form"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(10, 8), nn.Linear(10, 6)
        self.form, self.fc = nn.Bilinear(8, 6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.relu(self.form(F.relu(self.left(x)), F.relu(self.right(x)))))


@zoo
class BagOfWords(ZooNetwork):
    """nn.EmbeddingBag with offsets, and an nn.Embedding with a padding index."""

    cuts, keeps, shapes = ("words", "hidden"), ("fc",), {"bag.weight": (11, 6), "words.weight": (11, 4)}

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.words = nn.EmbeddingBag(11, 12, mode="mean"), nn.Embedding(11, 8, padding_idx=0)
        self.hidden, self.fc = nn.Linear(20, 10), nn.Linear(10, 5)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (torch.arange(10) % 11, torch.tensor([0, 4]))

    def forward(self, tokens: Tensor, offsets: Tensor) -> Any:
        words = self.words(tokens.view(offsets.shape[0], -1)).mean(1)
        return self.fc(F.relu(self.hidden(torch.cat((self.bag(tokens, offsets), words), 1))))


@zoo
class Masked(Classifier):
    """torch.where, masked_fill, clamp and a mask made of the values."""

    def middle(self, x: Tensor) -> Any:
        x = torch.where(x > 0.1, x, 0.2 * x).masked_fill(x.mean(1, keepdim=True) < 0, 0.0)
        return x.clamp(max=1.5) * (x.sum((2, 3), keepdim=True) != 0)


@zoo
class GraphConvolution(ZooNetwork):
    """Neighbours summed by index_add and by a dense adjacency."""

    cuts, keeps = ("first", "second"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(7, 12), nn.Linear(12, 10), nn.Linear(10, 5)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        edges = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
        return draw(5, 7), edges, draw(5, 5, seed=8).softmax(-1)

    def forward(self, x: Tensor, edges: Tensor, adjacency: Tensor) -> Any:
        x = F.relu(self.first(x))
        x = x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.fc(F.relu(adjacency @ self.second(x)))


@zoo
class StateSpace(Tokens):
    """A diagonal state-space layer scanned step by step, with a depth-wise causal convolution."""

    cuts = ("embed", "mixer.enter", "mixer.leave")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(16, 24), nn.Linear(12, 16)
            self.conv, self.decay = nn.Conv1d(12, 12, 3, padding=2, groups=12), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Any:
            x, gate = self.enter(x).chunk(2, dim=-1)
            x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
            state, out = torch.zeros_like(x[:, 0]), []
            for step in x.unbind(1):
                state = torch.sigmoid(self.decay) * state + step
                out.append(state)
            return self.leave(torch.stack(out, 1) * F.silu(gate))
