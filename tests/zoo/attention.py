"""Attention with separate projections, in the ways in which people split it into heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo.base import Tokens, ZooNetwork, zoo

SEPARATE = ("embed", "mixer.q", "mixer.k", "mixer.v", "mixer.proj")


class SeparateHeads(nn.Module):
    """Four heads of four: head count and head size are attributes, and so is the scale."""

    def __init__(self, dim: int = 16, heads: int = 4, head_dim: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, head_dim, head_dim**-0.5
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim) for _ in range(3))
        self.proj = nn.Linear(heads * head_dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.softmax((q @ k.transpose(-2, -1)) * self.scale, dim=-1)
        return weights @ v

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.num_heads * self.head_dim)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        return self.proj(self.merge(self.attend(q, k, v)))


@zoo
class AttentionByAttributes(Tokens):
    """view(b, n, self.num_heads, self.head_dim), scaled by self.scale."""

    cuts, Mixer = SEPARATE, SeparateHeads


@zoo
class AttentionCalledByItsMethods(Tokens):
    """The program calls forward and other methods themselves; the numbers are held by the module whose they are."""

    cuts = SEPARATE

    def forward(self, x: Tensor) -> Any:
        x, mixer = self.embed.forward(x), self.mixer
        assert isinstance(mixer, SeparateHeads)
        q, k, v = (mixer.split(layer.forward(x)) for layer in (mixer.q, mixer.k, mixer.v))
        x = x + mixer.proj(mixer.merge(mixer.attend(q, k, v)))
        return self.fc((x + self.mixer.forward(x)).mean(1))

    Mixer = SeparateHeads


@zoo
class AttentionMinusOne(Tokens):
    """The head size is -1, the scale is read from the shape."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def split(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.mT / math.sqrt(q.size(-1)), dim=-1) @ v

        def merge(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


@zoo
class AttentionHeadsMinusOne(Tokens):
    """The head count is -1 behind the head size; the scale is handed to the fused operator."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def split(self, x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

        def merge(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2).flatten(2)


@zoo
class AttentionChoosesKernels(Tokens):
    """The forward says itself which kernels may compute attention, a fused one among them."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                return F.scaled_dot_product_attention(q, k, v, scale=self.scale)


@zoo
class AttentionDimOverHeads(Tokens):
    """``c // self.num_heads`` from the shape that arrives: the inner width is tied to the outer one."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def forward(self, x: Tensor) -> Any:
            b, n, c = x.shape
            q, k, v = (f(x).view(b, n, self.num_heads, c // self.num_heads) for f in (self.q, self.k, self.v))
            out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            return self.proj(out.transpose(1, 2).contiguous().view(b, n, c))


@zoo
class AttentionHardDim(Tokens):
    """``self.dim // self.num_heads`` in the forward, and a scale that is a plain tensor."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.root = 16, torch.sqrt(torch.tensor([4.0], dtype=torch.float64))

        def split(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0], -1, self.num_heads, self.dim // self.num_heads).permute(0, 2, 1, 3)

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.matmul(torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / self.root, dim=-1), v)

        def merge(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 1, 3).contiguous().view(x.shape[0], -1, self.dim)


@zoo
class AttentionBert(Tokens):
    """As in BERT: the whole width stands in an attribute too, and each part has its LayerNorm."""

    cuts = ("embed", "mixer.query", "mixer.key", "mixer.value", "mixer.dense")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_attention_heads, self.attention_head_size = 4, 4
            self.all_head_size = self.num_attention_heads * self.attention_head_size
            self.query, self.key, self.value = (nn.Linear(16, self.all_head_size) for _ in range(3))
            self.dense, self.norm = nn.Linear(self.all_head_size, 16), nn.LayerNorm(16)

        def transpose_for_scores(self, x: Tensor) -> Tensor:
            shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
            return x.view(shape).permute(0, 2, 1, 3)

        def forward(self, x: Tensor) -> Any:
            key = self.transpose_for_scores(self.key(x))
            value, query = self.transpose_for_scores(self.value(x)), self.transpose_for_scores(self.query(x))
            scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
            out = torch.matmul(F.softmax(scores, dim=-1), value).permute(0, 2, 1, 3).contiguous()
            out = out.view(*out.size()[:-2], self.all_head_size)
            return self.norm(self.dense(out) + x)


@zoo
class AttentionCosine(Tokens):
    """As in Swin v2: a bias from a small network with an in-place activation, between two numbers that must follow.

    An unfinished run holds views of the activation that nobody reads in a finished one.
    """

    cuts = ("embed", "mixer.query", "mixer.key", "mixer.value", "mixer.bias.0", "mixer.dense")
    keeps = ("mixer.bias.2",)

    class Mixer(nn.Module):
        places: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.heads, self.head_size, self.all_head_size = 4, 4, 16
            self.query, self.key, self.value, self.dense = (nn.Linear(16, 16) for _ in range(4))
            self.bias = nn.Sequential(nn.Linear(2, 12), nn.ReLU(inplace=True), nn.Linear(12, 4, bias=False))
            self.register_buffer("places", torch.arange(50.0).view(1, 5, 5, 2) / 50)

        def split(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0], -1, self.heads, self.head_size).transpose(1, 2)

        def forward(self, x: Tensor) -> Any:
            query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            scores = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
            bias = self.bias(self.places).view(-1, self.heads).mean(0).view(1, -1, 1, 1)
            out = (scores + torch.sigmoid(bias)).softmax(-1) @ value
            out = out.permute(0, 2, 1, 3).contiguous()
            return self.dense(out.view((*out.size()[:-2], self.all_head_size))) + x


@zoo
class AttentionOneHead(Tokens):
    """One head, no view at all; q and k are narrower than v."""

    cuts = SEPARATE

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, n) for n in (8, 8, 12))
            self.proj = nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.q(x), self.k(x), self.v(x)
            return self.proj(F.softmax(torch.bmm(q, k.transpose(1, 2)) / q.shape[-1] ** 0.5, -1).bmm(v))


@zoo
class ConvAttention(ZooNetwork):
    """Non-local block: 1x1 convolutions over an image, positions flattened."""

    shape, cuts, keeps = (2, 10, 4, 4), ("embed", "query", "key", "value", "out"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Conv2d(10, 16, 1), nn.Linear(16, 5)
        self.query, self.key, self.value = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out, self.gamma = nn.Conv2d(8, 16, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        b, _, h, w = x.size()
        q = self.query(x).view(b, -1, h * w).permute(0, 2, 1)
        weights = torch.softmax(torch.bmm(q, self.key(x).view(b, -1, h * w)), dim=-1)
        out = torch.bmm(self.value(x).view(b, -1, h * w), weights.permute(0, 2, 1)).view(b, -1, h, w)
        return self.fc((self.gamma * self.out(out) + x).mean((2, 3)))


@zoo
class AttentionWithoutShortcut(ZooNetwork):
    """nn.MultiheadAttention whose input, heads and output nothing ties but the module itself."""

    shape, cuts, keeps = (2, 7, 10), ("embed", "attention"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(10, 24), nn.MultiheadAttention(24, 6, batch_first=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.fc(self.attention(x, x, x)[0])


class Arranged(nn.Module):
    """Splits the last axis into heads of a size that it has worked out once, and says what it was made from."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self._plan = tuple(sizes.items())

    def __getstate__(self) -> Any:
        return {"sizes": self.sizes}

    def __setstate__(self, state: Any) -> None:
        self.__init__(**state["sizes"])  # type: ignore[misc]  # as einops' layers do it

    def forward(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, dict(self._plan)["size"]).transpose(1, 2)


@zoo
class AttentionByArrangedSizes(Tokens):
    """The head size is held by a layer without weights, which is built anew from its state (einops' Rearrange)."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def __init__(self) -> None:
            super().__init__()
            self.arrange = Arranged(size=self.head_dim)

        def split(self, x: Tensor) -> Tensor:
            heads: Tensor = self.arrange(x)
            return heads

        def merge(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2).flatten(2)
