"""What the accuracy table is measured on: trained networks and their images; and how: MACs and top-1 by one counter.

CIFAR-10 networks are judged on its 10,000 test images. The MobileNet has no such set here: it is judged on 400 of the
1,000 photographs of ``imagenet-sample1000`` (one per class), and everything is drawn from the other 600. These are
probably images that it was trained on, so its figures tell cuts apart and nothing more; each of its rows says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import Images, cifar10, drawn, shared, trained
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CIFAR = ("resnet56-cifar10", "resnet20-cifar10", "vgg16bn-w025-cifar10")
IMAGENET = "mobilenet_v1_075-imagenet"
TRAIN_TOTAL, TEST_TOTAL = 50_000, 10_000
PHOTOS, PHOTOS_TESTED = 1_000, 400
BATCH = 128  # of scores, healing and recalibration
TEST_BATCH = {"cpu": 50, "cuda": 500}  # changes no figure; on a CPU what fits its cache is twice as fast
NOTES = {
    IMAGENET: f"{PHOTOS_TESTED} of the {PHOTOS} sample photographs, none of which anything was drawn from; "
    "probably training images of this network"
}


@dataclass(frozen=True)
class Task:
    """A trained network, the images that judge it, and ``draw(count, seed)`` for images to rank and heal on."""

    name: str
    dense: nn.Module
    test: Images
    draw: Callable[[int, int], Images]
    training: Callable[[], Images] | None = None

    def top1(self, model: nn.Module) -> float:
        """Top-1 accuracy in percent on the test images."""
        return top1(model, self.test, TEST_BATCH[self.test.inputs.device.type])

    def sizes(self, model: nn.Module) -> dict[str, int]:
        """MACs of one image, and parameters: the same counter for every tool's models."""
        return {"macs": macs(model, self.test.inputs[:1]), "params": sum(p.numel() for p in model.parameters())}


def read_task(name: str, device: torch.device, test_images: int) -> Task:
    """The network and its images; at most `test_images` judge. Raises MissingError."""
    dense, stats = trained(name, device)
    if name == IMAGENET:
        photos, order = read_photos(stats, device), drawn(PHOTOS, PHOTOS, 0)
        judging, pool = order[:PHOTOS_TESTED], order[PHOTOS_TESTED:]
        return Task(
            name, dense, photos.take(judging[:test_images]),
            lambda count, seed: photos.take(pool[drawn(len(pool), count, seed)]),
        )  # fmt: skip
    return Task(
        name, dense, cifar10("test", stats, device, torch.arange(min(test_images, TEST_TOTAL))),
        lambda count, seed: cifar10("train", stats, device, drawn(TRAIN_TOTAL, count, seed)),
        lambda: cifar10("train", stats, device),
    )  # fmt: skip


def read_photos(stats: dict[str, Any], device: torch.device) -> Images:
    """The sample of ImageNet: one photograph of each class, in the order of the classes."""
    paths = sorted(shared("data/imagenet-sample1000").glob("*.JPEG"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(stats[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    inputs = (inputs - mean) / std
    inputs = inputs.flip(2, 3) if stats.get("rot180") else inputs  # the stored kernels are turned as well
    return Images(inputs.contiguous().to(device), torch.arange(len(paths)).to(device))


def macs(model: nn.Module, inputs: torch.Tensor) -> int:
    """Multiply-adds of convolutions and matrix products, as PyTorch's own counter sees them (it counts two each)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def top1(model: nn.Module, images: Images, batch: int) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(batch))
    return round(100 * right / len(images), 4)


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> nn.Module:
    """Replace every BatchNorm's running statistics by their plain average over ``batches``, in place.

    Kept apart from surgeon's own, so that the other tool's rows owe nothing to it. Only the BatchNorm layers are in
    train mode meanwhile.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for inputs in batches:
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
