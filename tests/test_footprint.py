"""What a model takes up, against counting by hand and against files."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

from surgeon.measure import Footprint, file_bytes, footprint


def test_a_footprint_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    found = footprint(model, torch.zeros(1, 3, 6, 6))
    outputs = [4 * (4 * 16), 4 * (4 * 16), 4 * (2 * 16)]  # bytes: conv, relu, conv
    assert found == Footprint(
        macs=4 * 3 * 9 * 16 + 4 * 2 * 16, params=108 + 8, weight_bytes=4 * 116, activation_bytes=sum(outputs),
        peak_bytes=outputs[0] + outputs[1], file_bytes=file_bytes(model),
    )  # fmt: skip


def test_the_size_of_a_file_is_that_of_the_file() -> None:
    from safetensors.torch import save

    model = torchvision.models.mobilenet_v2(weights=None)
    assert file_bytes(model) == len(save(model.state_dict()))
    assert file_bytes(model.bfloat16()) == len(save(model.bfloat16().state_dict()))
