"""Cut a model between two runs of Hugging Face's Trainer; its optimizer is carried along.

python -m pip install transformers; python examples/huggingface_trainer.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import surgeon
from surgeon.data import Split, open_data


class Digits(Dataset[dict[str, Tensor]]):
    """Digits under the names that the model's forward gives its arguments."""

    def __init__(self, split: Split) -> None:
        assert split.pixels is not None
        self.pixels, self.labels = split.pixels.float() / 127.5 - 1, split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def trainer(model: nn.Module, epochs: int, optimizer: torch.optim.Optimizer | None = None) -> Trainer:
    """A Trainer for so many epochs more."""
    given = TrainingArguments(
        "huggingface-trainer", num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=2e-3, seed=0,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return Trainer(model, given, train_dataset=train, eval_dataset=test, optimizers=(optimizer, None))


def forward_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """For batches that are no (inputs, targets)."""
    loss: Tensor = model(**batch).loss
    return loss


torch.manual_seed(0)
images = open_data("digits")
train, test = Digits(images.train), Digits(images.test or images.train)
model: Any = ViTForImageClassification(
    ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
        initializer_range=0.1,
    )
)

first = trainer(model, 6)
first.train()
print(f"loss of the whole model: {first.evaluate()['eval_loss']:.3f}")

model = model.to("cpu")
example = surgeon.Inputs((), {"pixel_values": test[0]["pixel_values"][None]})
result = surgeon.prune(
    model, example, max_params=0.6, dataloader=DataLoader(train, 64), forward_loss=forward_loss, heal="lstsq"
)
before, after = result.report.params_before, result.report.params_after
print(f"parameters: {before:,} -> {after:,}")

assert first.optimizer is not None
optimizer = getattr(first.optimizer, "optimizer", first.optimizer)  # out of accelerate's wrapper
second = trainer(result.model, 2, surgeon.rewrite_optimizer(optimizer, result.plan, model, result.model))
print(f"loss of the small model: {second.evaluate()['eval_loss']:.3f}")
second.train()
print(f"two epochs later: {second.evaluate()['eval_loss']:.3f}")
