"""A model of your own whose forward spells out widths: as a graph, its numbers are rewritten.

python examples/widths_in_the_forward.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon


class Net(nn.Module):
    """The 16 * 4 * 4 in the forward holds all channels of `second` in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.max_pool2d(torch.relu(self.second(x)), 2)
        x = x.view(-1, 16 * 4 * 4)
        scores: Tensor = self.head(x)
        return scores


torch.manual_seed(0)
model, images = Net().eval(), torch.randn(4, 1, 8, 8)

plain = surgeon.prune(model, images, ratio=0.5, scope="local", criterion="magnitude")
for pin in plain.report.pinned:
    print(f"as it is, {pin.layer} keeps its channels: {pin.reason}")

result = surgeon.prune(model, images, ratio=0.5, scope="local", criterion="magnitude", as_graph=True)
print(f"as a graph: second has {result.model.get_parameter('second.weight').shape[0]} of 16 channels left")

surgeon.save("graph.safetensors", result.model, result.plan)
again = surgeon.load("graph.safetensors")  # no class of yours is needed
print(f"opened again, it computes the same: {torch.equal(again(images), result.model(images))}")
