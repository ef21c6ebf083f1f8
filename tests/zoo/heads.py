"""Attention whose heads are shared, mixed, normed, or linear in the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from tests.zoo.attention import SEPARATE, SeparateHeads
from tests.zoo.base import Tokens, zoo
from tests.zoo.fused import FUSED, FusedHeads


class GroupedHeads(nn.Module):
    """Four query heads on two key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 4
        self.num_key_value_groups = self.num_heads // self.num_kv_heads
        self.q, self.k, self.v = nn.Linear(16, 16, bias=False), nn.Linear(16, 8), nn.Linear(16, 8)
        self.proj = nn.Linear(16, 16, bias=False)

    def repeat(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.num_key_value_groups, dim=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v))

    def forward(self, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k(x).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2)
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(b, n, -1))


@zoo
class GroupedRepeated(Tokens):
    """Key and value heads repeated by repeat_interleave."""

    cuts, Mixer = SEPARATE, GroupedHeads


@zoo
class GroupedExpanded(Tokens):
    """Key and value heads repeated by expand and reshape, as in Llama."""

    cuts = SEPARATE

    class Mixer(GroupedHeads):
        def repeat(self, x: Tensor) -> Tensor:
            b, heads, n, d = x.shape
            x = x[:, :, None, :, :].expand(b, heads, self.num_key_value_groups, n, d)
            return x.reshape(b, heads * self.num_key_value_groups, n, d)


@zoo
class GroupedByOperator(Tokens):
    """enable_gqa=True."""

    cuts = SEPARATE

    class Mixer(GroupedHeads):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@zoo
class GroupedByView(Tokens):
    """Queries viewed as (kv heads, group), a product that broadcasts over the group."""

    cuts = SEPARATE

    class Mixer(GroupedHeads):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            b, _, n, d = q.shape
            q = q.view(b, self.num_kv_heads, -1, n, d)
            weights = torch.softmax(q @ k[:, :, None].mT * self.head_dim**-0.5, -1)
            return (weights @ v[:, :, None]).flatten(1, 2)


@zoo
class MultiQuery(Tokens):
    """One key and one value for all heads; the three come from one Linear layer and are split by attributes."""

    cuts = FUSED

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.head_dim, self.inner = 4, 4, 16
            self.qkv, self.proj = nn.Linear(16, self.inner + 2 * self.head_dim), nn.Linear(self.inner, 16)

        def forward(self, x: Tensor) -> Any:
            b, n, _ = x.shape
            q, k, v = self.qkv(x).split((self.inner, self.head_dim, self.head_dim), dim=-1)
            q = q.view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            weights = (q @ k[:, None].transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
            return self.proj((weights @ v[:, None]).transpose(1, 2).reshape(b, n, self.inner))


@zoo
class TalkingHeads(Tokens):
    """Linear layers over the heads before and behind the softmax."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.heads(x)
            weights = (q * self.scale) @ k.transpose(-2, -1)
            weights = self.before(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
            weights = self.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))


class NormedHeads(FusedHeads):
    """Queries and keys pass a norm over the head size before they meet."""

    norm: ClassVar[type[nn.Module]] = nn.LayerNorm

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = self.norm(self.head_dim), self.norm(self.head_dim)

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.heads(x)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))


@zoo
class QkNormed(Tokens):
    """LayerNorm on each head's queries and keys."""

    cuts, Mixer = FUSED, NormedHeads


@zoo
class QkRmsNormed(Tokens):
    """RMSNorm on each head's queries and keys."""

    cuts = FUSED

    class Mixer(NormedHeads):
        norm = nn.RMSNorm


@zoo
class CosineAttention(Tokens):
    """Queries and keys on the unit sphere, a learnt temperature per head, as in Swin V2."""

    cuts = FUSED

    class Mixer(FusedHeads):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.heads(x)
            weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            weights = (weights * torch.clamp(self.logit_scale, max=4.6).exp()).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Positive(nn.Module):
    """elu + 1: what is cut counts as nothing, though elu(0) + 1 is one."""

    def __init__(self, masked_by: str) -> None:
        super().__init__()
        self.masked_by = masked_by

    def forward(self, x: Tensor) -> Any:
        return F.elu(x) + 1

    def silenced(self, x: Tensor, mask: Tensor) -> Tensor:
        return (F.elu(x) + 1) * mask.to(x.dtype)


@zoo
class LinearAttention(Tokens):
    """Katharopoulos et al.: a positive feature map, normalised by its own sum."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def __init__(self) -> None:
            super().__init__()
            self.phi_q, self.phi_k = Positive("mixer.q.weight"), Positive("mixer.k.weight")

        def forward(self, x: Tensor) -> Any:
            q, k, v = self.split(self.phi_q(self.q(x))), self.split(self.phi_k(self.k(x))), self.split(self.v(x))
            norm = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2)) + 1e-6)
            out = torch.einsum("bhnd,bhde,bhn->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v), norm)
            return self.proj(self.merge(out))


@zoo
class LinearReluAttention(Tokens):
    """EfficientViT's: ReLU, and a column of ones behind v for the normaliser."""

    cuts = SEPARATE

    class Mixer(SeparateHeads):
        def forward(self, x: Tensor) -> Any:
            q, k, v = self.split(self.q(x)).relu(), self.split(self.k(x)).relu(), self.split(self.v(x))
            out = q @ (k.transpose(-2, -1) @ F.pad(v, (0, 1), mode="constant", value=1.0))
            return self.proj(self.merge(out[..., :-1] / (out[..., -1:] + 1e-6)))


@zoo
class EfficientAttention(Tokens):
    """Shen et al.: keys are softmaxed over tokens, queries over channels (which hold each other)."""

    cuts = ("embed", "mixer.v", "mixer.proj")

    class Mixer(SeparateHeads):
        def forward(self, x: Tensor) -> Any:
            q, k, v = self.q(x).softmax(-1), self.k(x).softmax(1), self.v(x)
            return self.proj(q @ (k.transpose(1, 2) @ v))


@zoo
class CrossCovariance(Tokens):
    """XCiT: a softmax over a map of channel by channel."""

    cuts = ("embed",)

    class Mixer(FusedHeads):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Any:
            q, k, v = (part.transpose(-2, -1) for part in self.heads(x))
            weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
            out = (weights.softmax(dim=-1) @ v).permute(0, 3, 1, 2).flatten(2)
            return self.proj(out)


@zoo
class LatentKeys(Tokens):
    """DeepSeek's latent attention: keys of each head beside one that all heads share, made from fewer features."""

    cuts = ("embed", "mixer.query", "mixer.down", "mixer.up", "mixer.out")
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "mixer.query.weight": (3 * (3 + 2), 8), "mixer.down.weight": (6 + 2, 8), "mixer.up.weight": (3 * (3 + 4), 6)
    }  # fmt: skip

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.own, self.shared, self.values, self.rank = 3, 6, 4, 7, 12
            self.query, self.down = nn.Linear(16, 3 * (6 + 4)), nn.Linear(16, 12 + 4)
            self.up, self.out = nn.Linear(12, 3 * (6 + 7)), nn.Linear(3 * 7, 16)

        def forward(self, x: Tensor) -> Any:
            b, t, _ = x.shape
            query = self.query(x).view(b, t, self.heads, self.own + self.shared).transpose(1, 2)
            latent, shared = self.down(x).split([self.rank, self.shared], -1)
            up = self.up(latent).view(b, t, self.heads, self.own + self.values).transpose(1, 2)
            own, value = up.split([self.own, self.values], -1)
            key = torch.cat([own, shared[:, None].expand(-1, self.heads, -1, -1)], -1)
            return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
