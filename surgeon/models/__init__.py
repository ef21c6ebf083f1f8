"""Models: a small zoo of the classic networks for 32x32 images (CIFAR-10 and CIFAR-100), by name.

Names are those of the papers: ``resnet20`` to ``resnet110`` (a ``b`` behind the depth: projections on the shortcuts),
``wrn16-4`` to ``wrn40-4`` (depth and width of a wide ResNet), ``vgg11`` to ``vgg19``, with ``_bn``; ``vgg7`` is for
smaller images. ``-x0.25`` behind any of them multiplies all widths: ``vgg16_bn-x0.25``. On the command line they are
called ``cifar:NAME``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from surgeon.errors import SelectionError
from surgeon.models.resnets import CifarResNet, WideResNet
from surgeon.models.vggs import CifarVGG

__all__ = ["SIZE", "CifarResNet", "CifarVGG", "Entry", "WideResNet", "build", "find", "names"]

#: Side of the images in pixels.
SIZE = 32

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_NAME = re.compile(r"(?P<base>.+?)(?:-x(?P<width>\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Attributes
    ----------
    make:
        ``make(classes, width)``, with random weights.
    mean, std:
        How its inputs are normalised, in units of the full range, as public weights of these networks were trained:
        ResNets with ImageNet's numbers, those with projections with 0.5, the others with CIFAR-10's own.
    """

    make: Callable[[int, float], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _resnet(depth: int, *, projections: bool) -> Entry:
    mean, std = _HALF if projections else _IMAGENET
    return Entry(lambda classes, width: CifarResNet(depth, classes, width, projections=projections), mean, std)


def _wide(depth: int, factor: int) -> Entry:
    return Entry(lambda classes, width: WideResNet(depth, factor * width, classes), *_CIFAR)


def _vgg(depth: int, *, norm: bool) -> Entry:
    return Entry(lambda classes, width: CifarVGG(depth, classes, width, norm=norm), *_CIFAR)


_ZOO: Mapping[str, Entry] = {
    **{f"resnet{depth}": _resnet(depth, projections=False) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}b": _resnet(depth, projections=True) for depth in (20, 32, 44, 56, 110)},
    **{f"wrn{d}-{k}": _wide(d, k) for d, k in ((16, 4), (16, 8), (22, 8), (28, 4), (28, 10), (40, 2), (40, 4))},
    **{f"vgg{depth}": _vgg(depth, norm=False) for depth in (7, 11, 13, 16, 19)},
    **{f"vgg{depth}_bn": _vgg(depth, norm=True) for depth in (7, 11, 13, 16, 19)},
}


def names() -> tuple[str, ...]:
    """All names, without widths."""
    return tuple(_ZOO)


def find(name: str) -> tuple[Entry, float]:
    """The network of that name, and what its widths are multiplied by.

    Raises
    ------
    SelectionError
        If there is none.
    """
    match = _NAME.fullmatch(name)
    base, width = (match["base"], float(match["width"] or 1)) if match else (name, 1.0)
    if base not in _ZOO:
        near = difflib.get_close_matches(base.lower(), _ZOO, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise SelectionError(f"no network called {name!r} for 32x32 images{hint} There are: {', '.join(_ZOO)}")
    if not 0.01 <= width <= 16:
        raise SelectionError(f"{name!r}: widths can be multiplied by 0.01 to 16")
    return _ZOO[base], width


def build(name: str, num_classes: int = 10) -> nn.Module:
    """A network with random weights, drawn from torch's generator.

    Parameters
    ----------
    name:
        Such as ``"resnet20"`` or ``"vgg16_bn-x0.25"``.
    num_classes:
        Outputs of its head.

    Raises
    ------
    SelectionError
        If there is none of that name.
    """
    entry, width = find(name)
    return entry.make(num_classes, width)
