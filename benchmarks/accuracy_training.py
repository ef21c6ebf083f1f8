"""Fine-tuning and the control "trained from scratch" for the accuracy table; CIFAR-10 only, off by default.

``tuned``: the healed cut (the recalibrated one of the other tool; the dense network too, since any training may raise
it) trained for some epochs. ``scratch``: the same architecture with new weights, trained for some epochs. All by
``surgeon.tune`` on the 50,000 training images with the usual crops and flips, SGD with momentum and a cosine; the last
weights count, no image of the test set chooses anything. Interrupted runs go on from their last epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accuracy_cut import Cut
from accuracy_task import Task
from common import Images, say
from torch import Tensor, nn
from torch.nn import functional

import surgeon

BATCH = 128
PADDING = 4
SCRATCH_LR = 0.1


@dataclass(frozen=True)
class Training:
    """How long and how fast; `folder` keeps what an interrupted run goes on from."""

    tune_epochs: int
    scratch_epochs: int
    lr: float
    folder: Path

    def levels(self, task: Task) -> tuple[str, ...]:
        """What is wanted of a cut of this network."""
        wanted = {"tuned": self.tune_epochs, "scratch": self.scratch_epochs}
        return tuple(level for level, epochs in wanted.items() if epochs and task.training is not None)

    def trained(self, task: Task, cut: Cut, level: str, key: str, seed: int) -> nn.Module:
        """A trained copy of the cut."""
        assert task.training is not None
        if level == "tuned":
            model, epochs, lr = copy.deepcopy(cut.healed(cut.levels[-1])), self.tune_epochs, self.lr
        else:
            model, epochs, lr = renewed(cut.model, seed), self.scratch_epochs, SCRATCH_LR
        folder = self.folder / f"{key.replace('/', '_')}_{level}"
        images = task.training()
        surgeon.tune(
            model, Augmented(images), epochs=epochs, lr=lr, schedule="cosine", resume_dir=folder,
            device=images.inputs.device, seed=seed, progress=Teller(f"{key} {level}"),
        )  # fmt: skip
        return model.eval()


def renewed(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with the weights that its layers begin with."""
    other = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in other.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()  # type: ignore[operator]  # it is callable: just asked
    return other


@dataclass(frozen=True)
class Augmented:
    """Shuffled batches, each image shifted by up to four pixels and flipped at random, on the images' own device.

    Draws from torch's global generator, which ``surgeon.tune`` seeds for each epoch.
    """

    images: Images

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(torch.randperm(len(self.images)), BATCH):
            batch = self.images.take(index.to(self.images.inputs.device))
            yield shifted(batch.inputs), batch.targets


def shifted(inputs: Tensor) -> Tensor:
    """Each image cut out of its padded self at a place of its own, every other one mirrored."""
    count, height, width = len(inputs), inputs.shape[2], inputs.shape[3]
    padded = functional.pad(inputs, (PADDING,) * 4)
    down, right = (torch.randint(0, 2 * PADDING + 1, (count, 1)).to(inputs.device) for _ in range(2))
    rows = down + torch.arange(height, device=inputs.device)
    columns = right + torch.arange(width, device=inputs.device)
    mirrored = (torch.rand(count, 1) < 0.5).to(inputs.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count, device=inputs.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


class Teller:
    """Says every tenth of the way."""

    def __init__(self, name: str) -> None:
        self.name, self._said = name, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenths = 10 * done // max(total, 1)
        if tenths > self._said:
            self._said = tenths
            say(f"{self.name}: {stage} {done} of {total} steps")
