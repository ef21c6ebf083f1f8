"""Networks that know which filters, readers and scales belong to the channels of one of their layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class Known(nn.Module):
    """A network that knows which filters, readers, scales and activations belong to the channels of one layer.

    ``place``: the weight whose axis 0 (grouped and transposed: (group, position) of axis 1) numbers the channels.
    ``elements``: places of one channel in the results of convolutions and matrix products, for one example.
    """

    place: tuple[str, int]
    width: int
    elements: int
    shape: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(self.width, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        raise NotImplementedError

    def layers(self, w: Weights) -> list[list[Tensor]]:
        """Of each layer that makes the channels, the filter of each channel."""
        raise NotImplementedError

    def readers(self, w: Weights, c: int) -> list[Tensor]:
        raise NotImplementedError

    def scales(self, c: int) -> list[Tensor]:
        return []


class Coupled(Known):
    """A residual add with norms; flatten in front of the head."""

    place, width, elements, shape = ("a.weight", 0), 6, 2 * 25, (3, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 25, 4)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        g = gate.view(1, -1, 1, 1)
        x = F.gelu(self.na(self.a(x)))
        x = F.relu(x + self.nb(self.b(x * g)))
        return self.head((x * g).flatten(1))  # type: ignore[no-any-return]

    def layers(self, w: Weights) -> list[list[Tensor]]:
        return [[w[name][c] for c in range(6)] for name in ("a.weight", "b.weight")]

    def readers(self, w: Weights, c: int) -> list[Tensor]:
        return [w["b.weight"][:, c], w["head.weight"][:, 25 * c : 25 * c + 25]]

    def scales(self, c: int) -> list[Tensor]:
        return [self.na.weight[c], self.nb.weight[c]]


class Grouped(Known):
    """A grouped convolution makes the channels, another one reads them."""

    place, width, elements, shape = ("a.weight", 0), 8, 25, (4, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.GroupNorm(2, 8)
        self.b = nn.Conv2d(8, 4, 1, groups=2)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        x = F.silu(self.norm(self.a(x)))
        return self.b(x * gate.view(1, -1, 1, 1)).mean((2, 3))  # type: ignore[no-any-return]

    def layers(self, w: Weights) -> list[list[Tensor]]:
        return [[w["a.weight"][c] for c in range(8)]]

    def readers(self, w: Weights, c: int) -> list[Tensor]:
        group, position = divmod(c, 4)
        return [w["b.weight"][2 * group : 2 * group + 2, position]]

    def scales(self, c: int) -> list[Tensor]:
        return [self.norm.weight[c]]


class Transposed(Known):
    """A grouped transposed convolution makes the channels, a depth-wise one passes them on; instance norm."""

    place, width, elements, shape = ("a.weight", 1), 6, 36 + 16, (4, 3, 3)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.InstanceNorm2d(6, affine=True)
        self.b, self.c = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        x = torch.tanh(self.b(self.norm(self.a(x))))
        return self.c(x * gate.view(1, -1, 1, 1)).mean((2, 3))  # type: ignore[no-any-return]

    def layers(self, w: Weights) -> list[list[Tensor]]:
        made = [w["a.weight"][2 * (c // 3) : 2 * (c // 3) + 2, c % 3] for c in range(6)]
        return [made, [w["b.weight"][c] for c in range(6)]]

    def readers(self, w: Weights, c: int) -> list[Tensor]:
        return [w["c.weight"][:, c]]

    def scales(self, c: int) -> list[Tensor]:
        return [self.norm.weight[c]]


class Joined(Known):
    """Linear layers alone; the channels pass a layer norm and are one part of a concatenation."""

    place, width, elements, shape = ("a.weight", 0), 5, 1, (6,)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 5), nn.Linear(6, 3), nn.LayerNorm(5)
        self.head = nn.Linear(8, 4)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.head(torch.cat([self.b(x), self.norm(torch.tanh(self.a(x))) * gate], 1))  # type: ignore[no-any-return]

    def layers(self, w: Weights) -> list[list[Tensor]]:
        return [[w["a.weight"][c] for c in range(5)]]

    def readers(self, w: Weights, c: int) -> list[Tensor]:
        return [w["head.weight"][:, 3 + c]]

    def scales(self, c: int) -> list[Tensor]:
        return [self.norm.weight[c]]


KNOWN: dict[str, type[Known]] = {kind.__name__.lower(): kind for kind in (Coupled, Grouped, Transposed, Joined)}
