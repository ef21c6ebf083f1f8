"""How modules are called: often, in pyramids, with dicts and keywords, checkpointed, by functions of one's own."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F  # noqa: N812  # torch's own name for it
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.zoo.base import Classifier, ZooNetwork, conv, draw, zoo


@zoo
class SharedHead(ZooNetwork):
    """One head over three pyramid levels, each with its own norm; the outputs are a list."""

    cuts, keeps = ("levels.0", "levels.1", "levels.2", "tower"), ("score",)

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([conv(3, 12, stride=1), conv(12, 12, stride=2), conv(12, 12, stride=2)])
        self.tower, self.score = conv(12, 12), conv(12, 2, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        out = []
        for layer, norm in zip(self.levels, self.norms, strict=True):
            x = F.relu(layer(x))
            out.append(self.score(F.relu(norm(self.tower(x)))))
        return {"levels": out}


@zoo
class RecursiveBlock(Classifier):
    """One residual block called five times with one LayerNorm."""

    cuts = ("stem", "inner", "last")

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.GroupNorm(1, 16), conv(16, 24), conv(24, 16)

    def middle(self, x: Tensor) -> Any:
        for _ in range(5):
            x = x + self.outer(F.relu(self.inner(self.norm(x))))
        return x


@zoo
class Siamese(ZooNetwork):
    """One trunk for both inputs; distance and product are outputs."""

    cuts, keeps = ("first", "second"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv(3, 12), conv(12, 16), nn.Linear(16, 5)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=8)

    def trunk(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))

    def forward(self, left: Tensor, right: Tensor) -> Any:
        a, b = self.trunk(left), self.trunk(right)
        return {"logits": self.fc((a - b).abs()), "close": (a * b).sum(1), "apart": F.pairwise_distance(a, b, eps=0.0)}


@zoo
class NestedInputs(ZooNetwork):
    """A dict of a dict and a list as one argument, a keyword beside it; the outputs are nested too."""

    cuts, keeps = ("image", "vector"), ("fc", "side")

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.extra = conv(3, 12), nn.Linear(4, 12), nn.Linear(6, 12)
        self.fc, self.side = nn.Linear(12, 5), nn.Linear(12, 2)

    @classmethod
    def example(cls) -> tuple[Any, ...]:
        return ({"views": {"front": draw(2, 3, 8, 8)}, "facts": [draw(2, 4, seed=8), "name"]},)

    @classmethod
    def keywords(cls) -> dict[str, Any]:
        return {"extra": draw(2, 6, seed=9), "flag": True}

    def forward(self, batch: dict[str, Any], *, extra: Tensor | None = None, flag: bool = False) -> Any:
        x = F.relu(self.image(batch["views"]["front"])).mean((2, 3))
        x = x + F.relu(self.vector(batch["facts"][0])) + (self.extra(extra) if flag and extra is not None else 0)
        return {"logits": self.fc(x), "others": (self.side(x), [x.sum(1)])}


@zoo
class Checkpointed(Classifier):
    """torch.utils.checkpoint without re-entry."""

    cuts, reentrant = ("stem", "inner.0", "inner.2", "last"), False

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(16, 24), nn.ReLU(), conv(24, 16))

    def middle(self, x: Tensor) -> Any:
        return x + checkpoint(self.inner, x, use_reentrant=self.reentrant)


@zoo
class CheckpointedReentrant(Checkpointed):
    """torch.utils.checkpoint with re-entry, which warns where nothing needs a gradient."""

    reentrant = True

    def middle(self, x: Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            return super().middle(x)


@zoo
class CheckpointedSequence(Checkpointed):
    """checkpoint_sequential in two segments."""

    def middle(self, x: Tensor) -> Any:
        return x + checkpoint_sequential(self.inner, 2, x, use_reentrant=False)  # type: ignore[no-untyped-call]


class Swish(torch.autograd.Function):
    """Memory-efficient swish with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        s = torch.sigmoid(x)
        return gradients[0] * (s * (1 + x * (1 - s)))


@zoo
class OwnFunction(Classifier):
    """A custom torch.autograd.Function."""

    def middle(self, x: Tensor) -> Any:
        return Swish.apply(x)


class RunningSum(torch.autograd.Function):
    """A sum along the last axis that is written in place, into parts of its result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: float = 0.5) -> Tensor:
        ctx.decay = decay
        total = x.clone()
        for place in range(1, x.shape[-1]):
            total[..., place].add_(total[..., place - 1].mul(decay))
        ctx.save_for_backward(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


running_sum = RunningSum.apply


@zoo
class OwnScan(Classifier):
    """A custom function under a name of its own, which writes into parts of a tensor."""

    def middle(self, x: Tensor) -> Any:
        return running_sum(x)


class Doubled(torch.autograd.Function):
    """Of the newer form; it calls another function's forward with a context of its own."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * RunningSum.forward(FunctionCtx(), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


@zoo
class NewerFunction(Classifier):
    """A custom function with setup_context."""

    def middle(self, x: Tensor) -> Any:
        return Doubled.apply(x)


@zoo
class ListedExperts(ZooNetwork):
    """A mixture of experts that goes by lists of token numbers."""

    cuts, keeps = ("embed", "experts.0.0", "experts.1.0", "experts.2.0"), ("head",)
    shape = (20, 6)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        places = F.one_hot(chosen, 3).permute(2, 1, 0)
        total = torch.zeros_like(x)
        for place, expert in zip(places, self.experts, strict=True):
            ranks, rows = torch.where(place)
            listed = rows.tolist()
            total.index_add_(0, rows, expert(x[listed]) * weights[listed, ranks.tolist(), None])
        return self.head(total)


@zoo
class FeaturePyramid(ZooNetwork):
    """FPN: lateral 1x1, interpolate and add, one output convolution per level."""

    cuts, keeps = ("bottom", "middle", "top", "lateral.0", "lateral.1", "lateral.2", "smooth.0"), ("score",)

    def __init__(self) -> None:
        super().__init__()
        self.bottom, self.middle, self.top = conv(3, 8), conv(8, 12, stride=2), conv(12, 16, stride=2)
        self.lateral = nn.ModuleList(conv(n, 10, 1) for n in (8, 12, 16))
        self.smooth, self.score = nn.ModuleList(conv(10, 10) for _ in range(3)), conv(10, 2, 1)

    def forward(self, x: Tensor) -> Any:
        features = [F.relu(self.bottom(x))]
        features.append(F.relu(self.middle(features[-1])))
        features.append(F.relu(self.top(features[-1])))
        up = self.lateral[2](features[2])
        levels = [up]
        for i in (1, 0):
            up = self.lateral[i](features[i]) + F.interpolate(up, size=features[i].shape[-2:], mode="nearest")
            levels.append(up)
        return {str(i): self.score(F.relu(s(y))) for i, (s, y) in enumerate(zip(self.smooth, levels, strict=True))}


@zoo
class ModuleDictBranches(Classifier):
    """Branches in an nn.ModuleDict, averaged."""

    cuts = ("stem", "last")

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"small": conv(16, 16, 1), "large": conv(16, 16, 5)})

    def middle(self, x: Tensor) -> Any:
        return sum(F.relu(branch(x)) for branch in self.branches.values()) / len(self.branches)


@zoo
class MixtureOfExperts(ZooNetwork):
    """Dense mixture: a softmax over experts weighs their stacked outputs."""

    shape, cuts, keeps = (2, 10), ("embed", "experts.0.0", "experts.1.2"), ("gate", "fc")

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.fc = nn.Linear(10, 12), nn.Linear(12, 3), nn.Linear(8, 5)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.embed(x))
        weights = torch.softmax(self.gate(x), dim=-1)
        out = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.fc((weights.unsqueeze(-1) * out).sum(1))


@zoo
class HookedFeatures(Classifier):
    """A forward hook scales what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.register_forward_hook(self.doubled)

    @staticmethod
    def doubled(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out * 2

    def middle(self, x: Tensor) -> Any:
        return F.dropout2d(x, 0.2, self.training)


class Rows(nn.Module):
    """Two linear maps, each behind a method of its own that fills rows of a size which the module knows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.size = 20, 12
        self.up, self.down = nn.Linear(self.size, self.hidden_size), nn.Linear(self.hidden_size, self.size)

    def widen(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.hidden_size, dtype=x.dtype).index_add(0, torch.arange(len(x)), self.up(x))

    def narrow(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.size, dtype=x.dtype).index_add(0, torch.arange(len(x)), self.down(x))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@zoo
class MethodsOfAPart(ZooNetwork):
    """A part is used by its methods and never called, as JetMoe's experts of attention."""

    shape, cuts, keeps = (4, 10), ("embed", "rows.up", "rows.down"), ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rows, self.fc = nn.Linear(10, 12), Rows(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.fc(x + self.rows.narrow(torch.relu(self.rows.widen(x))))
