"""What tests/test_processes.py does in one process and in several: a folder for each, with what came out.

``python -m tests.work_of_processes FOLDER RANK SIZE``
"""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon import finegrained, processes
from surgeon.processes import from_first
from surgeon.tuning import evaluate, sharded

Outcome = dict[str, Any]
#: Images, and an uneven last batch.
IMAGES, BATCH = 37, 8
CRITERIA = ("taylor", "taylor-gate", "taylor-weight", "fisher", "obs", "auto", "magnitude", "random")


class Net(nn.Module):
    """A residual stream with batch norms, a grouped convolution, and a Linear layer with more inputs than rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 12, 3, padding=1)
        self.outer = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.other = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.wide = nn.Linear(16 * 36, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.other(self.outer(torch.relu(self.inner(x)))))
        scores: Tensor = self.head(torch.relu(self.wide(torch.relu(self.grouped(x)).flatten(1))))
        return scores


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for norm in (model.norm, model.other):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def data(count: int = IMAGES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.randint(5, (count,), generator=generator)


def batches(count: int = IMAGES) -> list[tuple[Tensor, Tensor]]:
    x, y = data(count)
    return list(zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True))


def loader(count: int = IMAGES, size: int = BATCH, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(count)), size, **kwargs)


def weights(model: nn.Module) -> Outcome:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def scored() -> Outcome:
    graph = surgeon.channel_graph(surgeon.trace(net(), data()[0][:2]))
    found = surgeon.score_all(graph, CRITERIA, batches())
    pieces = surgeon.score_all(graph, CRITERIA, batches(), micro_batch=3)
    return {name: torch.from_numpy(scores.raw) for name, scores in found.items()} | {
        f"{name} in pieces": torch.from_numpy(scores.raw) for name, scores in pieces.items()
    }


def scored_in_another_order() -> Outcome:
    """Shuffled: which images make a batch is drawn from the first process's random numbers."""
    torch.manual_seed(3 + processes.rank())
    graph = surgeon.channel_graph(surgeon.trace(net(), data()[0][:2]))
    found = surgeon.score(graph, "taylor-gate", loader(shuffle=True))
    return {"scores": torch.from_numpy(found.raw)}


def cut(heal: str, **options: Any) -> Outcome:
    model = net()
    given = {"criterion": "taylor", "ratio": 0.4, "dataloader": batches(), "heal": heal, **options}
    result = surgeon.prune(model, data()[0][:2], **given)
    layers = {row.weight: [row.sliced, row.shifted, row.healed] for row in result.report.healing}
    return {**weights(result.model), "plan": result.plan.to_json(), "layers": layers}


def masked(batches: Any) -> Outcome:
    """Single weights that are gone or have few values, and the others fitted anew."""
    model, small = net(), net()
    finegrained.sparsify(small, {"conv": 0.4})
    finegrained.share(small, {"linear": 6})
    rows: list[Any] = []
    finegrained.heal(model, small, batches, on_layer=rows.append)
    return {**weights(small), "layers": {row.weight: [row.sliced, row.shifted, row.healed] for row in rows}}


def evaluated() -> Outcome:
    found = evaluate(net(), loader())
    return {"found": [found.loss, found.accuracy]}


def trained() -> Outcome:
    """Fifty steps, with a last batch of five images in every epoch."""
    model = net()
    tuned = surgeon.tune(
        model, loader(shuffle=True), loader(), epochs=10, lr=0.02, schedule="constant", device="cpu", ema=0.9
    )
    history = [[epoch.train_loss, epoch.val_loss, epoch.val_accuracy] for epoch in tuned.history]
    return {**weights(tuned.model), "history": history}


def trained_on_less_than_there_are_processes() -> Outcome:
    model = net()
    tuned = surgeon.tune(model, loader(9, 8), epochs=2, lr=0.02, schedule="constant", device="cpu")
    return {**weights(tuned.model), "history": [[epoch.train_loss] for epoch in tuned.history]}


def trained_in_shards() -> Outcome:
    """As above, with everything that looks at the weights beside the optimizer."""
    model = net()
    tuned = surgeon.tune(
        model, loader(shuffle=True), loader(), epochs=6, lr=0.02, schedule="constant", device="cpu", ema=0.9, clip=1.0,
        teacher=net(), sharded=True,
    )  # fmt: skip
    history = [[epoch.train_loss, epoch.val_loss, epoch.val_accuracy] for epoch in tuned.history]
    return {**weights(tuned.model), **moments(tuned), "history": history, "kinds": kinds(model)}


def trained_in_blocks() -> Outcome:
    """Blocks that are gathered by themselves, a weight that two layers share, frozen weights, a list to judge."""
    torch.manual_seed(0)
    model = Tower().eval()
    tuned = surgeon.tune(
        model, loader(shuffle=True), batches(), epochs=4, optimizer="adamw", lr=0.003, device="cpu", sharded=True
    )
    history = [[epoch.train_loss, epoch.val_loss, epoch.val_accuracy] for epoch in tuned.history]
    tied = model.first.weight is model.again.weight
    return {**weights(tuned.model), **moments(tuned), "history": history, "kinds": kinds(model), "tied": tied}


class Tower(nn.Module):
    """A list of blocks, two of which are of one size, between layers with a common weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(108, 24, bias=False)
        self.again = nn.Linear(108, 24)
        self.again.weight = self.first.weight
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, width), nn.GELU(), nn.Linear(width, 24)) for width in (40, 33)
        )
        self.frozen = nn.Linear(24, 24).requires_grad_(requires_grad=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)) + self.again(x.flatten(1).flip(1))
        for block in self.blocks:
            x = x + block(x)
        scores: Tensor = self.head(torch.relu(self.frozen(x)))
        return scores


def kinds(model: nn.Module) -> str:
    """What the model is made of afterwards."""
    return " ".join([type(part).__name__ for part in (*model.modules(), *(p.data for p in model.parameters()))])


def moments(tuned: surgeon.Tuned) -> Outcome:
    """The optimizer's, by the name of the parameter."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in tuned.model.named_parameters()}
    states = tuned.optimizer.state.items()
    return {f"{names[p]}/{key}": value for p, state in states for key, value in state.items()}


class Stopped(Exception):
    """Raised in all processes after the same epoch."""


def taken_up_in_shards_and_whole() -> Outcome:
    """Four epochs: one whole, then one in shards, then whole again, then in shards."""

    def stopping(history: Any) -> None:
        if len(history) < 4:
            raise Stopped

    folder = from_first(lambda: tempfile.mkdtemp())
    for spread in (False, True, False, True):
        model = net()
        with contextlib.suppress(Stopped):
            tuned = surgeon.tune(
                model, loader(shuffle=True), loader(), epochs=4, lr=0.02, device="cpu", ema=0.9, resume_dir=folder,
                sharded=spread, on_epoch=stopping,
            )  # fmt: skip
    from_first(lambda: shutil.rmtree(folder))
    return {**weights(model), "history": [[row.train_loss, row.val_loss] for row in tuned.history]}


def cut_in_steps(*, sharded: bool = False) -> Outcome:
    tuning = {"lr": 0.01, "device": "cpu", "sharded": sharded}
    result = surgeon.prune_and_tune(
        net(), data()[0][:2], loader(shuffle=True), loader(), ratio=0.4, steps=2, tuning=tuning
    )
    return {**weights(result.model), "plan": result.plan.to_json()}


def cut_in_time() -> Outcome:
    """What is timed is the first process's word."""
    chance = random.Random(processes.rank())

    def timer(_: Any) -> Callable[[Callable[[], Any]], float]:
        return lambda _: chance.random()

    with mock.patch("surgeon.cost.tables.least_time", timer):
        result = surgeon.prune(net(), data()[0][:2], max_macs=0.995, round_to="auto", criterion="magnitude")
    return {**weights(result.model), "plan": result.plan.to_json()}


#: What comes out the same in one process as in several, to rounding.
WORK: dict[str, Callable[[], Outcome]] = {
    "scored": scored,
    "scored in another order": scored_in_another_order,
    "lstsq": lambda: cut("lstsq"),
    "gram": lambda: cut("gram"),
    "bias": lambda: cut("bias"),
    "auto": lambda: cut("lstsq", criterion="auto", ratio=None, max_macs=0.6, dataloader=[x for x, _ in batches()]),
    "one batch for all": lambda: cut("lstsq", dataloader=batches()[:1]),
    "an iterator": lambda: cut("bn", dataloader=iter(batches())),
    "masked": lambda: masked(batches()),
    "masked, one batch for all": lambda: masked(batches()[:1]),
    "evaluated": evaluated,
    "trained": trained,
    "trained on few": trained_on_less_than_there_are_processes,
    "cut in steps": cut_in_steps,
    "in shards": trained_in_shards,
    "in blocks": trained_in_blocks,
    "taken up": taken_up_in_shards_and_whole,
    "cut in steps, in shards": lambda: cut_in_steps(sharded=True),
}  # fmt: skip


# --- what goes wrong in one of them


def fails_in_one() -> Outcome:
    def failing() -> Iterator[Any]:
        yield from batches()[:3]
        if processes.rank() == 1:
            raise ValueError("the second process can't read its image")

    return cut("lstsq", dataloader=failing())


def has_another_model() -> Outcome:
    model = net()
    with torch.no_grad():
        model.head.bias.add_(processes.rank())
    result = surgeon.prune(model, data()[0][:2], ratio=0.4, criterion="magnitude")
    return weights(result.model)


def does_something_else() -> Outcome:
    graph = surgeon.channel_graph(surgeon.trace(net(), data()[0][:2]))
    if processes.rank() == 0:
        return {"score": torch.from_numpy(surgeon.score(graph, "taylor", batches()).raw)}
    return {"found": evaluate(net(), loader()).loss}


def _everything(model: nn.Module) -> Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def asks_for_what_shards_can_not_do() -> Outcome:
    surgeon.tune(net(), loader(), epochs=1, device="cpu", penalty=_everything, sharded=True)
    return {}


def has_shards() -> Outcome:
    """How many numbers this process has of the weights and of the optimizer's state while it trains."""
    seen: dict[str, int] = {}
    real = sharded.Spread.gather

    def counting(self: sharded.Spread, *, keep: bool = True) -> Any:
        own = [p.to_local().numel() for p in self.run.model.parameters()]  # type: ignore[attr-defined]
        state = [value.to_local().numel() for part in self.run.optimizer.state.values() for value in part.values()]
        seen.update(weights=sum(own), state=sum(state), all=sum(p.numel() for p in self.whole.model.parameters()))
        return real(self, keep=keep)

    with mock.patch.object(sharded.Spread, "gather", counting):
        surgeon.tune(net(), loader(), epochs=1, device="cpu", sharded=True)
    return dict(seen)


def works_alone() -> Outcome:
    """Only one of them does anything."""
    if processes.first():
        with processes.alone():
            return cut("lstsq")
    return {}


ALONE: dict[str, Callable[[], Outcome]] = {
    "fails": fails_in_one,
    "another model": has_another_model,
    "something else": does_something_else,
    "alone": works_alone,
    "in time": cut_in_time,
    "no penalty": asks_for_what_shards_can_not_do,
    "has shards": has_shards,
}


def main(folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{size}"
    dist.init_process_group("gloo", meeting, datetime.timedelta(seconds=60), rank=rank, world_size=size)
    for name, work in {**WORK, **ALONE}.items():
        try:
            outcome = work()
        except Exception as problem:  # noqa: BLE001  # the tests look at it
            outcome = {"error": f"{type(problem).__name__}: {problem}"}
        write(folder, f"{name}-{rank}-of-{size}", outcome)


def write(folder: Path, name: str, outcome: Outcome) -> None:
    tensors = {key: value for key, value in outcome.items() if isinstance(value, Tensor)}
    save_file(tensors, folder / f"{name}.safetensors")
    others = {key: value for key, value in outcome.items() if key not in tensors}
    (folder / f"{name}.json").write_text(json.dumps(others))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
