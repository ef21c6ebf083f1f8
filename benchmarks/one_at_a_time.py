"""Filters removed one at a time, the way the first well-known pruning scripts did it: the baseline of ``surgery.py``.

For each filter the convolution is rebuilt without it, and so is the next convolution, or the first Linear layer behind
the flatten, by concatenating what stays. Written for torchvision's VGG without BatchNorm, as those scripts were.

The new layers are made without initial values. The ancestor's constructors also drew random weights that were thrown
away at once; ``initialise=True`` does the same, and is several times slower still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


def remove_filters(model: nn.Module, removed: Mapping[str, Sequence[int]], *, initialise: bool = False) -> nn.Module:
    """Remove ``removed`` (layer name -> filters) from a torchvision VGG in place, one after the other.

    The filters of a layer go from the last to the first, so that the positions of the others stay as they were.

    Raises:
        AttributeError: the model has no ``features`` or no ``classifier``.
        TypeError: a named layer is no convolution.
    """
    for layer, filters in removed.items():
        for index in sorted(filters, reverse=True):
            remove_filter(model, layer, index, initialise=initialise)
    return model


def remove_filter(model: nn.Module, layer: str, index: int, *, initialise: bool = False) -> None:
    """Remove one filter of ``features.N`` in place: two layers are built again."""
    position = int(layer.removeprefix("features."))
    conv = conv_at(model, position)
    features, classifier = model.get_submodule("features"), model.get_submodule("classifier")
    setattr(features, str(position), without_filter(conv, index, initialise))
    behind = [int(name) for name, each in features.named_children() if isinstance(each, nn.Conv2d)]
    behind = [place for place in behind if place > position]
    if behind:
        setattr(features, str(behind[0]), without_channel(conv_at(model, behind[0]), index, initialise))
        return
    name, first = next((name, each) for name, each in classifier.named_children() if isinstance(each, nn.Linear))
    setattr(classifier, name, without_columns(first, index, conv.out_channels, initialise))


def conv_at(model: nn.Module, position: int) -> nn.Conv2d:
    """The convolution ``features.position``. Raises TypeError where there is another kind of layer."""
    layer = model.get_submodule(f"features.{position}")
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"features.{position} is no convolution but {type(layer).__name__}")
    return layer


def without_filter(conv: nn.Conv2d, index: int, initialise: bool) -> nn.Conv2d:
    """Build the convolution again without one of its filters."""
    new = empty_conv(conv, conv.in_channels, conv.out_channels - 1, initialise)
    new.weight = nn.Parameter(without(conv.weight.detach(), 0, index, index + 1))
    if conv.bias is not None:
        new.bias = nn.Parameter(without(conv.bias.detach(), 0, index, index + 1))
    return new


def without_channel(conv: nn.Conv2d, index: int, initialise: bool) -> nn.Conv2d:
    """Build the convolution again without one of its input channels."""
    new = empty_conv(conv, conv.in_channels - 1, conv.out_channels, initialise)
    new.weight = nn.Parameter(without(conv.weight.detach(), 1, index, index + 1))
    if conv.bias is not None:
        new.bias = nn.Parameter(conv.bias.detach().clone())
    return new


def without_columns(linear: nn.Linear, index: int, channels: int, initialise: bool) -> nn.Linear:
    """Build the Linear layer again without the in-features of one of ``channels`` flattened channels."""
    each = linear.in_features // channels
    where = torch.device("cpu" if initialise else "meta")
    new = nn.Linear(linear.in_features - each, linear.out_features, linear.bias is not None, device=where)
    new.weight = nn.Parameter(without(linear.weight.detach(), 1, index * each, (index + 1) * each))
    if linear.bias is not None:
        new.bias = nn.Parameter(linear.bias.detach().clone())
    return new


def empty_conv(conv: nn.Conv2d, channels: int, filters: int, initialise: bool) -> nn.Conv2d:
    """Make a convolution of other widths; its parameters are about to be replaced."""
    return nn.Conv2d(
        channels,
        filters,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1]),
        (conv.dilation[0], conv.dilation[1]),
        bias=conv.bias is not None,
        device="cpu" if initialise else "meta",
    )


def without(tensor: torch.Tensor, axis: int, start: int, stop: int) -> torch.Tensor:
    """Concatenate what stays of ``tensor`` when ``start:stop`` of ``axis`` goes."""
    left = tensor.narrow(axis, 0, start)
    right = tensor.narrow(axis, stop, tensor.shape[axis] - stop)
    return torch.cat([left, right], axis)
