"""Cut a model of timm's to 60 % of its multiply-adds, save it, and open it in another process.

python -m pip install timm; python examples/timm_model.py
"""

from __future__ import annotations

import timm
import torch
from torch import nn

import surgeon


def make() -> nn.Module:
    """The dense model; with a network at hand: pretrained=True."""
    model: nn.Module = timm.create_model("mobilenetv3_small_050", num_classes=10)
    return model.eval()


torch.manual_seed(0)
model, images = make(), torch.randn(8, 3, 64, 64)
result = surgeon.prune(model, images[:1], max_macs="60%", criterion="magnitude", heal="bn", calibration=[images])
report = result.report
assert report.check is not None
print(f"{report.macs_before:,} -> {report.macs_after:,} multiply-adds; check {report.check.status}")

surgeon.save("timm.safetensors", result.model, result.plan, origin={"timm": "mobilenetv3_small_050"})
again = surgeon.load("timm.safetensors", factory=make)
print(f"opened again, it computes the same: {torch.equal(again(images), result.model(images))}")
