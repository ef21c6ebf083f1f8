"""Cut a network between two epochs of a loop of your own; the optimizer goes on with its momentum.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import nn

import surgeon
from surgeon import data

torch.manual_seed(0)
images = data.open_data("digits")
made = data.Preprocess(size=8, resize=8)
train = data.batches(images.train, made, 64, data.Augment(crop=0, flip=False))
test = data.batches(images.test or images.train, made, 256)

model: nn.Module = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.inference_mode():
        return float(torch.cat([model(inputs).argmax(1) == labels for inputs, labels in test]).float().mean())


for epoch in range(6):
    model.train()
    for inputs, labels in train:
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
    print(f"epoch {epoch}: {accuracy(model):.1%} right, {sum(p.numel() for p in model.parameters()):,} parameters")

    if epoch == 2:  # cut here, and go on with the small model
        result = surgeon.prune(model, inputs[:1], max_macs=0.4, dataloader=train, heal="bn")
        optimizer = surgeon.rewrite_optimizer(optimizer, result.plan, model, result.model)
        model = result.model
        print(f"cut to {result.report.macs_after / result.report.macs_before:.0%} of the multiply-adds")

surgeon.save("plain-loop.safetensors", model, result.plan)
