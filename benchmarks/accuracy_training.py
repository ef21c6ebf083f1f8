"""Fine-tuning and the control "trained from scratch" for the accuracy table; CIFAR-10 only, off by default.

``tuned``: the healed cut (the recalibrated one of the other tool; the dense network too, since any training may raise
it) trained for some epochs and distilled from the dense network, everybody by the same recipe and on the same images.
``scratch``: the same architecture with new weights, trained for some epochs without a teacher. All by ``surgeon.tune``
on the 50,000 training images with the usual crops and flips; the last weights count, no image of the test set chooses
anything. Interrupted runs go on from their last epoch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accuracy_cut import Cut
from accuracy_task import Task
from common import Images, say
from replay import Replayed, replaying
from torch import Tensor, nn
from torch.nn import functional

import surgeon

TRAINED = frozenset({"tuned", "scratch"})
PADDING = 4
SCRATCH_LR = 0.1
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: options of ``surgeon.tune``, and the batch. ``teacher_weight`` 0 is without teacher."""

    epochs: int
    lr: float = 0.01
    teacher_weight: float = 0.9
    temperature: float = 4.0
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    ema: float | None = None
    batch: int = 64
    layout: str = "channels_last"
    mixed_precision: str = "bf16"
    graphs: bool = False

    def fit(
        self, model: nn.Module, images: Images, teacher: nn.Module, folder: Path, seed: int, name: str
    ) -> surgeon.Tuned:
        """Train the model in place on crops and flips of the images; a run that the folder holds goes on.

        Channels-last and in bf16 a step takes less than half its time on a CPU that computes in bf16; with `graphs`
        a GPU replays the steps (see ``replay.py``).
        """
        options = asdict(self)
        graphs = options.pop("graphs")
        options["teacher_weight"] = options["teacher_weight"] or 0.5  # not looked at without a teacher
        layout = LAYOUTS[options.pop("layout")]
        model.to(memory_format=layout)
        loader = Augmented(images, options.pop("batch"), layout)
        teacher = copy.deepcopy(teacher).to(memory_format=layout)
        with contextlib.ExitStack() as stack:
            if graphs:
                sample, _ = next(iter(loader))
                stack.enter_context(replaying(model, sample, self.mixed_precision))
                teacher = Replayed(teacher, sample, self.mixed_precision)
            tuned = surgeon.tune(
                model, loader, teacher=teacher if self.teacher_weight else None, resume_dir=folder,
                device=images.inputs.device, seed=seed, progress=Teller(name), **options,
            )  # fmt: skip
        model.eval()
        return tuned


@dataclass(frozen=True)
class Training:
    """What a cut is trained with; `folder` keeps what an interrupted run goes on from."""

    tune: Recipe
    scratch: Recipe
    folder: Path

    def levels(self, task: Task) -> tuple[str, ...]:
        """What is wanted of a cut of this network."""
        wanted = {"tuned": self.tune.epochs, "scratch": self.scratch.epochs}
        return tuple(level for level, epochs in wanted.items() if epochs and task.training is not None)

    def trained(self, task: Task, cut: Cut, level: str, key: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A trained copy of the cut, and what a row says of its training."""
        assert task.training is not None
        if level == "tuned":
            model, recipe = copy.deepcopy(cut.healed(cut.levels[-1])), self.tune
        else:
            model, recipe = renewed(cut.model, seed), self.scratch
        images = task.training()
        folder = self.folder / f"{key.replace('/', '_')}_{level}_{digest(model, recipe)}"
        tuned = recipe.fit(model, images, task.dense, folder, seed, f"{key} {level}")
        seconds = round(sum(row.seconds for row in tuned.history), 1)
        facts = {"images": len(images), "augmentation": f"shifts up to {PADDING}, flips", "optimizer": "SGD"}
        facts |= {"threads": torch.get_num_threads(), "seconds": seconds}
        losses = [round(row.train_loss, 5) for row in tuned.history]
        return model, asdict(recipe) | facts | {"train_loss": losses, "notes": list(tuned.notes)}


def digest(model: nn.Module, recipe: Recipe) -> str:
    """What a run begins with: one that was interrupted goes on only from the same weights and by the same recipe."""
    found = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    for tensor in model.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


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
    batch: int
    layout: torch.memory_format = torch.channels_last

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(torch.randperm(len(self.images)), self.batch):
            batch = self.images.take(index.to(self.images.inputs.device))
            yield shifted(batch.inputs).contiguous(memory_format=self.layout), batch.targets


def shifted(inputs: Tensor) -> Tensor:
    """Each image cut out of its padded self at a place of its own, every other one mirrored; channels-last."""
    count, height, width = len(inputs), inputs.shape[2], inputs.shape[3]
    padded = functional.pad(inputs, (PADDING,) * 4)
    down, right = (torch.randint(0, 2 * PADDING + 1, (count, 1)).to(inputs.device) for _ in range(2))
    rows = down + torch.arange(height, device=inputs.device)
    columns = right + torch.arange(width, device=inputs.device)
    mirrored = (torch.rand(count, 1) < 0.5).to(inputs.device)
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count, device=inputs.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Teller:
    """Says every tenth of the way."""

    def __init__(self, name: str) -> None:
        self.name, self._said = name, 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        tenths = 10 * done // max(total, 1)
        if tenths > self._said:
            self._said = tenths
            say(f"{self.name}: {stage} {done} of {total} steps")
