"""torch's own attention and transformer layers, in every way in which people call them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.zoo.base import NOTHING, Tokens, ZooNetwork, draw, zoo


class SelfAttention(ZooNetwork):
    """nn.MultiheadAttention of four heads around a residual connection."""

    shape, keeps = (2, 6, 10), ("fc",)
    cuts: ClassVar[tuple[str, ...]] = ("embed", "attn", "attn.out_proj")
    options: ClassVar[Any] = {"batch_first": True}
    call: ClassVar[Any] = {"need_weights": False}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.fc = nn.Linear(10, 16), nn.LayerNorm(16), nn.Linear(16, 5)
        self.attn = nn.MultiheadAttention(16, 4, **self.options)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = self.norm(x)
        return self.fc((x + self.attn(y, y, y, **self.call)[0]).mean(1))


@zoo
class TorchAttention(SelfAttention):
    """Batch first, no weights asked for."""


@zoo
class TorchAttentionTokensFirst(SelfAttention):
    """(tokens, batch, features), weights asked for and thrown away."""

    options: ClassVar[Any] = {}
    call = NOTHING


@zoo
class TorchAttentionNoBias(SelfAttention):
    """bias=False."""

    options: ClassVar[Any] = {"batch_first": True, "bias": False}


@zoo
class TorchAttentionBiasKv(SelfAttention):
    """A learnt key and value behind the sequence."""

    options: ClassVar[Any] = {"batch_first": True, "add_bias_kv": True}


@zoo
class TorchAttentionZero(SelfAttention):
    """A zero key and value behind the sequence."""

    options: ClassVar[Any] = {"batch_first": True, "add_zero_attn": True}


@zoo
class TorchAttentionOneHead(SelfAttention):
    """One head."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 1, batch_first=True)


class WithWeights(SelfAttention):
    """The weights are an output too."""

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y, weights = self.attn(x, x, x, **self.call)
        return {"logits": self.fc((x + y).mean(1)), "weights": weights}


@zoo
class TorchAttentionAverageWeights(WithWeights):
    """Weights averaged over the heads."""

    call: ClassVar[Any] = {"need_weights": True}


@zoo
class TorchAttentionHeadWeights(WithWeights):
    """Weights of each head: the number of heads is an output."""

    call: ClassVar[Any] = {"need_weights": True, "average_attn_weights": False}


@zoo
class TorchAttentionMasked(SelfAttention):
    """A causal mask and a key padding mask."""

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        causal = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[0, -1] = True
        y = self.attn(x, x, x, attn_mask=causal, key_padding_mask=padding, need_weights=False)[0]
        return self.fc((x + y).mean(1))


class CrossAttention(SelfAttention):
    """Queries from one input, keys and values from another."""

    cuts: ClassVar[tuple[str, ...]] = ("embed", "other", "attn", "attn.out_proj")
    widths_in: ClassVar[tuple[int, int]] = (16, 16)

    def __init__(self) -> None:
        super().__init__()
        key, value = self.widths_in
        self.other, self.third = nn.Linear(7, key), nn.Linear(7, value)
        self.attn = nn.MultiheadAttention(16, 4, kdim=key, vdim=value, **self.options)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (*super().example(), draw(2, 4, 7, seed=8))

    def forward(self, x: Tensor, memory: Tensor) -> Any:  # type: ignore[override]  # two inputs
        x = self.embed(x)
        key = torch.relu(self.other(memory))
        value = key if self.widths_in[0] == self.widths_in[1] else torch.relu(self.third(memory))
        return self.fc((x + self.attn(x, key, value, **self.call)[0]).mean(1))


@zoo
class TorchCrossAttention(CrossAttention):
    """Keys and values are as wide as the queries: the packed weight is taken apart."""


@zoo
class TorchCrossAttentionTwice(CrossAttention):
    """One attention for two rounds: its packed weight is taken apart in each, and takes what the scale does once."""

    def forward(self, x: Tensor, memory: Tensor) -> Any:  # type: ignore[override]  # two inputs
        q, k = self.embed(x), self.other(memory)
        for _ in range(2):
            q = q + self.attn(q, k, k, **self.call)[0]
        return self.fc(q.mean(1))


@zoo
class TorchCrossAttentionOwnWidths(CrossAttention):
    """kdim and vdim: three weights."""

    cuts = ("embed", "other", "third", "attn", "attn.out_proj")
    widths_in = (12, 8)


@zoo
class TorchCrossAttentionTokensFirst(CrossAttention):
    """kdim and vdim, tokens first, weights asked for."""

    cuts = ("embed", "other", "third", "attn", "attn.out_proj")
    widths_in: ClassVar[tuple[int, int]] = (12, 8)
    options: ClassVar[Any] = {}
    call = NOTHING

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (draw(6, 2, 10), draw(4, 2, 7, seed=8))


class Encoder(Tokens):
    """An encoder layer behind an embedding."""

    cuts: ClassVar[tuple[str, ...]] = (
        "embed",
        "mixer.self_attn",
        "mixer.self_attn.out_proj",
        "mixer.linear1",
        "mixer.linear2",
    )
    options: ClassVar[Any] = {}

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embed, self.fc = nn.Linear(10, 16), nn.Linear(16, 5)
        self.mixer = nn.TransformerEncoderLayer(16, 4, 24, **{"batch_first": True, **self.options})

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.mixer(self.embed(x)).mean(1))


@zoo
class EncoderPostNorm(Encoder):
    """As it comes: post-norm, ReLU."""


@zoo
class EncoderPreNormGelu(Encoder):
    """Pre-norm and GELU."""

    options: ClassVar[Any] = {"norm_first": True, "activation": "gelu"}


@zoo
class EncoderPostNormGelu(Encoder):
    """Post-norm and GELU."""

    options: ClassVar[Any] = {"activation": "gelu"}


@zoo
class EncoderTokensFirst(Encoder):
    """(tokens, batch, features)."""

    options: ClassVar[Any] = {"batch_first": False}


@zoo
class EncoderNoBias(Encoder):
    """bias=False all over."""

    options: ClassVar[Any] = {"bias": False, "norm_first": True}


@zoo
class EncoderStack(Encoder):
    """nn.TransformerEncoder: two layers and a norm."""

    cuts = ("embed", "mixer.layers.0.self_attn", "mixer.layers.1.self_attn.out_proj", "mixer.layers.1.linear1")

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.mixer: Any = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)


@zoo
class DecoderLayer(Encoder):
    """nn.TransformerDecoderLayer with a causal mask and a memory."""

    cuts = ("embed", "memory", "mixer.self_attn", "mixer.multihead_attn", "mixer.linear1", "mixer.linear2")

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Linear(7, 16)
        self.mixer: Any = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (*super().example(), draw(2, 4, 7, seed=8))

    def forward(self, x: Tensor, memory: Tensor) -> Any:  # type: ignore[override]  # two inputs
        x = self.embed(x)
        mask = torch.triu(torch.full((x.size(1), x.size(1)), float("-inf"), dtype=x.dtype), diagonal=1)
        return self.fc(self.mixer(x, self.memory(memory), tgt_mask=mask).mean(1))


@zoo
class WholeTransformer(ZooNetwork):
    """nn.Transformer from head to tail."""

    cuts, keeps = ("source", "target"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target, self.fc = nn.Embedding(11, 8), nn.Embedding(13, 8), nn.Linear(8, 13)
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return (torch.arange(10).view(2, 5), torch.arange(8).view(2, 4))

    def forward(self, source: Tensor, target: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64)
        return self.fc(self.transformer(self.source(source), self.target(target), tgt_mask=mask))
