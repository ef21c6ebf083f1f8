"""The data says which layers run: those that the example doesn't reach must keep fitting what feeds them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tests.zoo.base import Tokens, ZooNetwork, conv, draw, zoo


class Routed(ZooNetwork):
    """Two branches behind a stem, of which the example takes one."""

    cuts: ClassVar[tuple[str, ...]] = ("stem", "easy", "hard")
    keeps: ClassVar[tuple[str, ...]] = ("fc",)
    hard_reads: ClassVar[int] = 12

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3, 12), nn.Linear(16, 5)
        self.easy, self.hard = conv(12, 16, 1), conv(self.hard_reads, 16)

    def is_hard(self, x: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        y = self.hard(stem) if self.is_hard(x) else self.easy(stem)
        return self.fc(y.mean((2, 3)))


@zoo
class RoutedByTest(Routed):
    """Python's ``if`` on a tensor."""

    def is_hard(self, x: Tensor) -> Any:
        return x.std() > 1.5


@zoo
class RoutedByNumber(Routed):
    """Python's ``if`` on a number that a tensor held."""

    def is_hard(self, x: Tensor) -> Any:
        return x.std().item() > 1.5


@zoo
class RoutedByCount(Routed):
    """Python's ``if`` on how many places a mask picks."""

    def is_hard(self, x: Tensor) -> Any:
        return len(x[x > 6]) > 0


@zoo
class RoutedByDigits(Routed):
    """No test that can be turned: what is as wide as the unseen branch stays."""

    cuts, keeps = ("last",), ("stem", "easy", "hard", "fc")
    pins: ClassVar[dict[str, str]] = {"stem": "as wide as hard", "easy": "as wide as hard", "hard": "not reached"}

    def __init__(self) -> None:
        super().__init__()
        self.last, self.fc = conv(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        stem = torch.relu(self.stem(x))
        y = self.hard(stem) if str(x.std().item()).startswith("3.") else self.easy(stem)
        return self.fc(torch.relu(self.last(y)).mean((2, 3)))


class Experts(nn.Module):
    """A gate sends each token to one of many experts."""

    def __init__(self, count: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(16, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)) for _ in range(count)
        )

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        return weight[:, None], chosen


EXPERTS = ("embed", "mixer.experts.0.0", "mixer.experts.7.0")


@zoo
class SparseExperts(Tokens):
    """Experts that no token goes to are skipped."""

    cuts = EXPERTS
    shape = (2, 2, 10)

    class Mixer(Experts):
        def forward(self, x: Tensor) -> Any:
            tokens = x.flatten(0, 1)
            (weight, chosen), out = self.choose(tokens), torch.zeros_like(tokens)
            for number, expert in enumerate(self.experts):
                (rows,) = (chosen == number).nonzero(as_tuple=True)
                if rows.numel():
                    out.index_add_(0, rows, expert(tokens[rows]) * weight[rows])
            return out.view_as(x)


@zoo
class ExpertsByHits(Tokens):
    """A loop over the experts that some token goes to, as in Mixtral."""

    cuts = EXPERTS
    shape = (2, 2, 10)

    class Mixer(Experts):
        def forward(self, x: Tensor) -> Any:
            tokens = x.flatten(0, 1)
            (weight, chosen), out = self.choose(tokens), torch.zeros_like(tokens)
            taken = nn.functional.one_hot(chosen, len(self.experts)).T
            for number in (taken.sum(1) > 0).nonzero():
                (rows,) = torch.where(taken[number].squeeze(0))
                out.index_add_(0, rows, self.experts[number](tokens[rows]) * weight[rows])
            return out.view_as(x)


#: Of each network inputs that go another way than the example.
ELSEWHERE: dict[str, Tensor] = {
    "RoutedByTest": 3 * draw(2, 3, 8, 8),
    "RoutedByNumber": 3 * draw(2, 3, 8, 8),
    "RoutedByCount": 9 * draw(2, 3, 8, 8),
    "RoutedByDigits": 3.5 * draw(2, 3, 8, 8) / draw(2, 3, 8, 8).std(),
    "SparseExperts": draw(8, 20, 10),
    "ExpertsByHits": draw(8, 20, 10),
    "DataDependentBranch": torch.zeros(2, 3, 8, 8, dtype=torch.float64),
}


class Stage(nn.Module):
    """A residual block that projects its shortcut where its two sizes differ, as Hiera's."""

    def __init__(self, size: int, out_size: int) -> None:
        super().__init__()
        self.size, self.out_size = size, out_size
        self.norm, self.inner = nn.LayerNorm(size), nn.Linear(size, out_size)
        if size != out_size:
            self.proj = nn.Linear(size, out_size)

    def forward(self, x: Tensor) -> Any:
        short = x
        x = self.norm(x)
        if self.size != self.out_size:
            short = self.proj(x).view(x.shape[0], -1, self.out_size)
        return short + torch.relu(self.inner(x))


@zoo
class ShortcutsBySizes(ZooNetwork):
    """Half of the second stage's width is the dense width of the first: both of its sizes must follow, or neither."""

    shape = (2, 6, 10)
    cuts, keeps = ("embed", "stages.1.proj", "stages.1.inner"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.stages, self.fc = nn.Linear(10, 8), nn.Sequential(Stage(8, 8), Stage(8, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.stages(self.embed(x)).mean(1))
