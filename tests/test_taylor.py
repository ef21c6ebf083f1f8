"""Taylor scores against the derivative itself: silence one channel of one example at a time, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon

#: A network's forward with a gate on each channel of one group, at everything that reads it.
Gated = Callable[[Tensor, Tensor], Tensor]


class Residual(nn.Module):
    """Two convolutions whose outputs are added: their channels are one group."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head, self.act = nn.BatchNorm2d(6), nn.Linear(6, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(6, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        x = self.act(self.a(x))
        x = self.act(x + self.norm(self.b(x * gate.view(1, -1, 1, 1))))
        return self.head(x.mean((2, 3)) * gate)  # type: ignore[no-any-return]


class Concat(nn.Module):
    """One branch of a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(11, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(6, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        left = F.silu(self.a(x)) * gate.view(1, -1, 1, 1)
        return self.c(torch.cat([left, torch.tanh(self.b(x))], 1)).mean((2, 3))  # type: ignore[no-any-return]


class DepthWise(nn.Module):
    """An inverted bottleneck: the depth-wise convolution passes channels on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.dw, self.out = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(6, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        x = F.relu6(self.dw(F.relu6(self.norm(self.a(x)))))
        return self.out(x * gate.view(1, -1, 1, 1)).mean((2, 3))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """The squeeze reads the channel, and so does the next layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.down, self.up = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(6, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        g = gate.view(1, -1, 1, 1)
        x = F.silu(self.a(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True) * g))))
        return self.out(x * scale * g).mean((2, 3))  # type: ignore[no-any-return]


class Glu(nn.Module):
    """Channel i of the result needs filters i and i + 6 of the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 12, 3), nn.Linear(6 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(6, dtype=x.dtype))

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.out((left * torch.sigmoid(right) * gate.view(1, -1, 1, 1)).flatten(1))  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "relu residual": lambda: Residual(F.relu),
    "gelu residual": lambda: Residual(F.gelu),
    "concat": Concat,
    "depth-wise": DepthWise,
    "squeeze-excite": SqueezeExcite,
    "glu": Glu,
}


def direct(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over the examples of the absolute derivative of each example's loss by each gate."""
    rows = []
    for inputs, targets in batches:
        for x, y in zip(inputs, targets, strict=True):
            gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
            loss = F.cross_entropy(model.gated(x[None], gate), y[None])  # type: ignore[operator]
            rows.append(torch.autograd.grad(loss, gate)[0].abs())
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("name", NETWORKS)
def test_taylor_is_the_derivative_of_silencing(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1)  # type: ignore[arg-type]
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    batches = [(torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (n,))) for n in (5, 3, 1)]
    graph = surgeon.channel_graph(surgeon.trace(model, batches[0][0][:1]))
    scores = surgeon.score(graph, "taylor", batches)
    group = graph.groups[0]
    expected = direct(model, batches).numpy()[list(group.channels)]
    torch.testing.assert_close(scores.raw[group.numbers], expected, rtol=1e-10, atol=1e-14)
    norm_of_group = (expected**2).sum() ** 0.5
    torch.testing.assert_close(scores[group.name], expected / norm_of_group, rtol=1e-10, atol=1e-14)


def test_examples_do_not_cancel() -> None:
    """Two examples with opposite derivatives: the signed batch mean is zero, the score isn't."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    batch = (torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.zeros(2))
    graph = surgeon.channel_graph(surgeon.trace(model, batch[0]))
    scores = surgeon.score(graph, "taylor", [batch], lambda outputs, _: outputs[:, 0])
    assert (scores.raw[graph.groups[0].numbers] > 1e-3).all()


def test_mean_loss_equals_per_example_losses() -> None:
    torch.manual_seed(1)
    model = Concat().double().eval()
    batches = [(torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (4,)))]
    graph = surgeon.channel_graph(surgeon.trace(model, batches[0][0]))
    each = surgeon.score(graph, "taylor", batches, lambda o, t: F.cross_entropy(o, t, reduction="none"))
    mean = surgeon.score(graph, "taylor", batches, F.cross_entropy)
    torch.testing.assert_close(each.raw, mean.raw, rtol=1e-12, atol=0)
