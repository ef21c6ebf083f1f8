"""Cut a network between two fits of Lightning's Trainer; its optimizer is carried along.

python -m pip install lightning; python examples/lightning_trainer.py
"""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import Tensor, nn

import surgeon
from surgeon import data, models


class Classifier(lightning.LightningModule):  # type: ignore[misc]  # mypy skips what may not be there
    """A network, and the optimizer that it was trained with so far."""

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer or torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


def fit(module: Classifier, epochs: int) -> float:
    """Train so long; the share of the test images that is right then."""
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, train)
    return float(trainer.test(module, test, verbose=False)[0]["accuracy"])


lightning.seed_everything(0)
images = data.open_data("digits")
made = data.Preprocess(size=8, resize=8)
train = data.batches(images.train, made, 64, data.Augment(crop=0, flip=False))
test = data.batches(images.test or images.train, made, 256)

dense = Classifier(models.build("vgg7_bn-x0.25"))
print(f"whole network: {fit(dense, 4):.1%} right")

some = next(iter(test))[0]
result = surgeon.prune(dense.net, some[:1], max_macs=0.4, dataloader=train, heal="lstsq")
surgeon.settle(result.model, train)  # healed by lstsq: its batch norms have to be made ready for train mode
held = dense.optimizers()
assert isinstance(held, lightning.pytorch.core.optimizer.LightningOptimizer)
small = Classifier(result.model, surgeon.rewrite_optimizer(held.optimizer, result.plan, dense.net, result.model))
left, of = result.report.params_after, result.report.params_before
print(f"small network, {left:,} of {of:,} parameters: {fit(small, 2):.1%} right")
